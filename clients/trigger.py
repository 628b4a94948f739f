"""The trigger vector P_t and the coalition's rehearsal of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clients.knowledge import Knowledge
from fl_sim.clipping import Clip, clip
from fl_sim.federation import Batch


def project(vector: Tensor, radius: float) -> Tensor:
    """`proj_eta`: the nearest point (d,) of the l2 ball of that radius."""
    return clip(vector, Clip("l2", radius))[0]


def trigger_vector(knowledge: Knowledge, previous: Tensor | None) -> Tensor:
    """P_t (d,), at most `attack.norm-bound` long before a known rule has clipped it (`Knowledge.reachable`).

    latest (ours): `proj_eta(-c * grad L(S_T; theta_t))`; with `attack.trigger-scale = 0` c is such that the length is eta.
    accumulate: `P_t = proj_eta(P_{t-1} - alpha * grad L(S_T; theta_t))`, `P_0 = proj_eta(-grad L(S_T; theta_0))`.
    A clean trigger is the plain gradient, `P_t = proj_eta(c * grad L(S_T; theta_t))` with c = 1 for `trigger-scale = 0`.
    Source: Pang et al. 2021, section 3.3 and Algorithm 2.
    """
    settings = knowledge.settings
    gradient = knowledge.model.gradient(knowledge.theta, *knowledge.trigger_batch)
    if settings.trigger == "clean":
        return project((settings.trigger_scale or 1.0) * gradient, settings.norm_bound)
    if settings.trigger_refresh == "accumulate":
        step = -gradient if previous is None else previous - settings.alpha * gradient
        return project(step, settings.norm_bound)
    length = torch.linalg.vector_norm(gradient)
    scale = settings.trigger_scale or float(settings.norm_bound / length.clamp(min=torch.finfo(gradient.dtype).tiny))
    return project(-scale * gradient, settings.norm_bound)


class Rehearsal(NamedTuple):
    """The coalition's own accuracy (percent) now and after the trigger on a copy of the model."""

    now: float
    after: float


def rehearse(knowledge: Knowledge, trigger: Tensor, validation: Batch, accuracy: float) -> Rehearsal:
    """Try the trigger (d,) on a copy of the model with the coalition's own validation set, on which the model has `accuracy` now.
    Ours."""
    after, _ = knowledge.model.score(knowledge.theta - knowledge.server_lr * trigger, *validation)
    return Rehearsal(accuracy, after)


def should_fire(rehearsal: Rehearsal, start_accuracy: float, round_: int, first: int, last: int) -> bool:
    """Fire when the rehearsed accuracy is at most `15 + 50 u^2`, u from 0 in the first to 1 in the last round in which it may
    fire, and the coalition's own accuracy is within 1.5 points of where it started. Ours.
    """
    if round_ < first:
        return False
    u = (round_ - first) / max(last - first, 1)
    return rehearsal.after <= 15.0 + 50.0 * u * u and rehearsal.now >= start_accuracy - 1.5
