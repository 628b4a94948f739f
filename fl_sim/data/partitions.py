"""The partitions: how the training part is divided among the clients. Each is a function
`(labels: ndarray (e,), num_clients, generator, **options) -> list of N index arrays`, positions in `labels`.

`labels` are the labels of the clients' training examples, shuffled. Our partitions give every client at least one example, if there are
at least N; with `resampled` any number of clients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_sim.data.outside_partitions import FLOWER, family_problem, flower_partition, index_file_digest, index_file_partition, is_index_file
from fl_sim.data.population.resampled import resampled
from fl_sim.registry import Registry

Integers = NDArray[np.int64]
Partition = Callable[..., Sequence[Integers]]


def iid(labels: Integers, num_clients: int, generator: np.random.Generator) -> list[Integers]:
    """Random shares of equal size (they differ by at most one): `labels` are shuffled already."""
    return np.array_split(np.arange(len(labels)), num_clients)


def dirichlet(labels: Integers, num_clients: int, generator: np.random.Generator, alpha: float) -> list[Integers]:
    """Shares of equal size whose class mixtures are drawn from a Dirichlet distribution; every example is used once.

    Client i draws q_i ~ Dir(alpha * p), p the class frequencies in `labels`. Then it draws its examples one by one: the class from q_i,
    and an unused example of that class. A class without unused examples is drawn again, so the last clients take the remaining ones.
    alpha -> infinity gives every client the mixture p, alpha -> 0 one class each. The parameters of the distribution sum to alpha: with c
    equal classes each is alpha / c, whereas `dirichlet_per_class` uses alpha for each.
    Source: Hsu et al. 2019, "Measuring the effects of non-identical data distribution", section 3.
    """
    _check_alpha(alpha)
    classes, counts = np.unique(labels, return_counts=True)
    pools: list[Integers] = [np.flatnonzero(labels == label) for label in classes]  # in random order, as `labels` is
    prior = alpha * counts / len(labels)
    unused: Integers = counts.copy()
    shares: list[Integers] = []
    for size in _equal_sizes(len(labels), num_clients):
        mixture = generator.dirichlet(prior)
        before = unused
        while needed := int(size - (before - unused).sum()):
            # Draws of a used-up class are repeated with the other classes: the same distribution as drawing one by one.
            mixture = mixture * (unused > 0)
            if not mixture.sum() > 1e-12:
                # A small alpha can put all mass on used-up classes. The other components of a Dirichlet vector, scaled to sum to 1,
                # have a Dirichlet distribution of their own and are independent of that mass, so they can be drawn again.
                mixture[unused > 0] = generator.dirichlet(prior[unused > 0])
            unused = unused - np.minimum(generator.multinomial(needed, mixture / mixture.sum()), unused)
        shares.append(np.concatenate([pool[low:high] for pool, low, high in zip(pools, unused, before, strict=True)]))
    return shares


def _equal_sizes(num_examples: int, num_clients: int) -> Integers:
    """(N,) sizes that differ by at most one and sum to `num_examples`."""
    return np.diff(np.arange(num_clients + 1) * num_examples // num_clients)


def dirichlet_per_class(labels: Integers, num_clients: int, generator: np.random.Generator, alpha: float) -> list[Integers]:
    """Each class is divided among the clients in proportions q ~ Dir(alpha, …, alpha) (N,), drawn for each class; shares differ in size;
    every example is used once.

    A client without examples gets one from the client that has most, so no draw is repeated.
    Source: Yurochkin et al. 2019, "Bayesian nonparametric federated learning of neural networks"; Li et al. 2022, "Federated learning on
    non-IID data silos: an experimental study" (label distribution skew); Lin et al. 2020, "Ensemble distillation for robust model fusion in
    federated learning"; Flower's `DirichletPartitioner`, ByzFL's `dirichlet_niid`. Flower (and Li et al.'s code) draws again until every
    client has ten examples, which fails for a small alpha and many clients; ByzFL leaves clients empty.
    """
    _check_alpha(alpha)
    shares: list[list[Integers]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        pool = np.flatnonzero(labels == label)
        cuts = (np.cumsum(_dirichlet_draw(generator, num_clients, alpha))[:-1] * len(pool)).astype(np.int64)
        for share, piece in zip(shares, np.split(pool, np.minimum(cuts, len(pool))), strict=True):
            share.append(piece)
    return _none_empty([np.concatenate(share) for share in shares])


def quantity_skew(labels: Integers, num_clients: int, generator: np.random.Generator, alpha: float) -> list[Integers]:
    """Random shares of different sizes: one example per client, and the others in proportions q ~ Dir(alpha, …, alpha) (N,).

    With `client.weight = "share"` the weights of updates are in proportion to the sizes.
    Source: Li et al. 2022, "Federated learning on non-IID data silos: an experimental study" (quantity skew); ours is the one example that
    every client has.
    """
    _check_alpha(alpha)
    free = len(labels) - num_clients
    cuts = (np.cumsum(_dirichlet_draw(generator, num_clients, alpha))[:-1] * free).astype(np.int64)
    return np.split(np.arange(len(labels)), np.minimum(cuts, free) + np.arange(1, num_clients))


def label_quantity(labels: Integers, num_clients: int, generator: np.random.Generator, classes: int = 2) -> list[Integers]:
    """Every client holds examples of `classes` classes; every example is used once.

    One client after the other gets the classes with the fewest holders so far, ties in random order; so the numbers of holders differ by
    at most one. The examples of a class are divided equally among its holders. If all classes of a client have fewer examples than
    holders, it may get none: then it gets one from the client that has most.
    Source: Li et al. 2022, "Federated learning on non-IID data silos: an experimental study" (quantity-based label imbalance, #C = k).
    There the first class of client i is i mod c and the others are random.
    Raises ValueError if there are fewer classes than `classes`, or if some class would have no holder.
    """
    pools = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    _check_count("classes", classes, len(pools))
    if num_clients * classes < len(pools):
        raise ValueError(
            f"expected data.num-clients times 'classes' >= {len(pools)}, so that each class has a holder, got {num_clients} times {classes}"
        )
    holders: list[list[int]] = [[] for _ in pools]
    for client in range(num_clients):
        order = generator.permutation(len(pools))
        fewest = np.argsort([len(holders[number]) for number in order], kind="stable")[:classes]
        for number in order[fewest].tolist():
            holders[number].append(client)
    shares: list[list[Integers]] = [[] for _ in range(num_clients)]
    for pool, clients in zip(pools, holders, strict=True):
        for client, piece in zip(clients, np.array_split(pool, len(clients)), strict=True):
            shares[client].append(piece)
    return _none_empty([np.concatenate(share) for share in shares])


def shards(labels: Integers, num_clients: int, generator: np.random.Generator, shards_per_client: int) -> list[Integers]:
    """Shares of `shards_per_client` shards each, cut from the examples sorted by class; every example is used once.

    Source: McMahan et al. 2017, "Communication-efficient learning", section 3 (there 2 shards of 300 for each of 100 clients).
    We use every example: shards may differ in size by one.
    """
    _check_count("shards_per_client", shards_per_client, len(labels))
    count = num_clients * shards_per_client
    if count > len(labels):
        raise ValueError(
            f"data.num-clients = {num_clients} with data.shards-per-client = {shards_per_client}: only {len(labels)} training examples "
            "are left for the clients"
        )
    pieces: list[Integers] = np.array_split(np.argsort(labels, kind="stable"), count)
    hands: list[list[int]] = generator.permutation(count).reshape(num_clients, shards_per_client).tolist()
    return [np.concatenate([pieces[piece] for piece in hand]) for hand in hands]


def _check_alpha(alpha: Any) -> None:
    """Raises ValueError. Needed because the configuration checks `data.dirichlet-alpha`, but not the option `alpha`."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ValueError(f"expected data.partition-options 'alpha' to be a finite number > 0, got {alpha!r}")


def _check_count(option: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"expected data.partition-options {option!r} to be a whole number from 1 to {most}, got {value!r}")


def _dirichlet_draw(generator: np.random.Generator, size: int, alpha: float) -> NDArray[np.float64]:
    """q ~ Dir(alpha, …, alpha) (size,). If alpha is so small that all components are 0 in float64: the limit, one component 1."""
    draw = generator.dirichlet(np.full(size, alpha))
    if not np.isfinite(draw).all() or draw.sum() < 0.5:
        draw = np.zeros(size)
        draw[generator.integers(size)] = 1.0
    return draw


def _none_empty(shares: list[Integers]) -> list[Integers]:
    """The shares, with one example moved from the largest share to each empty one, in the order of clients."""
    for client, share in enumerate(shares):
        if not len(share):
            largest = max(range(len(shares)), key=lambda other: len(shares[other]))
            shares[largest], shares[client] = shares[largest][:-1], shares[largest][-1:]
    return shares


PARTITIONS: Mapping[str, Partition] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "dirichlet-per-class": dirichlet_per_class,
    "quantity-skew": quantity_skew,
    "label-quantity": label_quantity,
    "shards": shards,
    "resampled": resampled,
}

# Options that also have a key of their own, below `data.`; `data.partition-options` takes precedence.
KEYED: Mapping[str, Mapping[str, str]] = {
    "dirichlet": {"alpha": "dirichlet_alpha"},
    "dirichlet-per-class": {"alpha": "dirichlet_alpha"},
    "quantity-skew": {"alpha": "dirichlet_alpha"},
    "shards": {"shards_per_client": "shards_per_client"},
}


class Partitions(Registry[Partition]):
    """The registry of partitions: also Flower's, and files of indices."""

    def find(self, name: str) -> Partition:
        """The partition of a name. Raises KeyError for an unknown name, OutsideError for one that cannot be loaded."""
        if is_index_file(name):
            return index_file_partition(name)
        return flower_partition(name) if name.startswith("flwr.") else super().find(name)

    def content(self, name: str) -> str:
        """Sixteen hex digits of the source of a partition from outside, or of a file of indices; empty for ours."""
        return index_file_digest(name) if is_index_file(name) else super().content(name)


partitions = Partitions(
    "partition",
    "data.partition",
    PARTITIONS,
    "fl_sim.partitions",
    arguments=3,
    family=family_problem,
    family_names=(*(f"flwr.{name}" for name in FLOWER), "FILE.json", "FILE.npz"),
)
