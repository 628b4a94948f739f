"""The accumulative poisoning attack in a federation.

Source: Pang et al. 2021, "Accumulative Poisoning Attacks on Real-time Data", section 3.3 and Algorithm 2. Ours: the
look-ahead objective, relative scaling, stealth control and the rehearsed trigger (docs/mathematics.md, section 4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from clients.accumulative.adaptive import aligned, history_of, remember
from clients.accumulative.appraisal import appraise, first_look
from clients.accumulative.objectives import direction, objectives
from clients.accumulative.offset import send
from clients.accumulative.targeted import exact_step, first_log_probs, is_noise, pair_taken
from clients.accumulative.trigger import NO_GRADIENT, rehearse, trigger_vector
from clients.action import Action
from clients.knowledge import Knowledge
from clients.success import measured_by
from fl_sim.training.clipping import Clip, clip
from fl_sim.wire.messages import AttackState


@measured_by(pair_taken)
def accumulative(knowledge: Knowledge, state: AttackState) -> Action:
    """In the accumulative phase the target of the combined update is `honest_t + scale_t * h_t` (Eq. 12), in the trigger round `P_t`.

    With `attack.keep-honest = false` the target is `scale_t * h_t` alone, as in the released code of Pang et al. 2021: then the model is
    trained only in rounds in which stealth control pauses the accumulation.
    The trigger comes in the phase "trigger" or, with `attack.fire = "rehearsed"`, in the first accumulative round in which a rehearsal
    succeeds. Between two triggers the coalition accumulates without stealth control, because the model is damaged already. In a control
    the scale is 0. With `attack.provoke` (ours) the coalition sends the trigger in every accumulative round without a clip per client: a
    guard refuses it and clips each client for a while, and under that clip the coalition accumulates.
    """
    settings = knowledge.settings
    previous_theta = state.arrays.get("theta")
    vector = trigger_vector(knowledge, state.arrays.get("trigger")) if _needs_trigger(knowledge) else torch.zeros_like(knowledge.theta)
    trigger_updates = _send(knowledge, vector, previous_theta)
    trigger = knowledge.combined(trigger_updates) if knowledge.expected_trigger is None else knowledge.expected_trigger
    start = first_look(knowledge, state)
    own = appraise(knowledge, start)
    scalars = _running_norm(knowledge, state)
    history = history_of(knowledge, state)
    first = first_log_probs(knowledge, state)
    next_state = AttackState(start | _arrays(knowledge, vector) | remember(knowledge, history, state) | first, scalars)
    metrics = {"own_loss": own.loss, "own_accuracy": own.accuracy, "fired": float(knowledge.phase == "trigger"), "scale": 0.0}
    if metrics["fired"] and not bool(vector.any()):
        return Action(knowledge.updates, next_state, metrics | {"fired": 0.0}, NO_GRADIENT)
    if metrics["fired"]:
        return Action(trigger_updates, next_state, metrics)
    gamma = settings.stealth_gamma if knowledge.phase == "accumulate" else float("inf")
    scale = stealth(own.loss, own.start_loss, gamma) if knowledge.accumulate else 0.0
    h, rehearsed = direction(objectives.find(settings.objective), knowledge, trigger, history, start | first) if scale else (None, None)
    may_fire = knowledge.may_fire and knowledge.phase == "accumulate" and knowledge.round >= settings.fire_from
    if settings.fire == "rehearsed" and may_fire:
        rehearsal = rehearse(knowledge, trigger, own, rehearsed)
        metrics["rehearsed_accuracy"] = rehearsal.after
        if rehearsal.succeeds:
            metrics["fired"] = 1.0
            return Action(trigger_updates, next_state, metrics)
    if settings.provoke and scale and not knowledge.bound:
        return Action(trigger_updates, next_state, metrics | {"provoked": 1.0})
    if h is None:
        return Action(knowledge.updates, next_state, metrics, "stealth control pauses the accumulation" if knowledge.accumulate else "")
    if not bool(h.any()) or (settings.scaling == "exact" and is_noise(h)):
        return Action(knowledge.updates, next_state, metrics, f"the gradient of attack.objective = {settings.objective!r} is zero")
    if settings.scaling == "exact":
        return Action(exact_step(knowledge, h, scale, state), next_state, metrics | {"scale": scale, "push_norm": scale * settings.step})
    push = scale * scaled_direction(h, knowledge, scalars["honest_norm"])
    metrics["scale"], metrics["push_norm"] = scale, float(torch.linalg.vector_norm(push))
    target = knowledge.honest_mean + push if settings.keep_honest else push
    return Action(_send(knowledge, target, previous_theta), next_state, metrics)


def _needs_trigger(knowledge: Knowledge) -> bool:
    """Whether this round's trigger vector can matter: erosion does not look at it."""
    settings = knowledge.settings
    sends = knowledge.phase != "accumulate" or knowledge.may_fire or settings.provoke
    return settings.objective != "erosion" or sends or settings.trigger_refresh == "accumulate"


def _send(knowledge: Knowledge, target: Tensor, previous_theta: Tensor | None) -> Tensor:
    """Updates (m, d) for a target (d,). With `attack.alignment` they are aligned with the model's last move (from `previous_theta` (d,)),
    and no longer than the known bound, or else than the median of the members' honest updates."""
    updates = send(knowledge, target)
    if knowledge.settings.alignment == 0.0:
        return updates
    momentum = knowledge.honest_mean if previous_theta is None else previous_theta - knowledge.theta
    median = float(torch.linalg.vector_norm(knowledge.updates, dim=1).median())
    bound = knowledge.bound or Clip("l2", max(median, torch.finfo(updates.dtype).tiny))  # a bound is above 0
    return clip(aligned(updates, momentum, knowledge.settings.alignment), bound)[0]


def _running_norm(knowledge: Knowledge, state: AttackState) -> dict[str, float]:
    """The running mean of |honest_t| and the number of rounds in it; for an exact step also this round's number."""
    rounds, mean = state.scalars.get("rounds", 0.0) + 1.0, state.scalars.get("honest_norm", 0.0)
    norm = float(torch.linalg.vector_norm(knowledge.honest_mean))
    last = {"round": float(knowledge.round)} if knowledge.settings.scaling == "exact" else {}
    return {"rounds": rounds, "honest_norm": mean + (norm - mean) / rounds, **last}


def _arrays(knowledge: Knowledge, vector: Tensor) -> dict[str, Tensor]:
    """State for the next round: the trigger vector (d,) if it is accumulated, and the model (d,) if the alignment or an
    exact step needs its move."""
    settings = knowledge.settings
    return ({"trigger": vector} if settings.trigger_refresh == "accumulate" else {}) | (
        {"theta": knowledge.theta} if settings.alignment or settings.scaling == "exact" else {}
    )


def scaled_direction(h: Tensor, knowledge: Knowledge, mean_honest_norm: float) -> Tensor:
    """h_t (d,) scaled to its length before stealth control.

    lambda: `lambda * h` as printed in Pang et al. 2021. relative (ours): length `rho * max(ref_t, floor)` with ref_t the running mean of
    |honest_t|; a shorter look-ahead direction keeps its length.
    """
    settings = knowledge.settings
    if settings.scaling == "lambda":
        return settings.lambda_ * h
    factor = settings.rho * max(mean_honest_norm, settings.floor) / torch.linalg.vector_norm(h)
    if settings.objective == "lookahead":
        factor = factor.clamp(max=1.0)
    return h * factor.nan_to_num(posinf=0.0)  # a zero direction stays zero


def stealth(loss: float, start_loss: float, gamma: float) -> float:
    """`clamp((L0 + gamma - L) / gamma, 0, 1)`: 1 at the starting loss L0, 0 once the loss has risen by gamma. Ours, for the constraint
    `L(S_val; theta_t) <= L(S_val; theta_0) + gamma` of Pang et al. 2021, Eq. 10.
    """
    if gamma == float("inf"):
        return 1.0
    return min(max(0.0, (start_loss + gamma - loss) / gamma), 1.0)  # max(0, NaN) is 0: a NaN loss pauses too
