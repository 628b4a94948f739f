"""Batches of examples, of one or of many clients, and how they are drawn from the clients' shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fl_sim.rng.member_streams import Longs, generator_of, shuffle_rows
from fl_sim.rng.streams import stream

Indices = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Normalised inputs (b, C, H, W) with labels (b,)."""

    inputs: Tensor
    labels: Tensor


class CohortBatches(NamedTuple):
    """One batch per client and local step, padded to one size.

    inputs (k, steps, b, C, H, W), labels (k, steps, b), weights (k, steps, b): 1 / (the client's batch size) for a real
    example and 0 for padding; sizes: each client's batch size; shares: the weight of each client's update if it is not the examples that it
    uses: how many it has (`client.weight = "share"`), or 1 ("equal"). dropped: whether a cleaning has dropped examples: their weight is 0,
    and that of the others of the batch 1 / (how many are left).
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor
    sizes: list[int]
    shares: list[int] | None = None
    dropped: bool = False

    def part(self, start: int, stop: int) -> CohortBatches:
        """The batches of some of the clients, the same as if drawn alone. Copies, because the rounding of sums depends on the layout in
        memory."""
        sizes = self.sizes[start:stop]
        where = slice(start, stop), slice(None), slice(max(sizes))
        inputs, labels, weights = (
            values[where].clone(memory_format=torch.contiguous_format) for values in (self.inputs, self.labels, self.weights)
        )
        return CohortBatches(inputs, labels, weights, sizes, self.shares and self.shares[start:stop], self.dropped)

    def halves(self) -> Iterator[CohortBatches]:
        """The first half of the clients, then the others."""
        middle = len(self.sizes) // 2
        yield self.part(0, middle)
        yield self.part(middle, len(self.sizes))


def draw_batches(shares: Sequence[Indices], states: Longs, steps: int, batch_size: int) -> tuple[Indices, Indices]:
    """Indices (k, steps, b) of the clients' batches in a round, 0 for padding, and the size of each client's batches (k,).

    A client passes over its share as often as needed, shuffled before each pass by the generator of its states (k, 4). Its batches have
    min(batch-size, share) examples. Short shares of many clients are shuffled together.
    """
    lengths = np.array([len(share) for share in shares])
    sizes = np.minimum(batch_size, lengths)
    where = np.zeros((len(shares), steps, sizes.max()), dtype=np.int64)
    together = (sizes < lengths) & (steps * sizes <= lengths)  # clients that need one pass, with batches of batch_size
    together &= 8 * lengths <= together.sum()  # measured: faster from eight times as many clients as examples in a share
    if together.any():
        entries = np.arange(lengths[together].max()) < lengths[together, None]
        table = np.zeros(entries.shape, dtype=np.int64)
        table[entries] = np.concatenate([share for share, joins in zip(shares, together, strict=True) if joins])
        order = shuffle_rows(table, lengths[together], states[together])
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


def stream_batches(
    shares: Sequence[Indices], keys: Sequence[tuple[int, str, int]], round_: int, steps: int, batch_size: int
) -> tuple[Indices, Indices]:
    """As `draw_batches`, for round_ (from 1) of a stream: the batches of all rounds follow one another without repetition in a pass over
    the share. Each pass has another order, from the client's stream `(*key, pass)`; the examples that do not fill a batch wait for the next
    pass.

    Args: keys, of the clients' streams.
    """
    sizes = np.minimum(batch_size, [len(share) for share in shares])
    where = np.zeros((len(shares), steps, sizes.max()), dtype=np.int64)
    for row, (share, (seed, *name)) in enumerate(zip(shares, keys, strict=True)):
        size, per_pass = sizes[row], len(share) // sizes[row]
        orders: dict[int, Indices] = {}
        for step in range(steps):
            number, place = divmod((round_ - 1) * steps + step, int(per_pass))
            if number not in orders:
                orders[number] = stream(seed, *name, number).permutation(share)
            where[row, step, :size] = orders[number][place * size : (place + 1) * size]
    return where, sizes
