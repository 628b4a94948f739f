"""Clipped clustering: clips at the median of all lengths so far, and keeps the larger of two clusters by angle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strategies.robust.ranges import one_of
from strategies.robust.vectors import clipped, cosines, lengths, mean_of, median


def clipped_clustering(
    updates: Tensor, weights: Tensor, state: dict[str, Tensor], report: dict[str, Any], linkage: str = "average"
) -> Tensor:
    """The mean of the clipped updates in the larger of two clusters.

    `B = median of |g_i|` over all clients and all rounds so far; agglomerative clustering of `1 - cos(g_i, g_j)` into two clusters;
    `combined = mean of clip(g_i, B)` over the larger one (of two equally large ones the first update's). Equal weights.

    Args: updates (n, d); state, the lengths so far; linkage, `average`, `single` or `complete`. Raises OptionError.
    Source: Li, Ngai and Voigt 2023, "An Experimental Study of Byzantine-Robust Aggregation Schemes in Federated Learning", Algorithm 1. A
    zero update has the distance 1 to every other.
    """
    from sklearn.cluster import AgglomerativeClustering  # loads pandas, where that is installed: only where it is used

    one_of("linkage", linkage, ("average", "single", "complete"))
    norms = lengths(updates)
    state["norms"] = torch.cat([state.get("norms", norms[:0]), norms])
    bound = median(state["norms"])
    kept = torch.ones(len(updates), dtype=torch.bool)
    if len(updates) > 1:
        distances = (1.0 - cosines(updates)).clamp(min=0.0).fill_diagonal_(0.0)
        clustering = AgglomerativeClustering(n_clusters=2, metric="precomputed", linkage=linkage)  # pyright: ignore[reportArgumentType]
        labels = torch.from_numpy(clustering.fit(distances.numpy(force=True)).labels_)
        with_first = labels == labels[0]
        kept = with_first if 2 * int(with_first.sum()) >= len(updates) else ~with_first
    report |= {"left_out": ~kept, "clipped": int((norms > bound).sum()), "median_norm": median(norms)}
    return mean_of(clipped(updates, bound), kept)
