"""The generic attacks in closed form, and the adaptive parts of the accumulative one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from clients.accumulative.adaptive import aligned, discrepancy, history_of, log_probs, remember
from clients.accumulative.attack import accumulative
from clients.accumulative.objectives import OBJECTIVES, direction
from clients.accumulative.trigger import trigger_vector
from clients.baselines.min_max import perturbation
from clients.catalogue import ATTACKS
from clients.knowledge import Knowledge
from fl_sim.training.clipping import Clip, norms
from fl_sim.training.divergence import kl
from fl_sim.wire.messages import AttackState
from tests.support.small_knowledge import knowing, knowledge_of


def sends(name: str, knowledge: Knowledge) -> Tensor:
    return ATTACKS[name](knowledge, AttackState()).updates


def test_stand_ins_are_the_members_updates_around_the_honest_mean() -> None:
    k = knowledge_of()
    torch.testing.assert_close(k.honest_rows().mean(dim=0), k.honest_mean)
    torch.testing.assert_close(k.honest_rows().std(dim=0), k.updates.std(dim=0))
    assert dataclasses.replace(k, seen=None).honest_rows() is k.updates


@pytest.mark.parametrize(("name", "factor"), [("sign-flip", -1.0), ("ipm", -2.0)])
def test_sign_flip_and_ipm_send_a_multiple_of_the_mean(name: str, factor: float) -> None:
    k = knowledge_of()
    torch.testing.assert_close(sends(name, k), (factor * k.honest_mean).expand(3, -1), rtol=1e-5, atol=1e-6)  # ByzFL is float32


def test_alie_is_mean_plus_tau_deviations() -> None:
    k = knowledge_of(tau=0.5)
    expected = k.honest_mean + 0.5 * k.updates.std(dim=0)
    torch.testing.assert_close(sends("alie", k), expected.expand(3, -1), rtol=1e-5, atol=1e-6)


def test_mimic_copies_one_member() -> None:
    k = knowledge_of()
    torch.testing.assert_close(sends("mimic", k), k.updates[0].expand(3, -1), rtol=1e-6, atol=1e-6)


def test_gaussian_has_its_deviation_and_differs_between_members_and_rounds() -> None:
    k = knowledge_of(tau=4.0)
    noise = sends("gaussian", k)
    assert float(noise.std()) == pytest.approx(4.0, rel=0.2)
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, sends("gaussian", dataclasses.replace(k, own_seed=2)))


def test_label_flip_is_the_gradient_on_flipped_labels() -> None:
    k = knowledge_of()
    for row, sent in enumerate(sends("label-flip", k)):
        inputs, labels = k.batches.inputs[row, 0], k.batches.labels[row, 0]
        torch.testing.assert_close(sent, k.model.gradient(k.theta, inputs, 2 - labels))


@pytest.mark.parametrize("kind", ["std", "unit", "sign"])
def test_min_max_and_min_sum_reach_exactly_their_bound(kind: str) -> None:
    k = knowledge_of(m=5, perturbation=kind)
    rows = k.honest_rows()
    apart = torch.stack([(row - rows).norm(dim=1) for row in rows])
    far = (sends("min-max", k)[0] - rows).norm(dim=1)
    assert float(far.max()) == pytest.approx(float(apart.max()))
    total = (sends("min-sum", k)[0] - rows).norm(dim=1).square().sum()
    assert float(total) == pytest.approx(float(apart.square().sum(dim=1).max()))
    step = sends("min-max", k)[0] - rows.mean(dim=0)
    assert float(torch.nn.functional.cosine_similarity(step, perturbation(rows, kind), dim=0)) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["alie", "min-max", "min-sum"])
def test_a_single_member_has_no_spread_to_hide_in(name: str) -> None:
    k = knowledge_of(m=1)
    torch.testing.assert_close(sends(name, k)[0], k.honest_mean, rtol=1e-5, atol=1e-6)


def test_discrepancy_is_the_mean_divergence_from_earlier_outputs() -> None:
    k = knowledge_of(discrepancy_weight=1.0)
    then = k.theta + 0.3
    history = torch.stack([log_probs(k, then), log_probs(k, k.theta)])
    p, q = history[0].exp(), log_probs(k, k.theta).exp()
    expected = (p * (p / q).log()).sum(dim=1).mean() / 2  # the second reference is the model itself: 0
    torch.testing.assert_close(discrepancy(k, k.theta, history), expected)
    assert float(kl(history[0], history[0]).abs().max()) < 1e-12


def test_history_keeps_the_first_model_and_the_one_lag_rounds_back() -> None:
    k = knowledge_of(discrepancy_weight=1.0, discrepancy_lag=2)
    state, outputs = AttackState(), []
    for step in range(5):
        now = dataclasses.replace(k, theta=k.theta + 0.1 * step)
        outputs.append(log_probs(now, now.theta))
        history = history_of(now, state)
        assert history is not None
        torch.testing.assert_close(history[0], outputs[0])
        torch.testing.assert_close(history[1], outputs[max(step - 2, 0)])
        state = AttackState(remember(now, history, state))
    assert history_of(knowledge_of(), state) is None


def test_the_constraint_turns_the_direction_by_its_gradient() -> None:
    k = knowledge_of(discrepancy_weight=2.5)
    trigger, history = trigger_vector(k, None), torch.stack([log_probs(k, k.theta + 0.3)])
    free = direction(OBJECTIVES["lookahead"], k, trigger, None)[0]
    leaf = k.theta.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(discrepancy(k, leaf, history), leaf)
    torch.testing.assert_close(direction(OBJECTIVES["lookahead"], k, trigger, history)[0], free + 2.5 * slope)


@pytest.mark.parametrize("cosine", [0.0, 0.3, 1.0])
def test_aligned_updates_keep_their_cosine_and_their_length(cosine: float) -> None:
    generator = torch.Generator().manual_seed(3)
    rows, momentum = torch.randn(20, 6, generator=generator), torch.randn(6, generator=generator)
    rows[0] = -2.0 * momentum
    kept = aligned(rows, momentum, cosine)
    cosines = torch.nn.functional.cosine_similarity(kept, momentum.expand_as(kept), dim=1)
    assert float(cosines.min()) >= cosine - 1e-5
    torch.testing.assert_close(kept[1:].norm(dim=1), rows[1:].norm(dim=1))
    given = torch.nn.functional.cosine_similarity(rows, momentum.expand_as(rows), dim=1)
    free = given >= cosine
    assert torch.equal(kept[free], rows[free]), "what is fine already is left alone"
    assert torch.equal(aligned(torch.zeros(1, 6), momentum, 0.5), torch.zeros(1, 6))
    assert torch.equal(aligned(rows, torch.zeros(6), 0.9), rows), "no momentum, nothing to align with"


@pytest.mark.parametrize("bound", [Clip("l2", 0.5), Clip("linf", 0.5), None], ids=["l2", "linf", "norm of an honest update"])
def test_an_aligned_attack_stays_under_the_bound_and_follows_the_last_step(bound: Clip | None) -> None:
    k = knowledge_of(alignment=0.6)
    k = knowing(k, before=bound) if bound else k
    first = accumulative(k, AttackState())
    moved = dataclasses.replace(k, theta=k.theta - 0.1 * torch.ones_like(k.theta), phase="trigger")
    sent = accumulative(moved, first.state).updates
    along: Any = sent @ torch.ones(53, dtype=torch.float64) / 53**0.5
    assert float((along / sent.norm(dim=1)).min()) == pytest.approx(0.6)
    if bound:
        assert float(norms(sent, bound.norm).max()) == pytest.approx(bound.bound, rel=0.35)
        assert float(norms(sent, bound.norm).max()) <= bound.bound * (1 + 1e-9)
    else:
        assert float(sent.norm(dim=1).max()) == pytest.approx(float(k.updates.norm(dim=1).median()))
