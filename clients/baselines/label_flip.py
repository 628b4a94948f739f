"""Label flip: the members train honestly on flipped labels."""

from __future__ import annotations

from clients.action import Action
from clients.knowledge import Knowledge
from fl_sim.training.local import block_updates
from fl_sim.wire.messages import AttackState


def label_flip(knowledge: Knowledge, state: AttackState) -> Action:
    """`grad L` of the members' own batches with every label y replaced by `c - 1 - y`, c classes.

    Source: Fang et al. 2020, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", section 4.1; as a data
    poisoning attack Biggio et al. 2012, "Poisoning Attacks against Support Vector Machines".
    """
    batches = knowledge.batches
    flipped = batches._replace(labels=knowledge.num_classes - 1 - batches.labels)
    return Action(block_updates(knowledge.model, knowledge.theta, flipped, knowledge.client))
