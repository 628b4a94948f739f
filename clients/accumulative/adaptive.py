"""Additions of an attacker that knows the defence: a constraint on the server's discrepancy, and updates aligned with its momentum.

Source: Zhu et al. 2023, App. C.12 and Eq. 21 (the constraint); the alignment is ours, after Tramer et al. 2020, "On Adaptive
Attacks to Adversarial Example Defenses".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.knowledge import Knowledge
from fl_sim.training.divergence import kl
from fl_sim.wire.messages import AttackState


def discrepancy(knowledge: Knowledge, theta: Tensor, history: Tensor) -> Tensor:
    """Mean Memorization Discrepancy of the model theta (d,) against earlier models, on the coalition's validation set:
    `mean_r mean_x KL(p(. | x, theta_r) || p(. | x, theta))`, history (r, e, c) in log-probabilities. A scalar with a gradient.

    Source: Zhu et al. 2023, Definition 3.3 and Eq. 21. Where we differ: the coalition does not know the server's probe set.
    """
    return kl(history, log_probs(knowledge, theta)).mean()


def log_probs(knowledge: Knowledge, theta: Tensor) -> Tensor:
    """Log-probabilities (e, c) of the model theta (d,) on the coalition's whole validation set."""
    return F.log_softmax(knowledge.model.logits(theta, knowledge.validation.inputs), dim=1)


def history_of(knowledge: Knowledge, state: AttackState) -> Tensor | None:
    """The references (2, e, c) of the discrepancy: the first model that the coalition got, and the one `attack.discrepancy-lag` rounds
    earlier, counting the rounds in which a member was sampled (the first model if there are fewer). None with
    `attack.discrepancy-weight = 0`.
    """
    if knowledge.settings.discrepancy_weight == 0.0:
        return None
    earlier = state.arrays.get("log_probs")
    return earlier[[0, 1]] if earlier is not None else log_probs(knowledge, knowledge.theta).detach().expand(2, -1, -1)


def remember(knowledge: Knowledge, history: Tensor | None, state: AttackState) -> dict[str, Tensor]:
    """State for the next round: log-probabilities (1 + lag, e, c) of the first model and of the last `lag` models."""
    if history is None:
        return {}
    now = log_probs(knowledge, knowledge.theta).detach().unsqueeze(0)
    earlier = state.arrays.get("log_probs", now)
    recent = torch.cat([earlier[1:], now])[-knowledge.settings.discrepancy_lag :]
    return {"log_probs": torch.cat([earlier[:1], recent])}


def aligned(updates: Tensor, momentum: Tensor, cosine: float) -> Tensor:
    """The updates (m, d) with `cos(A_i, momentum) >= cosine` that are nearest in angle to the original ones and have the same lengths.

    Let v be the unit momentum (d,) and u the unit vector of an update's component orthogonal to v. An update whose cosine is too small
    becomes `|A_i| * (cosine * v + sqrt(1 - cosine^2) * u)`. An update opposite to v has no such component and becomes `|A_i| * v`. With
    momentum 0 the updates do not change.

    Args: cosine in [0, 1].
    """
    if not bool(momentum.any()):
        return updates
    v = F.normalize(momentum, dim=0)
    lengths = torch.linalg.vector_norm(updates, dim=1, keepdim=True)
    along = (updates @ v).unsqueeze(1)
    across = updates - along * v
    u = F.normalize(across - (across @ v).unsqueeze(1) * v, dim=1)  # projected twice: for an opposite update only rounding along v remains
    rotated = lengths * F.normalize(cosine * v + (1.0 - cosine**2) ** 0.5 * u, dim=1)
    return torch.where(along >= cosine * lengths, updates, rotated)
