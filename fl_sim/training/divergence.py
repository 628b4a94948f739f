"""Divergences between two models' predictions for the same inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`KL(p || q) = sum_y p_y (log p_y - log q_y)`.

    Args: log_p (..., e, c) and log_q (e, c), log-probabilities in float32 or wider. Returns: (..., e).
    """
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def js(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Jensen-Shannon: `KL(p || h) / 2 + KL(q || h) / 2` with h = (p + q) / 2, from 0 to log 2. Arguments and result as in `kl`."""
    log_h = torch.logaddexp(log_p, log_q) - math.log(2.0)
    return 0.5 * (kl(log_p, log_h) + kl(log_q, log_h))
