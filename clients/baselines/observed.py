"""What a coalition without data sees: how the global model moves from round to round."""

from __future__ import annotations

from torch import Tensor

from clients.knowledge import Knowledge
from fl_sim.wire.messages import AttackState


def last_update(knowledge: Knowledge, state: AttackState) -> Tensor | None:
    """`(1 - beta) * (theta_then - theta_now) / (server_lr * rounds)` (d,), since the coalition last acted: the last combined update, or
    with the server's momentum beta the mean of all before, weighted as by the server. None in the coalition's first round.

    Without the factor an update that repeats the server's step would make the momentum grow by itself.
    """
    if "theta" not in state.arrays:
        return None
    rounds = knowledge.round - state.scalars["round"]
    return (1.0 - knowledge.momentum) * (state.arrays["theta"] - knowledge.theta) / (knowledge.server_lr * rounds)


def remember(knowledge: Knowledge, arrays: dict[str, Tensor] | None = None, scalars: dict[str, float] | None = None) -> AttackState:
    """The state that `last_update` needs in the next round, and more."""
    return AttackState({**(arrays or {}), "theta": knowledge.theta}, {**(scalars or {}), "round": float(knowledge.round)})
