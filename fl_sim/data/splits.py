"""Which examples belong to whom: the clients' shares, the coalition's own set, the server's probe set and the test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fl_sim.config.keys import Config
from fl_sim.config.options import options_text, parse_options
from fl_sim.data.outside import DataError
from fl_sim.data.outside_partitions import checked_shares, is_index_file, shares_of
from fl_sim.data.partitions import KEYED, PARTITIONS, partitions
from fl_sim.data.population.resampled import ResampledShares
from fl_sim.outside_code import placed
from fl_sim.registry import OutsideError
from fl_sim.rng.streams import stream

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """Index arrays, int64. `shares` (one per client, never empty), `own_set`, `public` and `burn_in` (empty: the burn-in trains on the
    clients' shares) point into the training part and do not overlap; `probe` and `test` point into the test part and do not overlap. Only
    `test` is sorted, for reading from disk in order. With the partition `resampled` the shares overlap, and `burn_in` is what they are
    drawn from."""

    shares: Sequence[Integers]
    own_set: Integers
    probe: Integers
    test: Integers
    burn_in: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    public: Integers = field(default_factory=lambda: np.zeros(0, np.int64))

    def of(self, clients: Sequence[int]) -> list[Integers]:
        """The shares of some clients."""
        return self.shares.of(clients) if isinstance(self.shares, ResampledShares) else [self.shares[client] for client in clients]

    @property
    def sizes(self) -> set[int]:
        """The sizes of the shares (of a resampled population: the most that a share has)."""
        return {self.shares.examples} if isinstance(self.shares, ResampledShares) else {len(share) for share in self.shares}

    @property
    def trained_before(self) -> Integers:
        """The training examples (e,) of the burn-in, ascending."""
        return np.sort(self.burn_in if len(self.burn_in) else np.concatenate(self.shares))


@dataclass(frozen=True)
class SplitPlan:
    """What the splits of a data set depend on. `options`: those of the partition, as JSON; `content`: the digest of a partition from
    outside."""

    seed: int
    num_clients: int
    partition: str
    options: str
    content: str
    own_set_size: int
    probe_size: int
    burn_in_share: float = 0.0
    public_size: int = 0
    probe_by_class: bool = False


def split_plan(config: Config) -> SplitPlan:
    """The plan of a configuration. Raises ValueError if a partition from outside cannot be read."""
    data = config.data
    options = {option: getattr(data, key) for option, key in KEYED.get(data.partition, {}).items()}
    try:
        content = "" if data.partition in PARTITIONS else partitions.content(data.partition)
    except OutsideError as error:
        raise DataError(f"cannot load data.partition = {data.partition!r}: {error}") from error
    return SplitPlan(
        seed=config.seed,
        num_clients=data.num_clients,
        partition=data.partition,
        options=options_text(options | parse_options(data.partition_options)),
        content=content,
        own_set_size=config.attack.set_size if config.attack.data == "own-set" else 0,
        probe_size=config.strategy.probe_size,
        burn_in_share=data.burn_in_share,
        public_size=data.public_size,
        probe_by_class=config.probe_by_class,
    )


def make_splits(train_labels: Integers, test_labels: Integers, plan: SplitPlan) -> Splits:
    """Shuffle both parts and divide them. (Without shuffling, a file sorted by class would give a probe set, or a client, of one class.)

    The same arguments give the same splits. The own set and the probe set depend on the seed and on their own sizes only.

    train_labels, test_labels: (n,) class numbers.
    Raises ValueError, with the key, its value and the possible range, if there is too little data; and if a partition from outside fails.
    """
    for key, size, part, labels in (
        ("attack.set-size", plan.own_set_size, "training", train_labels),
        ("strategy.probe-size", plan.probe_size, "test", test_labels),
    ):
        if size >= len(labels):
            raise ValueError(f"{key} = {size}: expected 0 to {len(labels) - 1} of the {len(labels)} {part} examples")
    remaining = len(train_labels) - plan.own_set_size
    if plan.public_size >= remaining:
        raise ValueError(f"data.public-size = {plan.public_size}: expected 0 to {remaining - 1} of the {remaining} training examples left")
    remaining -= plan.public_size
    before = round(plan.burn_in_share * remaining)
    remaining -= before
    if plan.burn_in_share and not before:
        raise ValueError(f"data.burn-in-share = {plan.burn_in_share}: expected at least one of {remaining} training examples")
    if plan.num_clients > remaining and plan.partition != "resampled":
        raise ValueError(f"data.num-clients = {plan.num_clients}: only {remaining} training examples are left for the clients")

    train = stream(plan.seed, "splits", "train").permutation(len(train_labels))
    test = stream(plan.seed, "splits", "test").permutation(len(test_labels))
    if plan.probe_by_class:
        test = _by_class_first(test, test_labels, plan.probe_size)
    own_set, public, burn_in, rest = np.split(train, np.cumsum([plan.own_set_size, plan.public_size, before]))
    ours = plan.partition in PARTITIONS
    generator = stream(plan.seed, "splits", plan.partition if ours else "outside")
    if ours:
        positions = PARTITIONS[plan.partition](train_labels[rest], plan.num_clients, generator, **parse_options(plan.options))
    else:
        try:
            positions = _outside_positions(train_labels, rest, plan, generator)
        except DataError as error:
            raise DataError(f"data.partition = {plan.partition!r}: {error}") from error
    if isinstance(positions, ResampledShares):
        burn_in = burn_in if before else rest
        shares = positions.among(rest)
    else:  # shuffled within a share too, so that a batch may be a slice of it
        shares = tuple(rest[generator.permutation(share)] for share in positions)
    return Splits(
        shares=shares, own_set=own_set, probe=test[: plan.probe_size], test=np.sort(test[plan.probe_size :]), burn_in=burn_in, public=public
    )


def _by_class_first(order: Integers, labels: Integers, size: int) -> Integers:
    """`order` with its first `size // classes` examples of each class (and one more of the first classes, for the rest) moved to the front.

    Raises ValueError if `size` is less than the number of classes, or if a class has too few examples.
    """
    classes = np.unique(labels)
    if size < len(classes):
        raise ValueError(f"strategy.probe-size = {size}: expected at least one example of each of the {len(classes)} classes")
    counts = [size // len(classes) + (rank < size % len(classes)) for rank in range(len(classes))]
    chosen = [order[labels[order] == class_][:count] for class_, count in zip(classes, counts, strict=True)]
    for class_, count, examples in zip(classes, counts, chosen, strict=True):
        if len(examples) < count:
            raise ValueError(f"strategy.probe-size = {size}: class {class_} has {len(examples)} test examples, expected at least {count}")
    front = np.concatenate(chosen)
    return np.concatenate([front, order[~np.isin(order, front)]])


def _outside_positions(train_labels: Integers, rest: Integers, plan: SplitPlan, generator: np.random.Generator) -> list[Integers]:
    """Each client's positions in `rest` (e,), the clients' training examples, by a partition from outside, checked.

    A file of indices numbers all examples of the training part. The examples of the coalition's own set, and of the burn-in if it has its
    own, are removed from its shares.
    """
    try:
        partition = partitions.find(plan.partition)
    except OutsideError as error:
        raise DataError(str(error)) from error
    shares = shares_of(partition, train_labels[rest], plan.num_clients, generator, **parse_options(plan.options))
    if not is_index_file(plan.partition):
        try:
            return checked_shares(shares, plan.num_clients, len(rest))
        except DataError as error:
            raise DataError(placed(str(error), partition)) from error
    numbers = checked_shares(shares, plan.num_clients, len(train_labels))
    place = np.full(len(train_labels), -1)
    place[rest] = np.arange(len(rest))
    positions = [place[share][place[share] >= 0] for share in numbers]
    if empty := [client for client, share in enumerate(positions) if not len(share)]:
        raise DataError(f"client {empty[0]} is left without an example by the coalition's own set (attack.set-size = {plan.own_set_size})")
    return positions
