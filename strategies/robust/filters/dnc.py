"""DnC (divide and conquer): leaves out the updates that stand out along the direction in which all updates differ most."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strategies.robust.ranges import whole
from strategies.robust.vectors import mean_of
from strategies.rule import CannotCombineError


def dnc(
    updates: Tensor,
    weights: Tensor,
    generator: torch.Generator,
    report: dict[str, Any],
    assumed_malicious: int,
    iterations: int = 1,
    coordinates: int = 10_000,
) -> Tensor:
    """The mean of the updates that stay in every iteration.

    Each iteration draws `coordinates` of the d coordinates. With `v` the top right singular vector of the centred rows `h_i - mean(h)`, the
    `n - f` updates with the smallest scores `((h_i - mean(h)) . v)^2` stay. Equal weights.

    Args: updates (n, d); assumed_malicious, f < n; iterations >= 1; coordinates >= 1. Raises OptionError, and CannotCombineError if nobody
    stays.
    Source: Shejwalkar and Houmansadr 2021, "Manipulating the Byzantine", section VI, Algorithm 2, with its filtering share c = 1 (a larger
    f leaves out more).
    """
    n, d = updates.shape
    whole("assumed_malicious", assumed_malicious, most=n - 1)
    whole("iterations", iterations, least=1)
    whole("coordinates", coordinates, least=1)
    kept = torch.ones(n, dtype=torch.bool)
    for _ in range(iterations):
        drawn = torch.randperm(d, generator=generator)[:coordinates]
        scores = outlier_scores(updates[:, drawn])
        inliers = torch.zeros(n, dtype=torch.bool)
        inliers[scores.sort(stable=True).indices[: n - assumed_malicious]] = True
        kept &= inliers
    report["left_out"] = ~kept
    if not bool(kept.any()):
        raise CannotCombineError(f"dnc leaves out all {n} updates")
    return mean_of(updates, kept)


def outlier_scores(rows: Tensor) -> Tensor:
    """The squared part (n,), float64, of each centred row along their top right singular vector: `s^2 u_i^2`, with u the top eigenvector
    of the centred Gram matrix (n, n) and s^2 its eigenvalue."""
    centred = rows.double() - rows.double().mean(dim=0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    return values[-1] * vectors[:, -1].square()
