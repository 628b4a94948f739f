"""How the coalition hides: the recovered offset and masks; and the budget, which the caller of an attack enforces."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.knowledge import Knowledge
from fl_sim.training.clipping import clip


def send(knowledge: Knowledge, target: Tensor) -> Tensor:
    """Malicious updates (m, d) with which the combined update is the target (d,), or as near to it as they can bring it.

    With the recovered offset `sum_malicious w_i A_i = W * target - sum_honest w_i g_i`, divided equally among them, plus masks. Without it
    each sends the target itself. If a clip per client at bound b is known, or the budget is `client`, each update is projected onto the
    ball of radius b (for l2 along its direction, for linf coordinate by coordinate): together they then move the mean by at most b times
    their share of the weight, about `m * b / n`.
    Source: Pang et al. 2021, Eq. 14, Algorithm 2 and App. C, in weighted-mean form.
    """
    if not knowledge.settings.recovered_offset:
        updates = target.expand(len(knowledge.members), -1).clone()
    else:
        together = knowledge.total_weight * target - knowledge.honest_sum
        updates = together / knowledge.weights.sum() + masks(knowledge)
    for limit in knowledge.limits:
        updates = updates.clamp(-limit.bound, limit.bound) if limit.norm == "linf" else clip(updates, limit)[0]
    return updates


def masks(knowledge: Knowledge) -> Tensor:
    """Random vectors M_i (m, d) of about length `attack.masks * |honest mean|` with `sum_i w_i M_i = 0`, so that no two malicious updates
    are equal (Pang et al. 2021, Algorithm 2, line 1). Zeros for m = 1; also if each update is limited (`Knowledge.limits`), because a mask
    would then use up a part of the bound.
    """
    m, d = knowledge.updates.shape
    length = knowledge.settings.masks * float(torch.linalg.vector_norm(knowledge.honest_mean))
    if m == 1 or length == 0.0 or knowledge.limits:
        return torch.zeros_like(knowledge.updates)
    noise = knowledge.mask_noise * (length / d**0.5)
    return noise - (knowledge.weights @ noise) / knowledge.weights.sum()


def within_budget(knowledge: Knowledge, updates: Tensor) -> tuple[Tensor, float]:
    """Malicious updates (m, d) within the budget eta = `attack.norm-bound`, and the norm of the shift before the reduction. Called on the
    result of every attack.

    The shift is `sum_i w_i (A_i - g_i) / W` over the members, with g_i the honest update of member i. `attack.budget`:
    combined: all `A_i - g_i` are scaled by one factor, so that the shift of the combined update has at most length eta. A coalition that is
    not omniscient estimates W: the estimate is exact if all clients have the same weight.
    client: each `A_i` is scaled to at most length eta, also if the honest update is longer.
    Source: client, Pang et al. 2021, Algorithm 2; combined, ours.
    """
    moves = updates - knowledge.updates
    # in float64, because the square of a long update is beyond float32
    shift = float(torch.linalg.vector_norm(knowledge.weights @ moves, dtype=torch.float64)) / knowledge.total_weight
    if knowledge.settings.budget == "client":
        lengths = torch.linalg.vector_norm(updates, dim=1, keepdim=True, dtype=torch.float64)
        return updates * torch.clamp(knowledge.settings.norm_bound / lengths, max=1.0).to(updates), shift
    if shift <= knowledge.settings.norm_bound:  # false for NaN: the result is then NaN, which the caller refuses
        return updates, shift
    return knowledge.updates + moves * (knowledge.settings.norm_bound / shift), shift
