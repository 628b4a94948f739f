"""FLAME: keeps the majority cluster of the clients' models, clips at the median distance, and adds just enough noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strategies.robust.ranges import number
from strategies.robust.vectors import clipped, cosines, lengths, mean_of, median


def flame(
    updates: Tensor,
    weights: Tensor,
    theta: Tensor,
    client_lr: float,
    generator: torch.Generator,
    report: dict[str, Any],
    noise: float = 0.001,
) -> Tensor:
    """The mean of the clipped updates of the majority cluster, with Gaussian noise.

    `W_i = theta - client_lr * g_i`; L = the cluster of more than n / 2 models that HDBSCAN finds by `1 - cos(W_i, W_j)`;
    `S = median |g_i|` over all clients; `combined = mean over L of clip(g_i, S) + N(0, (noise * S)^2)`. Equal weights.

    Args: updates (n, d); theta (d,); noise, lambda >= 0. Raises OptionError.
    Source: Nguyen et al. 2022, "FLAME: Taming Backdoors in Federated Learning", Algorithm 1; lambda as in its experiments on images. There
    the server adds the noise to its new model; here server SGD applies it with the update, so momentum carries it on.
    """
    number("noise", noise, least=0.0)
    kept = majority_cluster(1.0 - cosines(theta.double() - client_lr * updates.double()))
    norms = lengths(updates)
    bound = median(norms)
    report |= {"left_out": ~kept, "clipped": int((norms > bound).sum()), "median_norm": bound}
    spread = noise * bound * torch.randn(updates.shape[1], generator=generator)
    return mean_of(clipped(updates, bound), kept) + spread


def majority_cluster(distances: Tensor) -> Tensor:
    """The members, bool (n,), of the densest cluster of more than n / 2 points, by their distances (n, n); everybody if n < 3 or if all
    points are at one place."""
    from sklearn.cluster import HDBSCAN  # loads pandas, where that is installed: only where it is used

    n = len(distances)
    if n < 3:
        return torch.ones(n, dtype=torch.bool)
    distances = distances.clamp(min=0.0).fill_diagonal_(0.0)
    # `min_samples` counts the point itself here, and not in the authors' library, where it is 1.
    size = n // 2 + 1
    clustering = HDBSCAN(size, min_samples=2, metric="precomputed", allow_single_cluster=True, copy=True)  # pyright: ignore[reportArgumentType]
    members = torch.from_numpy(clustering.fit(distances.numpy(force=True)).labels_) >= 0
    return members if bool(members.any()) else torch.ones(n, dtype=torch.bool)
