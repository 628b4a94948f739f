"""How the coalition hides: the recovered offset, masks, and the budget that its caller enforces."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.knowledge import Knowledge
from fl_sim.rng.streams import torch_stream
from fl_sim.training.clipping import clip


def send(knowledge: Knowledge, target: Tensor) -> Tensor:
    """Malicious updates (m, d) that make the combined update the target (d,), or come as near to it as they can.

    With the recovered offset they carry together `sum_malicious w_i A_i = W * target - sum_honest w_i g_i`, split equally,
    plus masks. Without it, each sends the target itself. Where a clip of each update at bound b is known, each is sent at norm
    b at most, the nearest point of the ball: together they move the mean by `b * (their share of the weight)`, about `m * b / n`. For l2
    it is along the same direction, for linf coordinate by coordinate.
    Source: Pang et al. 2021, Eq. 14, Algorithm 2 and App. C, in weighted-mean form.
    """
    if not knowledge.settings.recovered_offset:
        updates = target.expand(len(knowledge.members), -1).clone()
    else:
        together = knowledge.total_weight * target - knowledge.honest_sum
        updates = together / knowledge.weights.sum() + masks(knowledge)
    if knowledge.bound and knowledge.bound.norm == "linf":
        return updates.clamp(-knowledge.bound.bound, knowledge.bound.bound)
    return clip(updates, knowledge.bound)[0] if knowledge.bound else updates


def masks(knowledge: Knowledge) -> Tensor:
    """Random vectors M_i (m, d) of about length `attack.masks * |honest mean|` with `sum_i w_i M_i = 0`, so that no two
    malicious updates are alike (Pang et al. 2021, Algorithm 2, line 1). Zeros for m = 1, and before a clip of each update that the
    coalition knows of: there a mask would cost budget.
    """
    m, d = knowledge.updates.shape
    length = knowledge.settings.masks * float(torch.linalg.vector_norm(knowledge.honest_mean))
    if m == 1 or length == 0.0 or knowledge.bound:
        return torch.zeros_like(knowledge.updates)
    generator = torch_stream(knowledge.own_seed, "masks")
    noise = torch.randn(m, d, generator=generator).to(knowledge.updates) * (length / d**0.5)
    return noise - (knowledge.weights @ noise) / knowledge.weights.sum()


def within_budget(knowledge: Knowledge, updates: Tensor) -> tuple[Tensor, float]:
    """Malicious updates (m, d) scaled back so that they move the combined update by at most `attack.norm-bound`.

    The shift is `sum_i w_i (A_i - g_i) / W` over the members, with g_i what member i would honestly send. Called on every
    attack's result, whatever the attack did. W is the coalition's own estimate where it is not omniscient: exact with clients of
    equal weight. Returns the updates and the norm of the shift before.
    """
    moves = updates - knowledge.updates
    shift = float(torch.linalg.vector_norm(knowledge.weights @ moves)) / knowledge.total_weight
    if shift <= knowledge.settings.norm_bound:  # NaN goes on to the division, stays NaN, and the caller refuses it
        return updates, shift
    return knowledge.updates + moves * (knowledge.settings.norm_bound / shift), shift
