"""Divergences between what two models say about the same inputs."""

from __future__ import annotations

from torch import Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`KL(p || q) = sum_y p_y (log p_y - log q_y)`.

    Args: log_p (..., e, c) and log_q (e, c), log-probabilities in float32 or wider. Returns: (..., e).
    """
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)
