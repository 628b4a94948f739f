"""Known attacks on the mean, most of them from ByzFL (the optional extra `[byzfl]`).

Each sends its vector in every round of the phase and in the trigger round. They use `Knowledge.stand_ins` in place of the single honest
updates, which the coalition does not know at any level.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clients.action import Action
from clients.knowledge import Knowledge
from fl_sim.rng.streams import torch_stream
from fl_sim.wire.messages import AttackState


def gaussian(knowledge: Knowledge, state: AttackState) -> Action:
    """Noise `N(0, sigma^2 I)` instead of an update, sigma = `attack.tau` (0: 1). Own code: ByzFL draws from a global generator.

    Source: Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", section 5.
    """
    generator = torch_stream(knowledge.own_seed, "gaussian")
    noise = torch.randn(knowledge.updates.shape, generator=generator)
    return Action(noise.to(knowledge.updates) * (knowledge.settings.tau or 1.0))


def sign_flip(knowledge: Knowledge, state: AttackState) -> Action:
    """`-mean(g)`. Source: Allen-Zhu et al. 2020, "Byzantine-Resilient Non-Convex Stochastic Gradient Descent"; ByzFL."""
    return _all_send(knowledge, _byzfl("SignFlipping")(knowledge.stand_ins()))


def inner_product_manipulation(knowledge: Knowledge, state: AttackState) -> Action:
    """`-tau * mean(g)`, tau = `attack.tau` (0: 2). Source: Xie et al. 2020, "Fall of Empires"; ByzFL."""
    return _all_send(knowledge, _byzfl("InnerProductManipulation", tau=knowledge.settings.tau or 2.0)(knowledge.stand_ins()))


def a_little_is_enough(knowledge: Knowledge, state: AttackState) -> Action:
    """`mean(g) + tau * std(g)` per coordinate, tau = `attack.tau` (0: 1.5); mean and standard deviation are those of the members' own
    updates, as in Baruch et al. 2019, "A Little Is Enough"; ByzFL.
    """
    rows = knowledge.stand_ins()
    if len(rows) < 2:  # only one member was sampled: no standard deviation
        return _all_send(knowledge, rows[0])
    return _all_send(knowledge, _byzfl("ALittleIsEnough", tau=knowledge.settings.tau or 1.5)(rows))


def mimic(knowledge: Knowledge, state: AttackState) -> Action:
    """All members send the honest update of the first member, so one client's data counts m times.

    Source: Karimireddy et al. 2022, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", section 3; ByzFL. Where we differ:
    theirs copy an honest client, whose update ours do not know.
    """
    return _all_send(knowledge, _byzfl("Mimic", epsilon=0)(knowledge.updates))


def _all_send(knowledge: Knowledge, vector: Tensor) -> Action:
    """The same update (d,) from every member."""
    return Action(vector.to(knowledge.updates).expand_as(knowledge.updates).clone())


def _byzfl(name: str, **options: float) -> Any:
    """An attack of ByzFL, by class name. Imported here: it takes seconds and is optional."""
    import byzfl

    return getattr(byzfl, name)(**options)
