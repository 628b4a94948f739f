"""AlignIns: leaves out updates whose direction, or whose signs in their largest coordinates, are unusual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strategies.robust.outliers import median_scores
from strategies.robust.ranges import number
from strategies.robust.vectors import clipped, lengths, mean_of, median
from strategies.rule import CannotCombineError


def alignins(
    updates: Tensor,
    weights: Tensor,
    theta: Tensor,
    report: dict[str, Any],
    share: float = 0.3,
    sign_limit: float = 1.0,
    angle_limit: float = 1.0,
) -> Tensor:
    """The mean of the updates that pass two filters, each clipped at the median length M of those that pass.

    `t_i = cos(g_i, theta)`, `p_i` = the share of the largest coordinates of g_i that have the sign which most clients have there;
    kept = `{i: z(p_i) < sign_limit and z(t_i) < angle_limit}`, `z(v) = |v - median| / std`; `combined = mean over kept of clip(g_i, M)`.
    Equal weights.

    Args: updates (n, d); theta (d,); share, of the coordinates that count as an update's largest, above 0 and at most 1; the limits > 0.
    Raises OptionError, and CannotCombineError if nobody passes.
    Source: Xu et al. 2025, "Detecting Backdoor Attacks in Federated Learning via Direction Alignment Inspection", Algorithm 1, and the
    authors' code, which gives the numbers. Their update is -client_lr * g_i; z is the same. They leave the model as it is if nobody passes.
    """
    number("share", share, above=0.0, most=1.0)
    number("sign_limit", sign_limit, above=0.0)
    number("angle_limit", angle_limit, above=0.0)
    angles = torch.cosine_similarity(updates.double(), theta.double().unsqueeze(0), dim=1)
    signs = median_scores(sign_alignment(updates, max(1, int(share * updates.shape[1]))))
    kept = (signs < sign_limit) & (median_scores(angles) < angle_limit)
    report["left_out"] = ~kept
    if not bool(kept.any()):
        raise CannotCombineError(f"alignins leaves out all {len(updates)} updates")
    return mean_of(clipped(updates, median(lengths(updates[kept]))), kept)


def sign_alignment(updates: Tensor, count: int) -> Tensor:
    """The share (n,), float64, of the `count` largest coordinates of each update whose sign is that of the sum of all signs."""
    signs = torch.sign(updates)
    principal = torch.sign(signs.sum(dim=0))
    largest = updates.abs().topk(count, dim=1).indices
    return (signs.gather(1, largest) == principal[largest]).double().mean(dim=1)
