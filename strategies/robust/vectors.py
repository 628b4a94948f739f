"""Lengths, clips and angles of updates (n, d), in float64 where differences of nearly equal updates count."""

from __future__ import annotations

import torch
from torch import Tensor

from fl_sim.training.clipping import Clip, clip


def lengths(updates: Tensor) -> Tensor:
    """The l2 norm (n,) of each update, in float64."""
    return torch.linalg.vector_norm(updates, dim=1, dtype=torch.float64)


def median(values: Tensor) -> float:
    """The median of values (n,): of an even number of them the mean of the two in the middle."""
    return float(values.double().quantile(0.5))


def clipped(updates: Tensor, bound: float) -> Tensor:
    """Each update (n, d), shortened to at most `bound`."""
    return clip(updates, Clip("l2", bound))[0] if bound > 0.0 else torch.zeros_like(updates)


def cosines(updates: Tensor) -> Tensor:
    """The cosine (n, n), float64, of each pair of updates; 0 with a zero update."""
    rows = updates.double()
    unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return unit @ unit.T


def mean_of(updates: Tensor, kept: Tensor) -> Tensor:
    """The mean (d,) of the updates that a mask (n,) keeps."""
    return updates[kept].mean(dim=0)
