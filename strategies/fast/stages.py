"""Stages of ByzFL's rules that take it seconds a round on a model of 200,000 parameters, with the same result in a tenth of the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strategies.fast.distances import nearest_neighbours, squared_distances

COORDINATES = 1 << 15  # of each update, sorted together


def faster(name: str, stage: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What computes the same as a stage of ByzFL: the stage itself, or one of this file with its f."""
    f: Any = getattr(stage, "f", 0)
    ours: dict[str, Callable[[Tensor], Tensor]] = {
        "NNM": NearestNeighbourMixing(f), "Krum": Krum(f, 1), "MultiKrum": Krum(f, 0), "TrMean": TrimmedMean(f), "Median": Median()
    }  # fmt: skip
    return ours.get(name, stage)


@dataclass(frozen=True)
class NearestNeighbourMixing:
    """Each of the updates (n, d) becomes the mean of the n - f nearest to it, itself included, as one product of matrices. ByzFL gathers
    n (n - f) d numbers for it. Distances are float64; ByzFL's are float32.

    Source: Allouah et al. 2023, "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity", algorithm 2.
    """

    f: int

    def __call__(self, updates: Tensor) -> Tensor:
        """The mixed updates (n, d). Raises ValueError unless f < n."""
        if not self.f < len(updates):
            raise ValueError(f"f must be smaller than the number of updates, {len(updates)}, got {self.f}")
        count = len(updates) - self.f
        shares = updates.new_zeros(len(updates), len(updates)).scatter_(1, nearest_neighbours(updates, count), 1 / count)
        return shares @ updates


@dataclass(frozen=True)
class Krum:
    """The mean (d,) of the `selected` updates of (n, d), or n - f with 0, with the smallest mean squared distance to their n - f - 1
    nearest others; of equal ones the first. Distances are float64; ByzFL's are float32.

    Source: Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", sections 4 and 5.
    """

    f: int
    selected: int

    def __call__(self, updates: Tensor) -> Tensor:
        """The combined update (d,). Raises ValueError unless 2f < n."""
        n = len(updates)
        if not 2 * self.f < n:
            raise ValueError(f"2f must be smaller than the number of updates, {n}, got f = {self.f}")
        scores = squared_distances(updates).sort(dim=1).values[:, 1 : n - self.f].mean(dim=1)
        return updates[scores.sort(stable=True).indices[: self.selected or n - self.f]].mean(dim=0)


@dataclass(frozen=True)
class TrimmedMean:
    """The mean (d,) of each coordinate of the updates (n, d) without its f lowest and f highest values.

    Source: Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", definition 2.
    """

    f: int

    def __call__(self, updates: Tensor) -> Tensor:
        """The combined update (d,). Raises ValueError unless 2f < n."""
        if not 2 * self.f < len(updates):
            raise ValueError(f"2f must be smaller than the number of updates, {len(updates)}, got f = {self.f}")
        f, n = self.f, len(updates)
        return by_parts(updates, lambda ordered: ordered[f : n - f].mean(dim=0))


@dataclass(frozen=True)
class Median:
    """The median (d,) of each coordinate of the updates (n, d), half-way between the middle two of an even number.

    Source: Yin et al. 2018, definition 1.
    """

    def __call__(self, updates: Tensor) -> Tensor:
        """The combined update (d,)."""
        n = len(updates)
        return by_parts(updates, lambda ordered: torch.lerp(ordered[(n - 1) // 2], ordered[n // 2], 0.5))


def by_parts(updates: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """`reduce` (n, p) -> (p,) of the updates (n, d), each coordinate in ascending order: d numbers. On a processor coordinates come in
    parts, which stay in its cache; and NumPy sorts columns ten times as fast as PyTorch."""
    if updates.device.type != "cpu":
        return reduce(updates.sort(dim=0).values)
    parts = updates.detach().split(COORDINATES, dim=1)
    return torch.cat([reduce(torch.from_numpy(np.sort(part.numpy(), axis=0))) for part in parts])
