"""The data of a run as its participants see it: clients' batches, the coalition's own set, the server's probe and test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fl_sim.config.keys import Config
from fl_sim.data.datasets import Dataset, Images, load_dataset, normalised
from fl_sim.data.splits import Splits, make_splits
from fl_sim.device import device_of
from fl_sim.rng.member_streams import Longs, generator_of, member_states, shuffled
from fl_sim.rng.streams import stream

Indices = npt.NDArray[np.int64]
RESIDENT_BYTES = 2**31  # of training pixels; more stay in the file, mapped into memory, and batches travel


class Batch(NamedTuple):
    """Normalised inputs (b, C, H, W) with labels (b,)."""

    inputs: Tensor
    labels: Tensor


class CohortBatches(NamedTuple):
    """One batch a client and local step, padded to one size.

    inputs (k, steps, b, C, H, W), labels (k, steps, b), weights (k, steps, b): 1 / (the client's batch size) for a real
    example and 0 for padding; sizes: the client's batch size.
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor
    sizes: list[int]

    def part(self, start: int, stop: int) -> CohortBatches:
        """The batches of some of the clients, as if they had been drawn alone: copies, because sums round by their place in memory."""
        sizes = self.sizes[start:stop]
        where = slice(start, stop), slice(None), slice(max(sizes))
        inputs, labels, weights = (
            values[where].clone(memory_format=torch.contiguous_format) for values in (self.inputs, self.labels, self.weights)
        )
        return CohortBatches(inputs, labels, weights, sizes)

    def halves(self) -> Iterator[CohortBatches]:
        """The first half of the clients, then the others."""
        middle = len(self.sizes) // 2
        yield self.part(0, middle)
        yield self.part(middle, len(self.sizes))


class Federation:
    """Data set and splits of one configuration, the data resident there if it is not too large. Read-only after construction."""

    def __init__(self, dataset: Dataset, splits: Splits, device: torch.device, seed: int) -> None:
        self.dataset, self.splits, self.device, self.seed = dataset, splits, device, seed

    def batch(self, part: Images, indices: Indices, augment: Callable[[Tensor], Tensor] | None = None) -> Batch:
        """The examples of `part` at `indices` (b,), their pixels augmented and then normalised, on the device."""
        where = torch.from_numpy(indices).to(part.pixels.device)
        pixels, labels = part.pixels.index_select(0, where), part.labels.index_select(0, where)  # indexing takes ten times as long
        pixels = pixels.to(self.device)
        return Batch(normalised(augment(pixels) if augment else pixels, self.dataset), labels.to(self.device))

    def cohort(self, clients: list[int], round_: int, steps: int, batch_size: int) -> CohortBatches:
        """The batches of k clients in a round, each from its own stream `(seed, "batch", client, round)`."""
        states = member_states(self.seed, "batch", clients, round_)
        where, sizes = draw_batches([self.splits.shares[i] for i in clients], states, steps, batch_size)
        real = np.arange(where.shape[2]) < sizes[:, None]
        weights = np.broadcast_to(np.where(real, 1.0 / sizes[:, None], 0.0).astype(np.float32)[:, None], where.shape)
        batch = self.batch(self.dataset.train, where.reshape(-1))
        return CohortBatches(
            batch.inputs.view(*where.shape, *self.dataset.image_shape),
            batch.labels.view(where.shape),
            torch.from_numpy(weights.copy()).to(self.device),
            sizes.tolist(),
        )

    def test(self, examples: int = 0) -> Batch:
        """The test set, or `examples` of it drawn from stream `(seed, "evaluate")`: a test file may be sorted by class."""
        if not examples or examples >= len(self.splits.test):
            return self.batch(self.dataset.test, self.splits.test)
        drawn = stream(self.seed, "evaluate").permutation(self.splits.test)[:examples]
        return self.batch(self.dataset.test, np.sort(drawn))

    def probe(self) -> Batch:
        """The server's probe set."""
        return self.batch(self.dataset.test, self.splits.probe)


def draw_batches(shares: Sequence[Indices], states: Longs, steps: int, batch_size: int) -> tuple[Indices, Indices]:
    """Indices (k, steps, b) of the clients' batches in a round, 0 where padded, and the size of each client's batches (k,).

    A client makes passes over its share, shuffled anew for each pass by the generator of its states (k, 4); its batches have
    min(batch-size, share) examples. Short shares of many clients are shuffled side by side.
    """
    lengths = np.array([len(share) for share in shares])
    sizes = np.minimum(batch_size, lengths)
    where = np.zeros((len(shares), steps, sizes.max()), dtype=np.int64)
    together = (sizes < lengths) & (steps * sizes <= lengths)  # in one pass, with batches of batch_size
    together &= 8 * lengths <= together.sum()  # measured: what a draw for all costs next to a shuffle of one
    if together.any():
        entries = np.arange(lengths[together].max()) < lengths[together, None]
        table = np.zeros(entries.shape, dtype=np.int64)
        table[entries] = np.concatenate([share for share, joins in zip(shares, together, strict=True) if joins])
        order = shuffled(table, lengths[together], states[together])
        where[together, :, :batch_size] = order[:, : steps * batch_size].reshape(-1, steps, batch_size)
    for row in np.flatnonzero(~together).tolist():
        where[row, :, : sizes[row]] = _batches_of(shares[row], generator_of(states[row]), steps, sizes[row])
    return where, sizes


def _batches_of(share: Indices, generator: np.random.Generator, steps: int, size: int) -> Indices:
    """One client's batches (steps, size)."""
    if size == len(share):
        return np.broadcast_to(share, (steps, size))
    passes = -(-steps * size // len(share))
    return np.concatenate([generator.permutation(share) for _ in range(passes)])[: steps * size].reshape(steps, size)


def load_federation(config: Config) -> Federation:
    """The federation of a configuration; a process-wide cache keyed by the keys it depends on."""
    data = config.data
    own = config.attack.set_size if config.attack.data == "own-set" else 0
    key = (data.name, data.root, data.download, data.cache_dir, data.num_clients, data.partition, data.dirichlet_alpha)
    return _federation(*key, data.shards_per_client, own, config.strategy.probe_size, config.seed, str(device_of(config)))


@lru_cache(maxsize=8)
def _federation(
    name: str,
    root: str,
    download: bool,
    cache_dir: str,
    num_clients: int,
    partition: str,
    alpha: float,
    shards: int,
    own_set_size: int,
    probe_size: int,
    seed: int,
    device: str,
) -> Federation:
    dataset = _resident(name, root, download, cache_dir, device)
    splits = make_splits(
        dataset.train.labels.numpy(force=True),
        dataset.test.labels.numpy(force=True),
        seed=seed,
        num_clients=num_clients,
        partition=partition,
        dirichlet_alpha=alpha,
        shards_per_client=shards,
        own_set_size=own_set_size,
        probe_size=probe_size,
    )
    return Federation(dataset, splits, torch.device(device), seed)


@lru_cache(maxsize=4)
def _resident(name: str, root: str, download: bool, cache_dir: str, device: str) -> Dataset:
    """A data set in the memory of a device, unless it is too large: once, whatever seeds and splits look at it (a process-wide cache)."""
    dataset = load_dataset(name, root, download=download, cache_dir=Path(cache_dir).expanduser())
    return dataset.on(torch.device(device)) if dataset.train.pixels.numel() <= RESIDENT_BYTES else dataset
