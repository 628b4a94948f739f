"""FLTrust: trusts a client as far as its update points where the server's own does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strategies.robust.vectors import cosines, lengths


def fltrust(updates: Tensor, weights: Tensor, server_update: Tensor, report: dict[str, Any]) -> Tensor:
    """The mean of the updates, each as long as the server's own, weighted by trust.

    `T_i = max(0, cos(g_i, g_0))`, `combined = sum_i T_i (|g_0| / |g_i|) g_i / sum_i T_i`; 0 if nobody is trusted. No other weights.

    Args: updates (n, d); server_update, g_0 (d,): the server's own update, trained as a client's on its probe set.
    Source: Cao et al. 2021, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", section IV. There g_0 is
    trained on batches of the server's data, here on all of them in each step.
    """
    n = len(updates)
    trust = cosines(torch.cat([updates, server_update.unsqueeze(0)]))[:n, n].clamp(min=0.0)
    report |= {"left_out": trust == 0.0, "mean_trust": float(trust.mean())}
    if not bool(trust.any()):
        return torch.zeros_like(server_update)
    own_length = torch.linalg.vector_norm(server_update, dtype=torch.float64)
    tiny = torch.finfo(torch.float64).tiny  # a zero update has no trust either
    scales = trust * own_length / lengths(updates).clamp(min=tiny) / trust.sum()
    return (scales @ updates.double()).to(updates)
