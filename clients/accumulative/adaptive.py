"""What an attacker that knows the defence adds: a constraint on the server's discrepancy, and updates in line with its momentum.

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
    """Mean Memorization Discrepancy of the model theta (d,) on the coalition's validation set against what earlier models said,
    `mean_r mean_x KL(p(. | x, theta_r) || p(. | x, theta))`, history (r, e, c) in log-probabilities. A scalar with a gradient.

    Source: Zhu et al. 2023, Definition 3.3 and Eq. 21; the server's probe set is not known to the coalition.
    """
    return kl(history, log_probs(knowledge, theta)).mean()


def log_probs(knowledge: Knowledge, theta: Tensor) -> Tensor:
    """Log-probabilities (e, c) of the model theta (d,) on the coalition's whole validation set."""
    return F.log_softmax(knowledge.model.logits(theta, knowledge.validation.inputs), dim=1)


def history_of(knowledge: Knowledge, state: AttackState) -> Tensor | None:
    """The references (2, e, c) of the discrepancy: the first model that the coalition saw and the one
    `attack.discrepancy-lag` rounds back, counting rounds in which a member was sampled (the oldest it saw before that). None with
    `attack.discrepancy-weight = 0`.
    """
    if knowledge.settings.discrepancy_weight == 0.0:
        return None
    earlier = state.arrays.get("log_probs")
    return earlier[[0, 1]] if earlier is not None else log_probs(knowledge, knowledge.theta).detach().expand(2, -1, -1)


def remember(knowledge: Knowledge, history: Tensor | None, state: AttackState) -> dict[str, Tensor]:
    """What the next round needs: outputs (1 + lag, e, c) of the first model and of the last `lag` models, no old models."""
    if history is None:
        return {}
    now = log_probs(knowledge, knowledge.theta).detach().unsqueeze(0)
    earlier = state.arrays.get("log_probs", now)
    recent = torch.cat([earlier[1:], now])[-knowledge.settings.discrepancy_lag :]
    return {"log_probs": torch.cat([earlier[:1], recent])}


def aligned(updates: Tensor, momentum: Tensor, cosine: float) -> Tensor:
    """The updates (m, d) nearest in angle to the given ones that have `cos(A_i, momentum) >= cosine`, as long as they were.

    With v the unit momentum (d,) and u the unit part of an update orthogonal to it, an update whose cosine is too small
    becomes `|A_i| * (cosine * v + sqrt(1 - cosine^2) * u)`. An update opposed to v, with no such part, turns to v itself. Without
    momentum the updates stay as they are.

    Args: cosine in [0, 1].
    """
    if not bool(momentum.any()):
        return updates
    v = F.normalize(momentum, dim=0)
    lengths = torch.linalg.vector_norm(updates, dim=1, keepdim=True)
    along = (updates @ v).unsqueeze(1)
    across = updates - along * v
    u = F.normalize(across - (across @ v).unsqueeze(1) * v, dim=1)  # twice: what is left of an opposed update is rounding along v
    turned = lengths * F.normalize(cosine * v + (1.0 - cosine**2) ** 0.5 * u, dim=1)
    return torch.where(along >= cosine * lengths, updates, turned)
