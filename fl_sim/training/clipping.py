"""Norms and clipping of updates: used by the server's rules in any slot, and by workers."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Norm = Literal["l2", "linf"]


class Clip(NamedTuple):
    """A clip: rescale an update whose `norm` exceeds `bound` (0 < bound <= inf)."""

    norm: Norm
    bound: float


def clip_of(norm: Norm, bound: float) -> Clip | None:
    """The clip of a norm and a bound; None for an infinite bound."""
    return None if math.isinf(bound) else Clip(norm, bound)


def norms(updates: Tensor, norm: Norm = "l2") -> Tensor:
    """The norm of each update: `sqrt(sum_j g_j^2)` for l2, `max_j |g_j|` for linf.

    Args: updates (..., d). Returns: (...), in the dtype of the updates.
    """
    return torch.linalg.vector_norm(updates, ord=2 if norm == "l2" else float("inf"), dim=-1)


def clip(updates: Tensor, rule: Clip) -> tuple[Tensor, Tensor]:
    """Updates rescaled to at most the bound: `clip(g, b) = g * min(1, b / norm(g))`.

    The whole vector is rescaled for linf too. Rows inside the ball, zero rows included, are returned unchanged bit for bit. The input is
    not modified.

    Args: updates (..., d). Returns: the clipped updates (..., d) and the norms before clipping (...).
    Source: Pang et al. 2021, App. C; both papers' released code for linf.
    """
    before = norms(updates, rule.norm)
    factor = torch.clamp(rule.bound / before, max=1.0)  # b / 0 = inf clamps to 1: zero needs no epsilon
    return updates * factor.unsqueeze(-1), before
