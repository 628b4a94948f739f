"""Zeno++: keeps updates that should lower the loss on the server's own data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strategies.robust.ranges import number
from strategies.robust.vectors import lengths
from strategies.rule import CannotCombineError


def zeno(
    updates: Tensor,
    weights: Tensor,
    server_update: Tensor,
    server_lr: float,
    report: dict[str, Any],
    rho: float = 0.002,
    epsilon: float = 0.1,
) -> Tensor:
    """The mean of the updates whose estimated descent is large enough, each as long as the server's own.

    `h_i = g_i |v| / |g_i|`, `score_i = server_lr <v, h_i> - rho |h_i|^2`; `combined = mean of h_i over {i: score_i >= -server_lr epsilon}`.
    Equal weights.

    Args: updates (n, d); server_update, v (d,): the server's own update on its probe set, the gradient for one local step; rho, epsilon
    >= 0. Raises OptionError, and CannotCombineError if no update passes.
    Source: Xie et al. 2020, "Zeno++: Robust Fully Asynchronous SGD", section 4, Algorithm 1 and Definition 3. There updates come one by one
    and v is some steps old; here all of a round are scored against this round's v, and averaged.
    """
    number("rho", rho, least=0.0)
    number("epsilon", epsilon, least=0.0)
    own = server_update.double()
    length = torch.linalg.vector_norm(own)
    norms = lengths(updates)
    rows = updates.double() * torch.where(norms > 0.0, length / norms, 0.0).unsqueeze(1)
    scores = server_lr * (rows @ own) - rho * rows.square().sum(dim=1)
    kept = scores >= -server_lr * epsilon
    report |= {"left_out": ~kept, "mean_score": float(scores.mean())}
    if not bool(kept.any()):
        raise CannotCombineError(f"zeno accepts none of the {len(updates)} updates")
    return rows[kept].mean(dim=0).to(updates)
