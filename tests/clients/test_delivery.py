"""`attack.delivery`: what the members send under rules whose answer is known in closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clients.accumulative.attack import accumulative
from clients.action import Action
from clients.baselines.min_max import min_max
from clients.delivery import SKETCH, alternating, rehearsed, simulated
from clients.knowledge import Knowledge, KnownRule, weighted_mean
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.training.clipping import Clip
from fl_sim.wire.messages import AttackState
from strategies.checks import rehearsal_problem
from tests.support.small_knowledge import N, knowledge_of


def under(k: Knowledge, combine: Callable[[Tensor, Tensor], Tensor], before: Clip | None = None) -> Knowledge:
    """The same, with a known combination."""
    return dataclasses.replace(k, rule=KnownRule("some", before, None, combine))


def median(updates: Tensor, weights: Tensor) -> Tensor:
    return updates.median(dim=0).values


def krum(updates: Tensor, weights: Tensor) -> Tensor:
    """The row with the smallest sum of squared distances to its 5 nearest."""
    scores = torch.cdist(updates, updates).square().sort(dim=1).values[:, 1:6].sum(dim=1)
    return updates[scores.argmin()]


def far_away(k: Knowledge, scale: float = 1000.0) -> Action:
    """Every member sends the same update, very long."""
    direction = torch.linspace(-1.0, 2.0, len(k.theta), dtype=torch.float64)
    return Action((scale * direction).expand(len(k.members), -1), AttackState({"own": direction}), {"own": 1.0})


def real_gap(k: Knowledge, updates: Tensor, shift: Tensor) -> float:
    """How far from a wanted shift the rule moves, by the honest updates that the coalition simulates, without a sketch."""
    others, rule = simulated(k), k.rule
    assert rule is not None
    assert rule.combine is not None
    weights = torch.cat([k.weights, torch.full((len(others),), k.honest_weight / len(others), dtype=torch.float64)])
    moved = rule.combine(torch.cat([updates, others]), weights) - rule.combine(torch.cat([k.updates, others]), weights)
    return float((moved - shift).norm() / shift.norm())


def test_under_the_mean_the_attacks_own_updates_are_the_best() -> None:
    k = under(knowledge_of(norm_bound=1e6), weighted_mean)
    action = far_away(k)
    result = rehearsed(k, action)
    assert torch.equal(result.updates, action.updates)
    assert result.metrics["delivery_gap"] == pytest.approx(0.0, abs=1e-6)
    assert result.metrics["own"] == 1.0
    assert result.state is action.state


@pytest.mark.parametrize("rule", [median, krum])
def test_a_robust_rule_is_moved_further_than_by_the_attacks_own_updates(rule: Callable[[Tensor, Tensor], Tensor]) -> None:
    k = under(knowledge_of(m=4, norm_bound=1e6), rule)
    shift = 0.5 * torch.linspace(-1.0, 2.0, len(k.theta), dtype=torch.float64)
    plain = k.updates + shift * k.total_weight / k.weights.sum()
    result = rehearsed(k, Action(plain))
    assert real_gap(k, plain, shift) == pytest.approx(result.metrics["plain_gap"])
    assert real_gap(k, result.updates, shift) == pytest.approx(result.metrics["delivery_gap"])
    assert result.metrics["delivery_gap"] < min(result.metrics["plain_gap"], 1.0), "nearer than that, and than honest members"


def test_a_known_clip_is_part_of_the_rehearsal() -> None:
    """With a bound far below the wanted shift every length beyond it is the same: the output moves by m b / n along the shift."""
    k = dataclasses.replace(knowledge_of(norm_bound=1e6), weights=torch.ones(3, dtype=torch.float64))
    k = under(k, weighted_mean, before=Clip("l2", 0.01))
    result = rehearsed(k, far_away(k))
    shift = k.weights @ (far_away(k).updates - k.updates) / k.total_weight
    reach = 2 * 3 * 0.01 / N  # from all against it to all along it, at most
    assert 1.0 - reach / float(shift.norm()) <= result.metrics["delivery_gap"] < 1.0


@pytest.mark.parametrize("budget", ["client", "combined"])
def test_what_is_chosen_is_within_the_budget(budget: str) -> None:
    k = under(knowledge_of(norm_bound=0.3, budget=budget), median)
    sent = rehearsed(k, far_away(k)).updates
    length = sent.norm(dim=1).max() if budget == "client" else (k.weights @ (sent - k.updates) / k.total_weight).norm()
    assert float(length) <= 0.3 * (1 + 1e-9)


def test_honest_members_stay_honest() -> None:
    k = under(knowledge_of(), median)
    action = Action(k.updates, reason="nothing to do")
    assert rehearsed(k, action) is action


def test_an_alternating_delivery_adds_up_to_its_share_alone() -> None:
    odd = dataclasses.replace(knowledge_of(push_share=0.3), round=7)
    wanted = far_away(odd)
    sent = [alternating(dataclasses.replace(odd, round=round_), wanted).updates for round_ in (7, 8, 9)]
    for one in sent:
        torch.testing.assert_close(one.norm(dim=1), wanted.updates.norm(dim=1))
        cosines = torch.nn.functional.cosine_similarity(one, wanted.updates)
        torch.testing.assert_close(cosines, torch.full_like(cosines, 0.3))
    torch.testing.assert_close((sent[0] + sent[1]) / 2.0, 0.3 * wanted.updates)
    torch.testing.assert_close(sent[0], sent[2])
    assert float(torch.nn.functional.cosine_similarity(sent[0][0], sent[0][1], dim=0)) < 0.9, "each member hides behind a vector of its own"
    honest = Action(odd.updates, reason="nothing to do")
    assert alternating(odd, honest) is honest


def test_the_simulated_are_gradients_of_own_examples() -> None:
    k = knowledge_of()
    rows = simulated(k)
    assert rows.shape == (N - 3, len(k.theta))
    single = dataclasses.replace(k, validation=type(k.validation)(k.validation.inputs[:1], k.validation.labels[:1]))
    torch.testing.assert_close(simulated(single)[2], k.model.gradient(k.theta, *single.validation))


def test_a_sketch_keeps_distances_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    k = under(knowledge_of(m=4, norm_bound=1e6), median)
    whole = rehearsed(k, min_max(k, AttackState())).metrics
    monkeypatch.setattr("clients.delivery.SKETCH", len(k.theta) * 3 // 4)
    sketched = rehearsed(k, min_max(k, AttackState())).metrics
    assert len(k.theta) < SKETCH
    assert whole != sketched
    assert sketched["plain_gap"] == pytest.approx(whole["plain_gap"], rel=0.3)


def test_under_a_rehearsed_rule_an_exact_step_cancels_nothing() -> None:
    k = dataclasses.replace(
        knowledge_of(objective="erosion", scaling="exact", step=0.2, stealth_gamma=9.0, delivery="rehearse"), momentum=0.9
    )
    sent = accumulative(under(k, median), AttackState({"theta": k.theta + 1.0}, {"round": 0.0})).updates
    torch.testing.assert_close((k.combined(sent) - k.honest_mean).norm(), torch.tensor(0.2, dtype=torch.float64), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attack__knowledge": "coalition"}, "expected attack.knowledge = 'rule', 'omniscient' or 'updates' with attack.delivery"),
        ({"attack__surface": "images"}, "expected attack.surface = 'updates' with attack.delivery"),
    ],
)
def test_bad_keys(configure: Callable[..., Config], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(attack__delivery="rehearse", **keys)


@pytest.mark.parametrize(
    ("strategy", "why"), [("flwr.FedMedian", "it is a strategy of Flower"), ("byzfl.MoNNA", "it needs the server's data"), ("dgc", "")]
)
def test_a_rule_that_cannot_be_tried_is_refused(configure: Callable[..., Config], strategy: str, why: str) -> None:
    problem = rehearsal_problem(configure(strategy__name=strategy), "attack.delivery = 'rehearse'")
    assert problem.endswith(f"got strategy.name = {strategy!r}: {why}" if why else "")
    assert bool(problem) == bool(why)
