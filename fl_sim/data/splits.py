"""Who holds which examples: the clients' shares, the coalition's own set, the server's probe and the test set.

The partitions are our own, not flwr-datasets' (measured with 0.6.1, 1,000 clients, 60,000 labels, two busy cores):

- its `DirichletPartitioner` gives up (ValueError after 11 tries, 1.1 s) at alpha = 0.1 unless clients without any example are allowed:
  it splits each class over the clients, so shares may be empty. Hsu et al. give every client a share of the same size;
- its `IidPartitioner` does not shuffle: it cuts contiguous pieces, single classes where the file is sorted;
- importing it takes 5.2 s and 220 MB of memory in every process, installing it 300 MB (pyarrow, pandas, seaborn), to split one array.

Its partitions are deterministic by seed and take 0.7 to 4 s here; ours take under 0.2 s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_sim.rng.streams import stream

Integers = NDArray[np.int64]
PARTITIONS = ("iid", "dirichlet", "shards")


@dataclass(frozen=True)
class Splits:
    """Index arrays, int64. `shares` (one per client, never empty) and `own_set` point into the training part and do not overlap;
    `probe` and `test` point into the test part and do not overlap. Only `test` is sorted, for reading from disk in order."""

    shares: tuple[Integers, ...]
    own_set: Integers
    probe: Integers
    test: Integers


def _share_sizes(num_examples: int, num_clients: int) -> Integers:
    """(N,) sizes that differ by at most one and sum to `num_examples`."""
    return np.diff(np.arange(num_clients + 1) * num_examples // num_clients)


def _dirichlet(labels: Integers, num_clients: int, alpha: float, rng: np.random.Generator) -> list[Integers]:
    """Shares of equal size whose class mixtures are drawn from a Dirichlet law; positions in `labels`, every one used once.

    Client i draws q_i ~ Dir(alpha * p), p the class frequencies in `labels`, then its examples one by one, the class from q_i and the
    example from those left of that class. A class that has run out is redrawn, so the last clients take what is left.
    alpha -> infinity gives everybody p, alpha -> 0 one class each.
    Source: Hsu et al. 2019, "Measuring the effects of non-identical data distribution", section 3.
    """
    classes, counts = np.unique(labels, return_counts=True)
    pools: list[Integers] = [np.flatnonzero(labels == label) for label in classes]  # as shuffled as `labels` is
    prior = alpha * counts / len(labels)
    left: Integers = counts.copy()
    shares: list[Integers] = []
    for size in _share_sizes(len(labels), num_clients):
        mixture = rng.dirichlet(prior)
        before = left
        while missing := int(size - (before - left).sum()):
            # Draws from a used-up class are drawn again from the others: in law the same as drawing one by one.
            mixture = mixture * (left > 0)
            if not mixture.sum() > 1e-12:
                # A small alpha can put all mass on used-up classes. The other parts of a Dirichlet vector, scaled to sum to 1,
                # are Dirichlet themselves and independent of it, so they can be drawn anew.
                mixture[left > 0] = rng.dirichlet(prior[left > 0])
            left = left - np.minimum(rng.multinomial(missing, mixture / mixture.sum()), left)
        shares.append(np.concatenate([pool[low:high] for pool, low, high in zip(pools, left, before, strict=True)]))
    return shares


def _shards(labels: Integers, num_clients: int, shards_per_client: int, rng: np.random.Generator) -> list[Integers]:
    """Shares of `shards_per_client` shards each, cut from the examples sorted by class; positions in `labels`, every one used once.

    Source: McMahan et al. 2017, "Communication-efficient learning", section 3 (there 2 shards of 300 for each of 100 clients).
    We use every example: shards may differ in size by one.
    """
    order = np.argsort(labels, kind="stable")
    shards: list[Integers] = np.array_split(order, num_clients * shards_per_client)
    hands: list[list[int]] = rng.permutation(len(shards)).reshape(num_clients, shards_per_client).tolist()
    return [np.concatenate([shards[shard] for shard in hand]) for hand in hands]


def make_splits(
    train_labels: Integers,
    test_labels: Integers,
    *,
    seed: int,
    num_clients: int,
    partition: str,
    dirichlet_alpha: float = 0.5,
    shards_per_client: int = 2,
    own_set_size: int,
    probe_size: int,
) -> Splits:
    """Divide both parts, shuffled first: a file sorted by class must not give a probe, or a client, of one class.

    The same arguments give the same splits. The own set and the probe depend on the seed and on their own sizes only, not on the clients.

    train_labels, test_labels: (n,) class numbers.
    dirichlet_alpha: > 0, used by `dirichlet`. shards_per_client: >= 1, used by `shards`.
    Raises ValueError, naming key, value and what is possible, where a number is out of range or there is too little data.
    """
    if partition not in PARTITIONS:
        raise ValueError(f"data.partition: expected one of {', '.join(PARTITIONS)}, got {partition!r}")
    if num_clients < 1:
        raise ValueError(f"data.num-clients: expected at least 1, got {num_clients}")
    if partition == "dirichlet" and not 0 < dirichlet_alpha < float("inf"):
        raise ValueError(f"data.dirichlet-alpha: expected a finite number > 0, got {dirichlet_alpha}")
    if partition == "shards" and shards_per_client < 1:
        raise ValueError(f"data.shards-per-client: expected at least 1, got {shards_per_client}")
    for key, size, part, labels in (
        ("attack.set-size", own_set_size, "training", train_labels),
        ("strategy.probe-size", probe_size, "test", test_labels),
    ):
        if not 0 <= size < len(labels):
            raise ValueError(f"{key} = {size}: expected 0 to {len(labels) - 1} of the {len(labels)} {part} examples")
    left = len(train_labels) - own_set_size
    shards = shards_per_client if partition == "shards" else 1
    if num_clients * shards > left:
        times = f" with data.shards-per-client = {shards}" if partition == "shards" else ""
        raise ValueError(f"data.num-clients = {num_clients}{times}: only {left} training examples are left for the clients")

    train = stream(seed, "splits", "train").permutation(len(train_labels))
    test = stream(seed, "splits", "test").permutation(len(test_labels))
    own_set, rest = train[:own_set_size], train[own_set_size:]
    rng = stream(seed, "splits", partition)
    if partition == "dirichlet":
        positions = _dirichlet(train_labels[rest], num_clients, dirichlet_alpha, rng)
    elif partition == "shards":
        positions = _shards(train_labels[rest], num_clients, shards_per_client, rng)
    else:
        positions = np.array_split(np.arange(len(rest)), num_clients)
    # Within a share too the classes come in no order, so that a batch may be a slice.
    shares = tuple(rest[rng.permutation(share)] for share in positions)
    return Splits(shares=shares, own_set=own_set, probe=test[:probe_size], test=np.sort(test[probe_size:]))
