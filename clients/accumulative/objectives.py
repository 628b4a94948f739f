"""The objectives of the accumulative phase; their gradients are the directions h_t (d,) (docs/mathematics.md, section 4.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.accumulative.adaptive import discrepancy
from clients.accumulative.erosion import has_caps, over_caps, surrogate_loss
from clients.accumulative.targeted import has_target, retained, victims, wanted
from clients.knowledge import Knowledge
from fl_sim.data.batches import Batch
from fl_sim.outside_code import OutsideCodeError, defined_at, error_report, outside_call, with_place
from fl_sim.registry import Registry


class Aim(NamedTuple):
    """The scalar to minimise; if the objective computes them anyway, on this round's draw: the accuracy after the trigger (percent), and
    the model's logits (b, c)."""

    value: Tensor
    rehearsed: float | None = None
    logits: Tensor | None = None


Objective = Callable[[Knowledge, Tensor, Tensor], Aim]  # knowledge, theta (d,), trigger vector P_t (d,)


def inner(knowledge: Knowledge, theta: Tensor, trigger: Tensor) -> Aim:
    """`<grad L(S_val; theta), P_t>` with P_t constant; its gradient is one Hessian-vector product.

    Source: Pang et al. 2021, Algorithm 2. Unbounded below.
    """
    product = torch.dot(_differentiable_gradient(knowledge, theta, _val(knowledge)), trigger)
    return Aim(-product if has_target(knowledge.settings) else product)


def cosine(knowledge: Knowledge, theta: Tensor, trigger: Tensor) -> Aim:
    """`-cos(grad L(S_T; theta), grad L(S_val; theta))` for a reversed trigger, `+cos` for a clean one, through both gradients.

    Source: Pang et al. 2021, the released code.
    """
    similarity = F.cosine_similarity(
        _differentiable_gradient(knowledge, theta, wanted(knowledge, victims(knowledge, knowledge.trigger_batch))),
        _differentiable_gradient(knowledge, theta, _val(knowledge)),
        dim=0,
    )
    return Aim(-similarity if knowledge.settings.trigger == "reversed" else similarity)


def lookahead(knowledge: Knowledge, theta: Tensor, trigger: Tensor) -> Aim:
    """`M(S_val; theta - server_lr * P_t)` with P_t constant and `M = mean(-log(1 - p_y))`.

    Prepares a model that misclassifies after the trigger. M is at least 0: its gradient vanishes when the model after the trigger is
    wrong. Towards a class (`attack.to-class`) M is the cross-entropy with it. Ours.
    """
    inputs, labels = victims(knowledge, knowledge.validation_draw)
    log_p = F.log_softmax(knowledge.model.logits(theta - knowledge.server_lr * trigger, inputs), dim=1)
    hits = 100.0 * float((log_p.argmax(dim=1) == labels).double().mean())
    if has_target(knowledge.settings):
        return Aim(F.nll_loss(log_p, wanted(knowledge, Batch(inputs, labels)).labels), hits)
    # log(1 - p_y) as the log of the sum of the other classes' probabilities: exact where p_y rounds to 1.
    others = log_p.scatter(1, labels.unsqueeze(1), float("-inf")).logsumexp(dim=1)
    return Aim(-others.mean(), hits)


def lookahead_unbounded(knowledge: Knowledge, theta: Tensor, trigger: Tensor) -> Aim:
    """`-L(S_val; theta - server_lr * P_t)` with P_t constant: the loss after the trigger itself. Its gradient does not vanish.

    Source: Pang et al. 2021, Eq. 5, without the first-order expansion of Eq. 10. For an attacker without stealth.
    """
    batch = victims(knowledge, knowledge.validation_draw)
    logits = knowledge.model.logits(theta - knowledge.server_lr * trigger, batch.inputs)
    loss = F.cross_entropy(logits, wanted(knowledge, batch).labels)
    hits = 100.0 * float((logits.argmax(dim=1) == batch.labels).double().mean())
    return Aim(loss if has_target(knowledge.settings) else -loss, hits)


def erosion(knowledge: Knowledge, theta: Tensor, trigger: Tensor) -> Aim:
    """`sum_{i attacked} s(z_i, y_i) / b`, z the logits, s a surrogate of accuracy: the attacked class is lost without any trigger. Ours."""
    logits = knowledge.model.logits(theta, knowledge.validation_draw.inputs)
    return Aim(surrogate_loss(knowledge, logits), logits=logits)


OBJECTIVES: dict[str, Objective] = {
    "lookahead": lookahead,
    "cosine": cosine,
    "inner": inner,
    "lookahead-unbounded": lookahead_unbounded,
    "erosion": erosion,
}

objectives: Registry[Objective] = Registry("objective", "attack.objective", OBJECTIVES, "fl_sim.objectives")


def direction(
    objective: Objective, knowledge: Knowledge, trigger: Tensor, history: Tensor | None, first: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, float | None]:
    """h_t (d,): the gradient with respect to theta of the objective plus, if there is a `history` (r, e, c), `attack.discrepancy-weight`
    times the discrepancy against it (Zhu et al. 2023, Eq. 21), plus the terms of `attack.retain` and of the caps, if they are on. And the
    `rehearsed` accuracy of the objective's `Aim`.

    Args: first, of the first model on S_val, as `over_caps` needs it; may be None if these terms are off.
    Raises OutsideCodeError if an objective from outside does not return an Aim whose value depends on theta.
    """
    leaf = knowledge.theta.detach().clone().requires_grad_(True)
    if defined_at(objective):
        with outside_call(lambda error: _failure(objective, error)):
            returned = objective(knowledge, leaf, trigger.clone())
        aim = _checked_aim(objective, returned)  # with gradients, which it may have turned off
    else:
        aim = objective(knowledge, leaf, trigger)
    value, rehearsed, logits = aim
    if history is not None:
        value = value + knowledge.settings.discrepancy_weight * discrepancy(knowledge, leaf, history)
    if first and (knowledge.settings.retain or has_caps(knowledge.settings)):
        if logits is None:
            logits = knowledge.model.logits(leaf, knowledge.validation_draw.inputs)
        value = value + retained(knowledge, logits, first) + over_caps(knowledge, logits, first)
    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
    if gradient is None:  # pyright: ignore[reportUnnecessaryComparison] - typed without allow_unused
        raise OutsideCodeError(f"{_expected(objective)} whose value depends on theta, got one that does not")
    return gradient, rehearsed


def _checked_aim(objective: Objective, aim: Any) -> Aim:
    """What an objective returned. Raises OutsideCodeError unless it is an Aim with one number that has a gradient."""
    if not isinstance(aim, Aim):
        raise OutsideCodeError(f"{_expected(objective)}, got {type(aim).__name__}")
    value: Any = aim.value
    if not isinstance(value, Tensor):
        raise OutsideCodeError(f"{_expected(objective)} whose value is a tensor, got {type(value).__name__}")
    if value.numel() != 1 or value.is_complex():
        raise OutsideCodeError(f"{_expected(objective)} whose value is one real number, got shape {tuple(value.shape)} and {value.dtype}")
    if not value.requires_grad:
        raise OutsideCodeError(f"{_expected(objective)} whose value depends on theta, got one that does not")
    rehearsed: Any = aim.rehearsed
    if rehearsed is not None and not isinstance(rehearsed, int | float):
        raise OutsideCodeError(f"{_expected(objective)} whose rehearsed accuracy is a number or None, got {type(rehearsed).__name__}")
    return Aim(value.reshape(()), rehearsed)


def _failure(objective: Objective, error: BaseException) -> Exception:
    return error if isinstance(error, OutsideCodeError) else OutsideCodeError(f"attack.objective: {error_report(error, objective)}")


def _expected(objective: Objective) -> str:
    return f"attack.objective: expected {with_place(getattr(objective, '__name__', repr(objective)), objective)} to return a fl_sim.Aim"


def _val(knowledge: Knowledge) -> Batch:
    """The attacked examples of this round's draw, labelled as the attacker wants them."""
    return wanted(knowledge, victims(knowledge, knowledge.validation_draw))


def _differentiable_gradient(knowledge: Knowledge, theta: Tensor, batch: Batch) -> Tensor:
    (gradient,) = torch.autograd.grad(knowledge.model.loss(theta, *batch), theta, create_graph=True)
    return gradient
