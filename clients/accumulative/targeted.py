"""Accumulation against one class, or from one class to another (`attack.class`, `attack.to-class`): with a trigger, or without (erosion).

Ours (docs/mathematics.md, section 4.11).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.accumulative.offset import send
from clients.knowledge import Knowledge
from clients.success import SuccessView, of_source, target_class
from fl_sim.config.keys import Attack
from fl_sim.data.batches import Batch
from fl_sim.training.clipping import clip
from fl_sim.training.divergence import kl
from fl_sim.wire.messages import AttackState

NOISE = 1e-6  # of a gradient of terms of size 1 in float32
BEYOND = 1e6  # in bounds: what is projected onto the ball is this long, so that the direction alone decides


def pair_taken(view: SuccessView) -> Batch | None:
    """Test images of `attack.class`; success is `attack.to-class`. None unless both are set: then accuracy by class says it all."""
    if view.settings.class_ < 0 or view.settings.to_class < 0:
        return None
    inputs = view.victims().inputs
    return Batch(inputs, torch.full((len(inputs),), view.to_class, device=inputs.device))


def has_target(settings: Attack) -> bool:
    """Whether the model should say one class, `attack.to-class`, instead of any wrong one."""
    return settings.to_class >= 0


def victims(knowledge: Knowledge, batch: Batch) -> Batch:
    """The examples of a batch that are attacked: those of `attack.class` (-1: of all) without those of `attack.to-class`. If the batch has
    none, those of all of S_val. Raises ValueError if that has none either."""
    settings = knowledge.settings
    if settings.class_ < 0 and not has_target(settings):
        return batch
    for inputs, labels in (batch, knowledge.validation):
        chosen = attacked(knowledge, labels)
        if bool(chosen.any()):
            return Batch(inputs[chosen], labels[chosen])
    raise ValueError(f"expected the coalition's own examples (attack.data) to hold some of attack.class = {settings.class_}, got none")


def attacked(knowledge: Knowledge, labels: Tensor) -> Tensor:
    """Which of the labels (b,) are attacked, bool (b,)."""
    settings = knowledge.settings
    chosen = of_source(settings, labels, knowledge.num_classes)
    return chosen & (labels != target_class(settings, knowledge.num_classes)) if has_target(settings) else chosen


def wanted(knowledge: Knowledge, batch: Batch) -> Batch:
    """A batch labelled as the attacker wants it: `attack.to-class`; without one the labels stay, and the loss is to grow."""
    if not has_target(knowledge.settings):
        return batch
    return Batch(batch.inputs, torch.full_like(batch.labels, target_class(knowledge.settings, knowledge.num_classes)))


def first_log_probs(knowledge: Knowledge, state: AttackState) -> dict[str, Tensor]:
    """Log-probabilities (e, c) of the first model that the coalition got on S_val, kept in its state; nothing if neither `attack.retain`
    nor `attack.kl-cap` needs them."""
    settings = knowledge.settings
    if settings.retain == 0.0 and settings.kl_cap == 0.0:
        return {}
    if "first_log_probs" in state.arrays:
        return {"first_log_probs": state.arrays["first_log_probs"]}
    with torch.no_grad():
        logits = knowledge.model.logits(knowledge.theta, knowledge.validation.inputs)
    return {"first_log_probs": F.log_softmax(logits, dim=1)}


def retained(knowledge: Knowledge, logits: Tensor, first: Mapping[str, Tensor]) -> Tensor:
    """`attack.retain * mean KL(p(. | x, theta_first) || p(. | x, theta))` over this round's draw without the attacked class: what the model
    says of the others stays. A scalar with a gradient; 0 if the draw has no others.

    Args: logits (b, c) of the draw; first, what the first model said of S_val: `first_log_probs` (e, c).
    """
    others = ~attacked(knowledge, knowledge.validation.labels[knowledge.drawn])
    if knowledge.settings.retain == 0.0 or not bool(others.any()):
        return 0.0 * logits.sum()
    divergences = kl(first["first_log_probs"][knowledge.drawn[others]], F.log_softmax(logits[others], dim=1))
    return knowledge.settings.retain * divergences.mean()


def is_noise(h: Tensor) -> bool:
    """Whether a direction (d,) is so short that rounding made it: an exact step would give it its full length."""
    return float(torch.linalg.vector_norm(h)) < NOISE


def exact_step(knowledge: Knowledge, h: Tensor, scale: float, state: AttackState) -> Tensor:
    """Updates (m, d) with which the server moves the model by exactly `scale * attack.step` along -h (d,), honest training and momentum
    cancelled: `target = scale * step * h / |h| - momentum * (theta_{t-1} - theta_t) / server_lr`, through the recovered offset.

    A rule that is rehearsed (`attack.delivery`) limits how far it can be moved. All of that goes along h: the target is
    `honest_t + scale * step * h / |h|`.

    If a clip per client is known, every member sends the update at the bound along h instead: together they move the mean by at most
    `m * b / n`. The momentum is known only if the coalition saw the model in the round before.
    """
    unit = F.normalize(h, dim=0)
    if knowledge.bound:
        along = BEYOND * knowledge.bound.bound * unit
        if knowledge.bound.norm == "linf":
            along = along.clamp(-knowledge.bound.bound, knowledge.bound.bound)
        return clip(along.expand(len(knowledge.members), -1), knowledge.bound)[0].clone()
    target = scale * knowledge.settings.step * unit
    if knowledge.settings.delivery == "rehearse":
        return send(knowledge, knowledge.honest_mean + target)
    if state.scalars.get("round") == knowledge.round - 1:
        target = target - knowledge.momentum * (state.arrays["theta"] - knowledge.theta) / knowledge.server_lr
    return send(knowledge, target)
