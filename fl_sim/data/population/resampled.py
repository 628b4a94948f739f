"""The partition `resampled`: a population of any size, of which nothing is stored. Each client's share is drawn when it is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fl_sim.rng.member_streams import generator_of, member_states

Integers = NDArray[np.int64]


def resampled(labels: Integers, num_clients: int, generator: np.random.Generator, examples: Any = 20, alpha: Any = 0.0) -> ResampledShares:
    """Shares of `examples` examples each, drawn without replacement by every client from all examples: clients may hold the same ones.

    With alpha > 0 client i draws the classes of its examples from q_i ~ Dir(alpha * p), p the class frequencies in `labels`, as in the
    partition `dirichlet`; what a class does not have is left out. Ours.
    """
    if isinstance(examples, bool) or not isinstance(examples, int) or not 1 <= examples <= len(labels):
        raise ValueError(f"expected data.partition-options 'examples' to be a whole number from 1 to {len(labels)}, got {examples!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha < math.inf:
        raise ValueError(f"expected data.partition-options 'alpha' to be a finite number >= 0 (0: no skew), got {alpha!r}")
    classes = tuple(np.flatnonzero(labels == label) for label in np.unique(labels)) if alpha else ()
    return ResampledShares(np.arange(len(labels)), num_clients, int(generator.integers(2**63)), examples, float(alpha), classes)


@dataclass(frozen=True, repr=False)
class ResampledShares(Sequence[Integers]):
    """The shares of N = `clients` clients, as indices from `pool` (e,): share i comes from the stream `(seed, "share", i)`.

    classes: positions in the pool by class, with alpha > 0.
    """

    pool: Integers
    clients: int
    seed: int
    examples: int
    alpha: float = 0.0
    classes: tuple[Integers, ...] = field(default=(), compare=False)

    def among(self, indices: Integers) -> ResampledShares:
        """The same shares, with `indices` (e,) in place of the pool."""
        return replace(self, pool=indices)

    def of(self, clients: Sequence[int]) -> list[Integers]:
        """The shares of some clients."""
        return [self.pool[self._draw(generator_of(state))] for state in member_states(self.seed, "share", clients, 0)]

    def _draw(self, generator: np.random.Generator) -> Integers:
        """Positions in the pool."""
        if not self.alpha:
            return generator.choice(len(self.pool), self.examples, replace=False)
        counts = np.array([len(pool) for pool in self.classes])
        mixture = generator.dirichlet(self.alpha * counts / counts.sum())
        if not mixture.sum() > 0.5:  # alpha is so small that all components are 0 in float64: the limit, one class
            mixture = np.eye(len(counts))[generator.choice(len(counts), p=counts / counts.sum())]
        wanted = np.minimum(generator.multinomial(self.examples, mixture / mixture.sum()), counts)
        chosen = [generator.choice(pool, number, replace=False) for pool, number in zip(self.classes, wanted, strict=True) if number]
        return np.concatenate(chosen)

    def __len__(self) -> int:
        return self.clients

    @overload
    def __getitem__(self, index: int) -> Integers: ...
    @overload
    def __getitem__(self, index: slice) -> list[Integers]: ...
    def __getitem__(self, index: Any) -> Any:
        clients = range(self.clients)[index]
        return self.of(clients) if isinstance(clients, range) else self.of([clients])[0]

    def __repr__(self) -> str:
        """What the shares depend on, beside the pool."""
        return f"resampled {self.clients} {self.seed} {self.examples} {self.alpha}"
