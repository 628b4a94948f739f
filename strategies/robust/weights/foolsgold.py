"""FoolsGold: clients whose updates were too similar for too long count less: they may be one and the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fl_sim.model.flat_model import FlatModel
from strategies.robust.layers import output_layer
from strategies.robust.ranges import one_of
from strategies.robust.vectors import cosines

ROUNDING = 1e-12  # equal histories have a cosine of 1 less rounding: dividing by the largest difference would make it count


def foolsgold(
    updates: Tensor,
    weights: Tensor,
    clients: Tensor,
    model: FlatModel,
    state: dict[str, Tensor],
    report: dict[str, Any],
    features: str = "output",
) -> Tensor:
    """The mean of the updates, weighted by how different each client's history is from the others'.

    `H_i` = the sum of client i's updates so far, with this one; `A = diversity(cos(H_i, H_j))`;
    `combined = sum_i A_i g_i / sum_i A_i`, 0 if all A_i are 0. No other weights.

    Args: updates (n, d); clients (n,); state, the histories by client id; features, of which the cosines are taken: `output`, the last
    layer, or `all`. Raises OptionError.
    Source: Fung et al. 2020, "The Limitations of Federated Learning in Sybil Settings", Algorithm 1 with kappa = 1, and the authors' code.
    The paper adds up `A_i g_i`; we divide by the sum of A_i, so that a step is as long as under other rules. Only histories of clients of
    this round are compared.
    """
    one_of("features", features, ("output", "all"))
    seen = updates[:, output_layer(model)] if features == "output" else updates
    history = state.get("history", seen.new_zeros(0, seen.shape[1]))  # by client id
    missing = max(int(clients.max()) + 1 - len(history), 0)
    history = torch.cat([history, seen.new_zeros(missing, seen.shape[1])])
    history[clients] += seen
    state["history"] = history
    shares = diversity(cosines(history[clients]))
    report |= {"left_out": shares == 0.0, "mean_share": float(shares.mean())}
    if not bool(shares.any()):
        return torch.zeros_like(updates[0])
    return ((shares / shares.sum()) @ updates.double()).to(updates)


def diversity(similarities: Tensor) -> Tensor:
    """How much each client counts (n,), from 0 to 1, by the cosines (n, n), float64, of the clients' histories.

    `v_i` = the largest cosine to another; pardoning: `c_ij * v_i / v_j` where `v_j > v_i`; `a_i = 1 - max_j c_ij`, over the largest of them
    and at most 0.99; `A_i = ln(a_i / (1 - a_i)) + 0.5`, from 0 to 1.
    """
    similarities = similarities - torch.diag(similarities.diagonal())
    largest = similarities.amax(dim=1)
    pardoned = torch.where(largest > largest.unsqueeze(1), similarities * (largest.unsqueeze(1) / largest), similarities)
    unlike = (1.0 - pardoned.amax(dim=1)).clamp(0.0, 1.0)
    unlike[unlike < ROUNDING] = 0.0
    if not bool(unlike.any()):
        return unlike
    return (torch.logit((unlike / unlike.max()).clamp(max=0.99)) + 0.5).clamp(0.0, 1.0)
