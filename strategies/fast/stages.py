"""Stages of ByzFL's rules that take it seconds a round on a model of 200,000 parameters, with the same result in a tenth of the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strategies.fast.distances import nearest_neighbours


def faster(name: str, stage: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What computes the same as a stage of ByzFL: the stage itself, or one of this file with its f."""
    f: Any = getattr(stage, "f", 0)
    return {"NNM": NearestNeighbourMixing(f), "TrMean": TrimmedMean(f), "Median": Median()}.get(name, stage)


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
class TrimmedMean:
    """The mean (d,) of each coordinate of the updates (n, d) without its f lowest and f highest values.

    Source: Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", definition 2.
    """

    f: int

    def __call__(self, updates: Tensor) -> Tensor:
        """The combined update (d,). Raises ValueError unless 2f < n."""
        if not 2 * self.f < len(updates):
            raise ValueError(f"2f must be smaller than the number of updates, {len(updates)}, got f = {self.f}")
        return sorted_columns(updates)[self.f : len(updates) - self.f].mean(dim=0)


@dataclass(frozen=True)
class Median:
    """The median (d,) of each coordinate of the updates (n, d), half-way between the middle two of an even number.

    Source: Yin et al. 2018, definition 1.
    """

    def __call__(self, updates: Tensor) -> Tensor:
        """The combined update (d,)."""
        ordered, n = sorted_columns(updates), len(updates)
        return torch.lerp(ordered[(n - 1) // 2], ordered[n // 2], 0.5)


def sorted_columns(updates: Tensor) -> Tensor:
    """The updates (n, d), each coordinate in ascending order. NumPy sorts columns ten times as fast as PyTorch on a processor."""
    if updates.device.type != "cpu":
        return updates.sort(dim=0).values
    return torch.from_numpy(np.sort(updates.detach().numpy(), axis=0))
