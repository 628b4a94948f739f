"""The trigger vector P_t and the coalition's rehearsal of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clients.accumulative.appraisal import Appraisal
from clients.accumulative.targeted import has_target, victims, wanted
from clients.knowledge import Knowledge
from fl_sim.training.clipping import Clip, clip

NO_GRADIENT = "the gradient of the trigger batch is zero"
SLACK = 10.0  # points: about two standard deviations of an accuracy on 100 examples


def project(vector: Tensor, radius: float) -> Tensor:
    """`proj_eta`: the nearest point (d,) of the l2 ball of that radius."""
    return clip(vector, Clip("l2", radius))[0]


def trigger_vector(knowledge: Knowledge, previous: Tensor | None) -> Tensor:
    """P_t (d,), of length at most `attack.norm-bound`, before the clips of a known rule (`Knowledge.combined`).

    latest (ours): `proj_eta(-c * grad L(S_T; theta_t))`; with `attack.trigger-scale = 0` c is such that the length is eta.
    accumulate: `P_t = proj_eta(P_{t-1} - alpha * grad L(S_T; theta_t))`, `P_0 = proj_eta(-grad L(S_T; theta_0))`.
    Against a class, L is the loss of its examples in S_T. Towards a class (`attack.to-class`) it is minus the loss with that label.
    A clean trigger is the plain gradient, `P_t = proj_eta(c * grad L(S_T; theta_t))` with c = 1 for `trigger-scale = 0`.
    Source: Pang et al. 2021, section 3.3 and Algorithm 2.
    """
    settings = knowledge.settings
    batch = wanted(knowledge, victims(knowledge, knowledge.trigger_batch))
    gradient = knowledge.model.gradient(knowledge.theta, *batch)
    if settings.trigger == "clean":
        return project((settings.trigger_scale or 1.0) * gradient, settings.norm_bound)
    gradient = -gradient if has_target(settings) else gradient
    if settings.trigger_refresh == "accumulate":
        step = -gradient if previous is None else previous - settings.alpha * gradient
        return project(step, settings.norm_bound)
    length = torch.linalg.vector_norm(gradient)
    if settings.trigger_scale:
        scale = settings.trigger_scale
    else:  # 0 for a gradient so small that the factor would be infinite
        long, factor = torch.stack([length, settings.norm_bound / length]).tolist()
        scale = factor if long > settings.norm_bound / torch.finfo(gradient.dtype).max else 0.0
    return project(-scale * gradient, settings.norm_bound)


class Rehearsal(NamedTuple):
    """The accuracy (percent) on S_val after the trigger on a copy of the model, and whether the trigger should fire."""

    after: float
    succeeds: bool


def rehearse(knowledge: Knowledge, trigger: Tensor, own: Appraisal, after: float | None) -> Rehearsal:
    """Apply the trigger, a combined update (d,), to a copy of the model, and measure its accuracy: on this round's draw of S_val, and if
    that is within `SLACK` points of firing, on all of S_val; against a class, on its examples. Ours.

    Args: after, the accuracy after the trigger on the draw, if already known.
    """
    triggered_theta, first = knowledge.theta - knowledge.server_lr * trigger, knowledge.settings.fire_from
    u = (knowledge.round - first) / max(knowledge.total_rounds - first, 1)
    now = own.accuracy
    if after is None:
        after = knowledge.model.score(triggered_theta, *victims(knowledge, knowledge.validation_draw))[0]
    whole = len(knowledge.drawn) == len(knowledge.validation.labels)
    if not whole and should_fire(after - SLACK, now + SLACK, own.start_accuracy, u):
        after = knowledge.model.score(triggered_theta, *victims(knowledge, knowledge.validation))[0]
        now = knowledge.model.score(knowledge.theta, *knowledge.validation)[0]
        whole = True
    return Rehearsal(after, whole and should_fire(after, now, own.start_accuracy, u))


def should_fire(after: float, now: float, start: float, u: float) -> bool:
    """Whether the accuracy after the rehearsed trigger is at most `15 + 50 u^2` and the accuracy now is at most 1.5 points below the
    start's. u grows from 0 in the first round in which the trigger may fire to 1 in the last. All in percent. Ours.
    """
    return after <= 15.0 + 50.0 * u * u and now >= start - 1.5
