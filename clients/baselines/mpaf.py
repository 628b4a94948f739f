"""MPAF: fake clients pull the global model towards one that has learnt nothing."""

from __future__ import annotations

from clients.action import Action
from clients.knowledge import Knowledge
from fl_sim.wire.messages import AttackState


def mpaf(knowledge: Knowledge, state: AttackState) -> Action:
    """`A = lambda * (theta_t - base)`, base the newly initialised model that the coalition draws in its first round, lambda = `attack.tau`
    (0: 1e6, as published).

    Source: Cao and Gong 2022, "MPAF: Model Poisoning Attacks to Federated Learning based on Fake Clients", section 3. Where we differ: in
    gradient units; and the budget bounds the length, so that with the published lambda only the direction counts.
    """
    base = state.arrays["base"] if "base" in state.arrays else knowledge.random_model(knowledge.own_seed)
    vector = (knowledge.settings.tau or 1e6) * (knowledge.theta - base)
    return Action(vector.expand_as(knowledge.updates).clone(), AttackState({"base": base}))
