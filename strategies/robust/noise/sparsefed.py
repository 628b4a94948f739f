"""SparseFed: clips each update, and lets only the largest coordinates of the mean through; the others wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strategies.robust.ranges import number
from strategies.robust.vectors import clipped, lengths


def sparsefed(
    updates: Tensor,
    weights: Tensor,
    state: dict[str, Tensor],
    report: dict[str, Any],
    bound: float = 1.0,
    share: float = 0.1,
    momentum: float = 0.0,
) -> Tensor:
    """The largest coordinates of what has waited and the mean of the clipped updates.

    `v = momentum * v + sum_i w_i clip(g_i, bound) / sum_i w_i`, `e = e + v`, `combined = top_k(e)`, `e = e - combined`.

    Args: updates (n, d); weights (n,); state: e and v (d,); bound > 0, an l2 norm; share, of the d coordinates that pass, above 0 and at
    most 1; momentum, of the paper's optimiser, before the choice of the coordinates, from 0 to below 1. Raises OptionError.
    Source: Panda et al. 2022, "SparseFed: Mitigating Model Poisoning Attacks in Federated Learning with Sparsification", Algorithm 1.
    Server SGD's momentum comes after this one, as with every rule: `server.momentum = 0` with `momentum` = 0.9 is the paper's order. The
    defaults are ours: the paper chooses them per task.
    """
    number("bound", bound, above=0.0)
    number("share", share, above=0.0, most=1.0)
    number("momentum", momentum, least=0.0, most=0.999)
    report["clipped"] = int((lengths(updates) > bound).sum())
    mean = (weights @ clipped(updates, bound)) / weights.sum()
    state["velocity"] = momentum * state.get("velocity", torch.zeros_like(mean)) + mean
    waiting = state.get("waiting", torch.zeros_like(mean)) + state["velocity"]
    largest = waiting.abs().sort(descending=True, stable=True).indices[: max(1, int(share * len(mean)))]
    combined = torch.zeros_like(mean)
    combined[largest] = waiting[largest]
    state["waiting"] = waiting - combined
    report["waiting_norm"] = float(torch.linalg.vector_norm(state["waiting"]))
    return combined
