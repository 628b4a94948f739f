"""The trigger without any accumulation before it."""

from __future__ import annotations

from clients.accumulative.offset import send
from clients.accumulative.trigger import NO_GRADIENT, trigger_vector
from clients.action import Action
from clients.knowledge import Knowledge
from fl_sim.wire.messages import AttackState


def trigger_only(knowledge: Knowledge, state: AttackState) -> Action:
    """Honest updates until the trigger round; there the target is the trigger vector `-c * grad L(S_T; theta)` (c: `attack.trigger-scale`).

    Source: Pang et al. 2021, Table 3, "poisoned trigger" at scale 1, 10, 20 and 50.
    """
    if knowledge.phase != "trigger":
        return Action(knowledge.updates)
    vector = trigger_vector(knowledge, None)
    if not bool(vector.any()):
        return Action(knowledge.updates, reason=NO_GRADIENT)
    return Action(send(knowledge, vector))
