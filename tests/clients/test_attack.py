"""The accumulative attack: gradients of its objectives, the recovered offset, stealth, trigger and budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clients.accumulative.appraisal import Appraisal, appraise, first_look
from clients.accumulative.attack import accumulative, stealth
from clients.accumulative.objectives import OBJECTIVES, direction
from clients.accumulative.offset import masks, send, within_budget
from clients.accumulative.trigger import Rehearsal, project, rehearse, should_fire, trigger_vector
from clients.catalogue import ATTACKS
from clients.coalition import gather
from clients.honest import RoundInputs
from clients.knowledge import HonestSum, Knowledge, KnownRule, weighted_mean
from fl_sim.config.checks import LINE_SEARCHES
from fl_sim.config.keys import Attack, Config
from fl_sim.data.federation import load_federation
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from fl_sim.model.vectors import flat_parameters
from fl_sim.training.clipping import Clip
from fl_sim.training.local import weighted_sum
from fl_sim.wire.messages import AttackState, CoalitionOrder, PublicRule
from strategies.rule import Rule, stacked_mean
from tests.support.differences import central_differences
from tests.support.small_knowledge import M, N, combining, knowing, knowledge_of, shown


def combined(knowledge: Knowledge, updates: torch.Tensor) -> torch.Tensor:
    """What the server's weighted mean becomes."""
    return (knowledge.honest_sum + knowledge.weights @ updates) / knowledge.total_weight


@pytest.mark.parametrize("is_reversed", [True, False])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_direction_is_the_central_difference_of_its_objective(name: str, is_reversed: bool) -> None:
    k = knowledge_of(trigger="reversed" if is_reversed else "clean")
    trigger = trigger_vector(k, None)
    h = direction(OBJECTIVES[name], k, trigger, None)[0]
    for j, slope in central_differences(lambda theta: OBJECTIVES[name](k, theta, trigger).value, k.theta):
        assert float(h[j]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_lookahead_is_minus_log_of_the_probability_of_being_wrong() -> None:
    k = knowledge_of()
    trigger = torch.zeros_like(k.theta)
    p = k.model.logits(k.theta, k.validation_draw.inputs).softmax(dim=1)
    p_y = p[torch.arange(10), k.validation_draw.labels]
    value = OBJECTIVES["lookahead"](k, k.theta, trigger).value
    torch.testing.assert_close(value, -torch.log1p(-p_y).mean())


def test_descending_an_objective_does_what_it_says() -> None:
    """Closed-form signs of a small step along -h_t: with `inner` the (reversed) trigger hurts more, with `lookahead-unbounded` the loss
    after it rises, with `lookahead` the chance to be wrong after it, with `cosine` the two gradients turn towards each other."""
    k = knowledge_of(norm_bound=1.0)
    trigger = trigger_vector(k, None)

    def after(theta: torch.Tensor) -> float:
        return float(k.model.loss(theta - k.server_lr * trigger, *k.validation_draw))

    def harm(theta: torch.Tensor) -> float:
        return after(theta) - float(k.model.loss(theta, *k.validation_draw))

    def doubt(theta: torch.Tensor) -> float:
        p = k.model.logits(theta - k.server_lr * trigger, k.validation_draw.inputs).softmax(dim=1)
        return float((1.0 - p[torch.arange(len(p)), k.validation_draw.labels]).log().mean())

    for objective, rises in (("inner", harm), ("lookahead", doubt), ("lookahead-unbounded", after)):
        h = direction(OBJECTIVES[objective], k, trigger, None)[0]
        assert rises(k.theta - 0.01 * h / h.norm()) > rises(k.theta)
    h = direction(OBJECTIVES["cosine"], k, trigger, None)[0]
    near, far = (k.theta - 0.01 * h / h.norm()), k.theta

    def cosine(theta: torch.Tensor) -> float:
        left, right = k.model.gradient(theta, *k.trigger_batch), k.model.gradient(theta, *k.validation_draw)
        return float(torch.dot(left, right) / (left.norm() * right.norm()))

    assert cosine(near) > cosine(far)


@pytest.mark.parametrize("m", [1, 3, 10])
def test_recovered_offset_makes_the_combined_update_the_target(m: int) -> None:
    k = knowledge_of(m, masks=2.0)
    if m == N:
        k = dataclasses.replace(k, seen=HonestSum(torch.zeros_like(k.theta), 0.0))
    target = torch.linspace(-1.0, 1.0, len(k.theta), dtype=torch.float64)
    torch.testing.assert_close(combined(k, send(k, target)), target)


def test_without_omniscience_the_honest_sum_is_the_members_mean() -> None:
    k = knowledge_of()
    plain = dataclasses.replace(k, seen=None)
    mean = (k.weights @ k.updates) / k.weights.sum()
    torch.testing.assert_close(plain.honest_mean, mean)
    assert plain.honest_weight == pytest.approx(2.0 * (N - M))


def test_masks_differ_and_cancel() -> None:
    k = knowledge_of(masks=2.0)
    drawn = masks(k)
    torch.testing.assert_close(k.weights @ drawn, torch.zeros_like(k.theta), atol=1e-12, rtol=0.0)
    assert len({tuple(row.tolist()) for row in drawn}) == M
    assert not masks(knowledge_of(m=1, masks=2.0)).any()
    assert not masks(knowing(k, before=Clip("l2", 1.0))).any()


def test_budget_limits_the_shift_of_the_combined_update_whatever_the_attack_sent() -> None:
    k = knowledge_of(norm_bound=0.5)
    wild = k.updates + 1000.0
    kept, shift = within_budget(k, wild)
    moved = float(torch.linalg.vector_norm(combined(k, kept) - combined(k, k.updates)))
    assert shift > 0.5
    assert moved == pytest.approx(0.5)
    small = k.updates + 1e-6
    assert within_budget(k, small)[0] is small


def test_the_budget_of_a_client_limits_the_norm_of_each_update() -> None:
    """Pang et al. 2021, Algorithm 2: `norm(A) <= eta`, also if the honest update is longer; what is inside the ball is untouched."""
    k = knowledge_of(norm_bound=2.0, budget="client")
    sent = torch.cat([k.updates[:1] * 0.1, k.updates[1:2] * 1e6, k.updates[2:] * 1e25])
    kept, shift = within_budget(k, sent)
    assert torch.equal(kept[0], sent[0])
    torch.testing.assert_close(kept.norm(dim=1)[1:], torch.full((2,), 2.0, dtype=kept.dtype))
    torch.testing.assert_close(kept[1] / 2.0, sent[1] / sent[1].norm())
    assert shift > 1e20
    small = dataclasses.replace(k, updates=k.updates.float(), weights=k.weights.float())
    long = within_budget(small, torch.full_like(small.updates, 1e30))[0]
    torch.testing.assert_close(long.norm(dim=1), torch.full((M,), 2.0))  # although the square is beyond float32
    assert not within_budget(small, torch.full_like(small.updates, float("inf")))[0].isfinite().any()


def test_a_coalition_with_the_budget_of_a_client_sends_the_nearest_updates() -> None:
    """Along the recovered offset, at the bound, without masks: as against a known clip of each update; the tighter of the two counts."""
    k = knowledge_of(norm_bound=0.5, budget="client", masks=2.0)
    target = torch.linspace(-1.0, 1.0, len(k.theta), dtype=torch.float64)
    offset = k.total_weight * target - k.honest_sum
    expected = (0.5 * offset / offset.norm()).expand(M, -1)
    torch.testing.assert_close(send(k, target), expected)
    torch.testing.assert_close(within_budget(k, send(k, target))[0], expected)
    torch.testing.assert_close(send(knowing(k, before=Clip("l2", 0.1)), target).norm(dim=1), torch.full((M,), 0.1, dtype=torch.float64))
    both = send(knowing(k, before=Clip("linf", 0.01)), target)
    assert float(both.abs().max()) <= 0.01 + 1e-12
    assert bool((both.norm(dim=1) <= 0.5 + 1e-12).all())
    free = knowledge_of(budget="client", norm_bound=math.inf)
    torch.testing.assert_close(combined(free, send(free, target)), target)


def test_a_zero_gradient_gives_a_zero_trigger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not NaN: in float32 the factor of a length near 0 is infinite."""
    k = knowledge_of(norm_bound=10.0)
    for gradient in (torch.zeros(53), torch.full((53,), 1e-44)):
        monkeypatch.setattr(FlatModel, "gradient", lambda self, theta, *_, gradient=gradient: gradient)
        assert torch.equal(trigger_vector(k, None), torch.zeros(53))
        action = accumulative(dataclasses.replace(k, phase="trigger", theta=k.theta), AttackState())
        assert action.metrics["fired"] == 0.0
        assert action.reason == "the gradient of the trigger batch is zero"
        assert torch.equal(action.updates, k.updates)


def test_stealth_is_one_at_the_start_and_zero_after_gamma() -> None:
    assert [stealth(loss, 1.0, 0.5) for loss in (0.5, 1.0, 1.25, 1.5, 9.0)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert stealth(9.0, 1.0, math.inf) == 1.0
    assert stealth(math.nan, 1.0, 0.5) == 0.0


def test_trigger_vectors() -> None:
    k = knowledge_of(norm_bound=0.25)
    gradient = k.model.gradient(k.theta, *k.trigger_batch)
    torch.testing.assert_close(trigger_vector(k, None), -0.25 * gradient / gradient.norm())
    clean = dataclasses.replace(k, settings=Attack.model_validate({"trigger": "clean", "norm-bound": 1e6}))
    torch.testing.assert_close(trigger_vector(clean, None), gradient)
    summed = dataclasses.replace(k, settings=Attack.model_validate({"trigger-refresh": "accumulate", "alpha": 0.5, "norm-bound": 1e6}))
    torch.testing.assert_close(trigger_vector(summed, gradient), 0.5 * gradient)
    scaled = dataclasses.replace(k, settings=Attack.model_validate({"trigger-scale": 2.0, "norm-bound": 1e6}))
    torch.testing.assert_close(trigger_vector(scaled, None), -2.0 * gradient)
    assert float(project(gradient, 0.1).norm()) == pytest.approx(0.1)


def test_a_known_rule_is_reckoned_with() -> None:
    """What the coalition expects of its rows is what the clips leave of them."""
    k, target = knowledge_of(), torch.full((53,), 10.0, dtype=torch.float64)
    torch.testing.assert_close(k.combined(send(k, target)), target)
    after = knowing(k, after=Clip("linf", 2.0))
    assert float(after.combined(send(after, target)).abs().max()) == pytest.approx(2.0)
    before = knowing(k, before=Clip("l2", 3.0))
    rows = send(before, target)
    assert rows.norm(dim=1).tolist() == pytest.approx([3.0] * M), "exactly at the per-client bound"
    towards = before.total_weight * target - before.honest_sum
    torch.testing.assert_close(rows[0], 3.0 * towards / towards.norm())
    torch.testing.assert_close(before.combined(rows), combined(before, rows))
    torch.testing.assert_close(before.combined(1000.0 * rows), combined(before, rows))


@given(m=st.integers(1, 10), bound=st.floats(1e-3, 1e3), scale=st.floats(0.0, 1e6), seed=st.integers(0, 99))
def test_the_malicious_part_of_the_mean_is_within_m_b_over_n(m: int, bound: float, scale: float, seed: int) -> None:
    """Clip-before: whatever the target, and whether or not the coalition knows the rule."""
    k = dataclasses.replace(knowledge_of(m), weights=torch.ones(m, dtype=torch.float64), seen=None)
    target = scale * torch.randn(53, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rule = Rule(before=Clip("l2", bound))
    for knows in (k, knowing(k, before=rule.before)):
        sent = send(knows, target)
        everyone = torch.cat([sent, torch.zeros(N - m, 53, dtype=torch.float64)])
        part = stacked_mean(rule, everyone, torch.ones(N, dtype=torch.float64), torch.arange(N))
        assert float(part.norm()) <= m * bound / N * (1 + 1e-9)
        assert float(weighted_sum(sent, [1.0] * m, rule.before).total.norm()) <= m * bound * (1 + 1e-9)


def test_a_rehearsal_tries_the_draw_first_and_then_the_whole_set() -> None:
    """It fires on what all of S_val says; what the look-ahead saw on the draw is not computed again."""
    k = dataclasses.replace(knowledge_of(norm_bound=1.0), drawn=torch.arange(3))
    trigger, own = trigger_vector(k, None), Appraisal(0.1, 90.0, 0.1, 90.0)
    broken = k.theta - k.server_lr * trigger
    draw, whole = k.model.score(broken, *k.validation_draw)[0], k.model.score(broken, *k.validation)[0]
    assert draw != whole
    late = dataclasses.replace(k, round=5, total_rounds=5, settings=k.settings.model_copy(update={"fire_from": 4}))
    own = own._replace(accuracy=k.model.score(k.theta, *k.validation)[0], start_accuracy=0.0)
    assert rehearse(late, trigger, own, None) == Rehearsal(whole, whole <= 65.0)
    assert rehearse(late, trigger, own, 99.0) == Rehearsal(99.0, succeeds=False), "the draw was hopeless: nothing more is tried"
    assert OBJECTIVES["lookahead"](k, k.theta, trigger).rehearsed == pytest.approx(draw)
    strict = own._replace(start_accuracy=own.accuracy + 20.0)
    assert not rehearse(late, trigger, strict, None).succeeds, "its own accuracy is not back up"


def test_the_appraisal_is_exact_on_the_whole_set_and_needs_only_the_draw() -> None:
    k = knowledge_of()
    start = first_look(k, AttackState())
    moved = dataclasses.replace(k, theta=k.theta + 0.1, drawn=torch.arange(20))
    accuracy, loss = k.model.score(moved.theta, *k.validation)
    now = appraise(moved, start)
    assert (now.loss, now.accuracy) == (pytest.approx(loss), pytest.approx(accuracy))
    part = appraise(dataclasses.replace(k, theta=k.theta + 0.1), start)
    losses, _ = k.model.examples(k.theta + 0.1, *k.validation_draw)
    assert part.loss == pytest.approx(float(start["losses"].mean() + (losses - start["losses"][::2]).mean()))
    assert appraise(k, start).loss == pytest.approx(float(start["losses"].mean())), "nothing moved: no noise from the draw"


def test_fire_rule() -> None:
    assert should_fire(15.0, 97.5, 99.0, 0.0)
    assert not should_fire(15.1, 99.0, 99.0, 0.0)
    assert not should_fire(10.0, 97.4, 99.0, 0.0)
    assert should_fire(27.5, 99.0, 99.0, 0.5)
    assert should_fire(65.0, 99.0, 99.0, 1.0)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_relative_scaling_sets_the_length_of_the_push(objective: str) -> None:
    k = knowledge_of(objective=objective, rho=0.5)
    action = accumulative(k, AttackState())
    push = float(torch.linalg.vector_norm(combined(k, action.updates) - k.honest_mean))
    length = 0.5 * float(torch.linalg.vector_norm(k.honest_mean))
    assert push == pytest.approx(action.metrics["push_norm"])
    assert push <= length * (1 + 1e-9)
    if objective != "lookahead":
        assert push == pytest.approx(length)


def test_lambda_scaling_is_the_papers() -> None:
    k = knowledge_of(scaling="lambda", objective="inner", **{"lambda": 0.25})
    trigger = trigger_vector(k, None)
    h = direction(OBJECTIVES["inner"], k, trigger, None)[0]
    torch.testing.assert_close(combined(k, accumulative(k, AttackState()).updates), k.honest_mean + 0.25 * h)


def test_in_place_of_the_honest_updates_only_the_direction_moves_the_model() -> None:
    """The released code of Pang et al. 2021: nobody trains in the phase. While stealth pauses, and in a control, the coalition is honest."""
    k = knowledge_of(keep_honest=False, objective="cosine", scaling="lambda", masks=0.5, **{"lambda": 0.25})
    h = direction(OBJECTIVES["cosine"], k, trigger_vector(k, None), None)[0]
    action = accumulative(k, AttackState())
    torch.testing.assert_close(combined(k, action.updates), 0.25 * h)
    assert action.metrics["push_norm"] == pytest.approx(0.25 * float(torch.linalg.vector_norm(h)))
    assert torch.equal(accumulative(dataclasses.replace(k, accumulate=False), AttackState()).updates, k.updates)
    better = {"losses": torch.full((20,), -1e3, dtype=torch.float64), "hits": torch.ones(20, dtype=torch.float64)}
    assert torch.equal(accumulative(k, AttackState(better)).updates, k.updates)
    sent, shift = within_budget(knowing(knowledge_of(keep_honest=False, norm_bound=1e-3)), action.updates)
    assert shift > 1e-3
    assert float(torch.linalg.vector_norm(combined(k, sent) - k.honest_mean)) == pytest.approx(1e-3), "to cancel costs budget too"


def test_trigger_round_sends_the_trigger_and_a_control_only_differs_before() -> None:
    k = knowledge_of(norm_bound=1.0)
    fired = accumulative(dataclasses.replace(k, phase="trigger"), AttackState())
    assert fired.metrics["fired"] == 1.0
    torch.testing.assert_close(combined(k, fired.updates), trigger_vector(k, None))
    control = accumulative(dataclasses.replace(k, accumulate=False), AttackState())
    assert torch.equal(control.updates, k.updates)
    again = accumulative(dataclasses.replace(k, accumulate=False, phase="trigger"), AttackState())
    assert torch.equal(again.updates, fired.updates)


@pytest.mark.parametrize("phase", ["accumulate", "trigger"])
@pytest.mark.parametrize("name", list(ATTACKS))
def test_contract_of_every_attack(name: str, phase: str) -> None:
    """Shape, dtype, finite, deterministic, no mutation of what it was given."""
    k = dataclasses.replace(knowledge_of(), phase=phase)
    if name in LINE_SEARCHES:
        k = combining(shown(k, torch.randn(7, len(k.theta), dtype=torch.float64)), weighted_mean)
    before = [k.theta.clone(), k.updates.clone(), k.honest_sum.clone()]
    first, second = ATTACKS[name](k, AttackState()), ATTACKS[name](k, AttackState())
    assert first.updates.shape == k.updates.shape
    assert first.updates.dtype == k.updates.dtype
    assert bool(torch.isfinite(first.updates).all()) == (name != "inf")
    assert torch.equal(first.updates, second.updates)
    assert first.metrics == second.metrics
    assert first.metrics.get("fired", float(phase == "trigger")) == float(phase == "trigger")
    assert all(torch.equal(now, then) for now, then in zip([k.theta, k.updates, k.honest_sum], before, strict=True))


@pytest.mark.parametrize(
    ("level", "rule", "seen"), [("coalition", False, False), ("rule", True, False), ("omniscient", True, True), ("updates", True, True)]
)
def test_a_coalition_holds_what_its_level_says_and_no_more(configure: Callable[..., Config], level: str, rule: bool, seen: bool) -> None:
    config = configure(attack__knowledge=level, strategy__name="clip-before", strategy__bound=2.0)
    federation, clip = load_federation(config), Clip("l2", 2.0)
    module = new_module(config, federation)
    inputs = RoundInputs(config, federation, FlatModel(module), flat_parameters(module), 1, clip, stacked=False)
    total = torch.ones(len(inputs.theta)) if seen else None  # the grid sends it to nobody else
    rows = torch.ones(2, len(inputs.theta)) if level == "updates" else None
    order = CoalitionOrder(
        (3, 5), "accumulate", True, 12, AttackState(), PublicRule("clip-before", clip, step_size=0.3), total, 7.0, rows, (3.0, 4.0)
    )
    held = gather(inputs, order, federation.cohort([3, 5], 1, 1, 10), torch.zeros(2, len(inputs.theta)))
    assert held.rule == (KnownRule("clip-before", clip, None, weighted_mean) if rule else None)
    assert held.server_lr == 0.3, "the step is public"
    assert (held.seen is not None) == seen
    assert (held.shown is not None) == (level == "updates")
    assert held.bound == (clip if rule else None)


def test_a_linf_bound_is_filled_coordinate_by_coordinate() -> None:
    """The nearest point of the linf ball: nearer to the target than the rescaled vector, and untouched by the server's clip."""
    k = knowing(knowledge_of(1), before=Clip("linf", 0.5))
    target = 3.0 * torch.arange(1.0, len(k.theta) + 1.0, dtype=torch.float64)
    sent, wanted = send(k, target)[0], send(knowing(k), target)[0]
    torch.testing.assert_close(sent, wanted.clamp(-0.5, 0.5))
    rescaled = wanted * (0.5 / wanted.abs().max())
    assert float((sent - wanted).norm()) < float((rescaled - wanted).norm())
