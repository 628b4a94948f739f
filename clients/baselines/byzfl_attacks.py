"""Known attacks on the mean, most of them from ByzFL (the optional extra `[byzfl]`).

Each sends its vector in every round of the phase and in the trigger round. With `attack.knowledge = "updates"` they get every single
honest update, as published; at the other levels stand-ins (`Knowledge.honest_rows`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clients.action import Action
from clients.knowledge import Knowledge
from fl_sim.rng.streams import torch_stream
from fl_sim.training.clipping import clip
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
    return _all_send(knowledge, _byzfl("SignFlipping")(knowledge.honest_rows()))


def inner_product_manipulation(knowledge: Knowledge, state: AttackState) -> Action:
    """`-tau * mean(g)`, tau = `attack.tau` (0: 2). Source: Xie et al. 2020, "Fall of Empires"; ByzFL."""
    return _all_send(knowledge, _byzfl("InnerProductManipulation", tau=knowledge.settings.tau or 2.0)(knowledge.honest_rows()))


def a_little_is_enough(knowledge: Knowledge, state: AttackState) -> Action:
    """`mean(g) + tau * std(g)` per coordinate, tau = `attack.tau` (0: 1.5); mean and standard deviation are those of the honest
    updates, or of the members' own ones as in Baruch et al. 2019, "A Little Is Enough"; ByzFL.
    """
    rows = knowledge.honest_rows()
    if len(rows) < 2:  # no standard deviation
        return _all_send(knowledge, rows[0])
    return _all_send(knowledge, _byzfl("ALittleIsEnough", tau=knowledge.settings.tau or 1.5)(rows))


def mimic(knowledge: Knowledge, state: AttackState) -> Action:
    """All members send the update of the first honest client, so one client's data counts m times more. Where single honest updates are not
    shown it is the honest update of the first member.

    Source: Karimireddy et al. 2022, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", section 3; ByzFL. Where we differ:
    theirs choose the client whose updates vary most, ours is the one with the lowest id.
    """
    return _all_send(knowledge, _byzfl("Mimic", epsilon=0)(knowledge.shown.rows if knowledge.shown else knowledge.updates))


def optimal_a_little_is_enough(knowledge: Knowledge, state: AttackState) -> Action:
    """`mean(g) + tau * std(g)` with the tau that moves the server's result farthest from `mean(g)`, by ByzFL's line search over the
    server's own rule (20 evaluations, from 0 in steps of 10). It needs every honest update and a rule that publishes how it combines.

    Source: Allouah et al. 2023, "Fixing by Mixing", section 6; ByzFL. Where we differ: the rule gets the clients' weights.
    """
    return _optimal(knowledge, "Optimal_ALittleIsEnough")


def optimal_inner_product_manipulation(knowledge: Knowledge, state: AttackState) -> Action:
    """`-tau * mean(g)` with the tau that moves the server's result farthest from `mean(g)`, found as for `optimal-alie`. Source: Allouah et
    al. 2023, "Fixing by Mixing", section 6; ByzFL."""
    return _optimal(knowledge, "Optimal_InnerProductManipulation")


def infinity(knowledge: Knowledge, state: AttackState) -> Action:
    """Infinity in every coordinate; ByzFL. A server here takes no update that is not finite, so the members count as failed clients."""
    return _all_send(knowledge, _byzfl("Inf")(knowledge.updates))


def _optimal(knowledge: Knowledge, name: str) -> Action:
    """The result of one of ByzFL's line searches against the server's rule."""
    if knowledge.shown is None or knowledge.rule is None or knowledge.rule.combine is None:
        raise ValueError("expected every honest update and a known rule, got less")
    rule, combine, rows = knowledge.rule, knowledge.rule.combine, knowledge.shown.rows
    weights = torch.cat([knowledge.shown.weights, knowledge.weights]).to(rows)

    def result(updates: Tensor) -> Tensor:
        """The server's combined update (d,) of the honest updates and the members' (n, d)."""
        updates = updates.to(rows)
        combined = combine(clip(updates, rule.before)[0] if rule.before else updates, weights)
        return clip(combined, rule.after)[0] if rule.after else combined

    return _all_send(knowledge, _byzfl(name, agg=result, pre_agg_list=[], f=len(knowledge.members))(rows))


def _all_send(knowledge: Knowledge, vector: Tensor) -> Action:
    """The same update (d,) from every member."""
    return Action(vector.to(knowledge.updates).expand_as(knowledge.updates).clone())


def _byzfl(name: str, **options: Any) -> Any:
    """An attack of ByzFL, by class name. Imported here: it takes seconds and is optional."""
    import byzfl

    return getattr(byzfl, name)(**options)
