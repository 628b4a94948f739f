"""The accumulative poisoning attack in a federation.

Source: Pang et al. 2021, "Accumulative Poisoning Attacks on Real-time Data", section 3.3 and Algorithm 2. Ours: the
look-ahead objective, relative scaling, stealth control and the rehearsed trigger (MATH section 2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clients.knowledge import Knowledge
from clients.objectives import OBJECTIVES, direction
from clients.offset import send
from clients.trigger import rehearse, should_fire, trigger_vector
from fl_sim.messages import AttackState


class Action(NamedTuple):
    """What an attack does in a round: updates (m, d), its next state, and figures for the records."""

    updates: Tensor
    state: AttackState
    metrics: dict[str, float]


def accumulative(knowledge: Knowledge, state: AttackState) -> Action:
    """Accumulate: aim for `honest_t + scale_t * h_t`. Trigger: aim for `P_T`.

    The trigger comes when the schedule says so (phase "trigger") or, with `attack.fire = "rehearsed"`, in the first
    accumulative round in which a rehearsal succeeds. In a control the scale is 0.
    """
    settings, model, theta = knowledge.settings, knowledge.model, knowledge.theta
    vector = trigger_vector(knowledge, state.arrays.get("trigger"))
    trigger = knowledge.reachable(vector)
    accuracy, loss = model.score(theta, *knowledge.validation)
    honest_norm = float(torch.linalg.vector_norm(knowledge.honest_mean))
    seen = state.scalars.get("rounds", 0.0) + 1.0
    mean_norm = state.scalars.get("honest-norm", 0.0)
    mean_norm += (honest_norm - mean_norm) / seen
    scalars = {
        "rounds": seen,
        "honest-norm": mean_norm,
        "start-loss": state.scalars.get("start-loss", loss),
        "start-accuracy": state.scalars.get("start-accuracy", accuracy),
    }
    rehearses = settings.fire == "rehearsed" and knowledge.may_fire
    rehearsal = rehearse(knowledge, trigger, knowledge.validation, accuracy) if rehearses else None
    fire = knowledge.phase == "trigger" or (
        rehearsal is not None
        and should_fire(rehearsal, scalars["start-accuracy"], knowledge.round, settings.fire_from, knowledge.total_rounds)
    )
    metrics = {"own-loss": loss, "own-accuracy": accuracy, "fired": float(fire), "scale": 0.0}
    if rehearsal is not None:
        metrics["rehearsed-accuracy"] = rehearsal.after
    next_state = AttackState({"trigger": vector} if settings.trigger_refresh == "accumulate" else {}, scalars)
    if fire:
        return Action(send(knowledge, trigger), next_state, metrics)
    scale = stealth(loss, scalars["start-loss"], settings.stealth_gamma) if knowledge.accumulate else 0.0
    if scale == 0.0:
        return Action(knowledge.updates, next_state, metrics)
    h = direction(
        OBJECTIVES[settings.objective],
        model,
        theta,
        knowledge.validation_draw,
        knowledge.trigger_batch,
        trigger,
        knowledge.server_lr,
        settings.trigger == "reversed",
    )
    scaled = scale * scaled_direction(h, knowledge, mean_norm)
    metrics["scale"], metrics["push-norm"] = scale, float(torch.linalg.vector_norm(scaled))
    return Action(send(knowledge, knowledge.honest_mean + scaled), next_state, metrics)


def scaled_direction(h: Tensor, knowledge: Knowledge, mean_honest_norm: float) -> Tensor:
    """h_t (d,) at its length before stealth control.

    lambda: `lambda * h` as printed in Pang et al. 2021. relative (ours): length `rho * max(ref_t, floor)` with ref_t the
    running mean of |honest_t|; the look-ahead direction is only shortened to it, never stretched.
    """
    settings = knowledge.settings
    if settings.scaling == "lambda":
        return settings.lambda_ * h
    factor = settings.rho * max(mean_honest_norm, settings.floor) / torch.linalg.vector_norm(h)
    if settings.objective == "lookahead":
        factor = factor.clamp(max=1.0)
    return h * factor.nan_to_num(posinf=0.0)  # a zero direction stays zero


def stealth(loss: float, start_loss: float, gamma: float) -> float:
    """`clamp((L0 + gamma - L) / gamma, 0, 1)`: 1 at the starting loss, 0 once it rose by gamma. Ours, for the constraint
    `L(S_val; theta_t) <= L(S_val; theta_0) + gamma` of Pang et al. 2021, Eq. 8.
    """
    if gamma == float("inf"):
        return 1.0
    return min(max(0.0, (start_loss + gamma - loss) / gamma), 1.0)  # max(0, NaN) is 0: a broken loss pauses too


def trigger_only(knowledge: Knowledge, state: AttackState) -> Action:
    """The trigger without any accumulation before it (Pang et al. 2021, Table 3: "poisoned trigger")."""
    trigger = trigger_vector(knowledge, None)
    fire = knowledge.phase == "trigger"
    updates = send(knowledge, trigger) if fire else knowledge.updates
    return Action(updates, state, {"fired": float(fire), "scale": 0.0})
