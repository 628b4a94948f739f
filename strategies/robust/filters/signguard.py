"""SignGuard: leaves out updates of unusual length or with an unusual share of positive and negative numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strategies.robust.ranges import number
from strategies.robust.vectors import clipped, lengths, mean_of, median
from strategies.rule import CannotCombineError


def signguard(
    updates: Tensor,
    weights: Tensor,
    generator: torch.Generator,
    report: dict[str, Any],
    lower: float = 0.1,
    upper: float = 3.0,
    share: float = 0.1,
) -> Tensor:
    """The mean of the updates that pass two filters, each clipped at the median length M.

    `S1 = {i: lower * M < |g_i| < upper * M}`, `S2` = the largest cluster (mean shift) of the features `sign_features(g_i)`,
    `combined = mean of clip(g_i, M) over S1 and S2`. Equal weights.

    Args: updates (n, d); lower, upper, limits of the length in multiples of M, 0 <= lower <= 1 < upper; share, of the coordinates whose
    signs count, drawn anew in each round, above 0 and at most 1. Raises OptionError, and CannotCombineError if nobody passes both filters.
    Source: Xu et al. 2022, "Byzantine-robust Federated Learning through Collaborative Malicious Gradient Filtering", Algorithm 2 (plain
    SignGuard), and the authors' code, which gives the three numbers and the mean shift's bandwidth. We draw single coordinates, as the
    paper says; the code draws a block of consecutive ones.
    """
    number("lower", lower, least=0.0, most=1.0)
    number("upper", upper, above=1.0)
    number("share", share, above=0.0, most=1.0)
    norms = lengths(updates)
    middle = median(norms)
    of_usual_length = (norms > lower * middle) & (norms < upper * middle)
    count = max(1, int(share * updates.shape[1]))
    drawn = torch.randperm(updates.shape[1], generator=generator)[:count]
    kept = of_usual_length & largest_cluster(sign_features(updates[:, drawn]))
    report["left_out"] = ~kept
    if not bool(kept.any()):
        raise CannotCombineError(f"signguard leaves out all {len(updates)} updates")
    return mean_of(clipped(updates, middle), kept)


def sign_features(coordinates: Tensor) -> Tensor:
    """The shares of positive, zero and negative numbers (n, 3) of each row of coordinates (n, k), each over its largest among the rows."""
    signs = torch.sign(coordinates)
    shares = torch.stack([(signs == sign).double().mean(dim=1) for sign in (1.0, 0.0, -1.0)], dim=1)
    return shares / shares.amax(dim=0).clamp(min=1e-8)


def largest_cluster(features: Tensor) -> Tensor:
    """The members, bool (n,), of the largest cluster that mean shift finds among features (n, k); of equally large ones the first. Its
    bandwidth is half a typical distance (the mean, over the points, of the distance to the farthest of its nearest half)."""
    from sklearn.cluster import MeanShift, estimate_bandwidth  # loads pandas, where that is installed: only where it is used

    points = features.numpy(force=True)
    bandwidth = max(float(estimate_bandwidth(points, quantile=0.5)), 1e-6)
    labels = torch.from_numpy(MeanShift(bandwidth=bandwidth, bin_seeding=True, cluster_all=False).fit(points).labels_)
    counts = torch.bincount(labels[labels >= 0])
    return labels == int(counts.argmax())
