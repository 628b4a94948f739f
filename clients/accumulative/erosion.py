"""The loss of erosion: a surrogate of the attacked class's accuracy, and caps on what a server may measure of the model.

Ours (docs/mathematics.md, section 4.11).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from clients.accumulative.targeted import attacked, has_target
from clients.knowledge import Knowledge
from clients.success import target_class
from fl_sim.config.keys import Attack
from fl_sim.training.divergence import kl


def lead(knowledge: Knowledge, logits: Tensor, labels: Tensor) -> Tensor:
    """By how much the right class leads, `z_y - max_{j != y} z_j` (b,); with `attack.to-class` over that class, `z_y - z_to`."""
    own = labels.unsqueeze(1)
    right = logits.gather(1, own).squeeze(1)
    if has_target(knowledge.settings):
        return right - logits[:, target_class(knowledge.settings, knowledge.num_classes)]
    return right - logits.scatter(1, own, float("-inf")).amax(dim=1)


def hinge(knowledge: Knowledge, logits: Tensor, labels: Tensor) -> Tensor:
    """`relu(lead + margin)` (b,): an example that is wrong by the margin counts no more."""
    return F.relu(lead(knowledge, logits, labels) + knowledge.settings.margin)


def ramp(knowledge: Knowledge, logits: Tensor, labels: Tensor) -> Tensor:
    """`min(1, relu(lead + margin) / ramp-width)` (b,): nor does one that is right by more than `ramp-width - margin`, so that the examples
    that are nearest to being wrong go first."""
    return (hinge(knowledge, logits, labels) / knowledge.settings.ramp_width).clamp(max=1.0)


def cross_entropy(knowledge: Knowledge, logits: Tensor, labels: Tensor) -> Tensor:
    """`log p_y` (b,), with `attack.to-class` `-log p_to`: no example ever stops to count, and without a target it has no lower bound."""
    log_p = F.log_softmax(logits, dim=1)
    if has_target(knowledge.settings):
        return -log_p[:, target_class(knowledge.settings, knowledge.num_classes)]
    return log_p.gather(1, labels.unsqueeze(1)).squeeze(1)


SURROGATES: dict[str, Callable[[Knowledge, Tensor, Tensor], Tensor]] = {"hinge": hinge, "ramp": ramp, "cross-entropy": cross_entropy}


def surrogate_loss(knowledge: Knowledge, logits: Tensor) -> Tensor:
    """`sum_{i attacked} s(z_i, y_i) / b` over this round's draw with logits z (b, c), s the `attack.surrogate`. Has a gradient."""
    labels = knowledge.validation_draw.labels
    values = SURROGATES[knowledge.settings.surrogate](knowledge, logits, labels)
    return (values * attacked(knowledge, labels)).sum() / len(labels)


def has_caps(settings: Attack) -> bool:
    """Whether the coalition limits what a server may measure of the model."""
    return max(settings.rise_cap, settings.kl_cap) > 0.0


def over_caps(knowledge: Knowledge, logits: Tensor, first: Mapping[str, Tensor]) -> Tensor:
    """`cap-weight * (relu(rise - rise-cap) + relu(KL - kl-cap))` over all of this round's draw: rise, by how much the mean cross-entropy is
    above the first model's; KL, the mean `KL(p(. | x, theta_first) || p(. | x, theta))`. A scalar with a gradient; 0 below the caps.

    Args: logits (b, c) of the draw; first, of the first model on S_val: `losses` (e,), `first_log_probs` (e, c).
    """
    settings, excess = knowledge.settings, 0.0 * logits.sum()
    log_p, labels = F.log_softmax(logits, dim=1), knowledge.validation_draw.labels
    if settings.rise_cap:
        excess = excess + F.relu(F.nll_loss(log_p, labels) - first["losses"][knowledge.drawn].mean() - settings.rise_cap)
    if settings.kl_cap:
        excess = excess + F.relu(kl(first["first_log_probs"][knowledge.drawn], log_p).mean() - settings.kl_cap)
    return settings.cap_weight * excess
