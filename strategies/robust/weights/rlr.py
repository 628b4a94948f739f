"""RLR (robust learning rate): goes backwards in every coordinate in which too few clients agree on the direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strategies.robust.ranges import whole


def rlr(updates: Tensor, weights: Tensor, report: dict[str, Any], assumed_malicious: int, threshold: int = 0) -> Tensor:
    """The weighted mean, with the sign of a coordinate turned if the clients' signs there disagree.

    `combined_j = mean_j` if `|sum_i sign(g_ij)| >= threshold`, else `-mean_j`; `mean = sum_i w_i g_i / sum_i w_i`.

    Args: updates (n, d); assumed_malicious, f; threshold, theta <= n, in clients (0: f + 1, ours: the least with which the malicious
    clients cannot set a direction alone). Raises OptionError.
    Source: Ozdayi, Kantarcioglu and Gel 2021, "Defending against Backdoors in Federated Learning with Robust Learning Rate", section 4, and
    the authors' code. They turn the server's learning rate, which is the same without momentum.
    """
    n = len(updates)
    whole("assumed_malicious", assumed_malicious, most=n - 1)
    whole("threshold", threshold, most=n)
    agreement = torch.sign(updates).sum(dim=0).abs()  # whole numbers: exact in float32
    agreed = agreement >= (threshold or assumed_malicious + 1)
    report["turned"] = float((~agreed).double().mean())
    mean = (weights @ updates) / weights.sum()
    return torch.where(agreed, mean, -mean)
