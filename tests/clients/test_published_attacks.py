"""The published attacks on robust rules: each against NumPy or a closed form, and against the rule that it was made for."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clients.accumulative.offset import within_budget
from clients.baselines import poisonedfl as poisoned
from clients.baselines.fang import krum_strength
from clients.catalogue import ATTACKS
from clients.knowledge import Knowledge, weighted_mean
from experiments.launch.name_checks import name_problems
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.rng.streams import torch_stream
from fl_sim.training.clipping import Clip, clip
from fl_sim.wire.messages import AttackState
from strategies.byzfl_rules import byzfl_combine
from tests.support import attack_oracles as oracles
from tests.support.small_knowledge import combining, knowledge_of, shown

NEW = ("fang-krum", "fang-trim", "optimal-alie", "optimal-ipm", "mpaf", "poisonedfl", "free-rider", "random-weights")
Configure = Any


def sends(name: str, knowledge: Knowledge) -> Tensor:
    return ATTACKS[name](knowledge, AttackState()).updates


def gradients(seed: int, h: int, d: int = 53) -> Tensor:
    """Honest updates (h, d) around a common direction."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(d, generator=generator, dtype=torch.float64) + torch.randn(h, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("h", "copies"), [(12, 4), (12, 1), (7, 6), (5, 4), (3, 1), (1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_the_strength_against_krum_is_that_of_numpy(seed: int, h: int, copies: int) -> None:
    rows = gradients(seed, h)
    direction = -rows.mean(dim=0).sign()
    expected = oracles.fang_krum(list(rows.numpy()), direction.numpy(), copies)
    assert expected > 0.0 or copies == 1, "one copy may be too few"
    assert krum_strength(rows, direction, copies) == pytest.approx(expected, rel=1e-12)


def test_fang_krum_without_a_strength_is_honest_and_says_so() -> None:
    """Honest updates that are all equal have score 0, and any other vector a larger one, unless enough copies of it are sent."""
    k = shown(knowledge_of(m=2), torch.ones(9, 53, dtype=torch.float64))
    action = ATTACKS["fang-krum"](k, AttackState())
    assert action.reason == "Krum selects no update of the attack"
    assert torch.equal(action.updates, k.updates)


def test_fang_krum_with_partial_knowledge_adds_copies_until_krum_selects_one() -> None:
    k = dataclasses.replace(knowledge_of(m=5), seen=None)
    rows, direction = list(k.updates.numpy()), -np.sign(k.honest_mean.numpy())
    strengths = [oracles.fang_krum(rows, direction, copies) for copies in range(1, 6)]
    first = next(strength for strength in strengths if strength)
    torch.testing.assert_close(sends("fang-krum", k), torch.from_numpy(first * direction).expand(5, -1), rtol=1e-12, atol=0.0)


def test_fang_trim_is_that_of_numpy_with_full_and_with_partial_knowledge() -> None:
    k = shown(knowledge_of(m=4), gradients(0, 9) - 1.0)
    assert k.shown
    u = torch.rand(4, 53, generator=torch_stream(k.own_seed, "fang-trim"), dtype=torch.float64).numpy()
    for row, draws in zip(sends("fang-trim", k).numpy(), u, strict=True):
        np.testing.assert_allclose(row, oracles.fang_trim(list(k.shown.rows.numpy()), k.honest_mean.numpy(), draws), rtol=1e-12)
    partial = dataclasses.replace(k, shown=None, seen=None)
    mean, std = k.updates.numpy().mean(axis=0), k.updates.numpy().std(axis=0)
    np.testing.assert_allclose(
        sends("fang-trim", partial).numpy(), mean - np.sign(partial.honest_mean.numpy()) * (3.0 + u) * std, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(("name", "factor"), [("alie", 1.5), ("sign-flip", None), ("ipm", None), ("mimic", None)])
def test_with_single_updates_they_are_the_published_ones(name: str, factor: float | None) -> None:
    """Over every honest update, unweighted, without the members' own."""
    rows = gradients(1, 8)
    mean, std = rows.numpy().mean(axis=0), rows.numpy().std(axis=0, ddof=1)
    expected = {"alie": mean + (factor or 0.0) * std, "sign-flip": -mean, "ipm": -2.0 * mean, "mimic": rows[0].numpy()}[name]
    np.testing.assert_allclose(sends(name, shown(knowledge_of(m=1), rows)).numpy(), expected[None], rtol=1e-5, atol=1e-5)  # ByzFL: float32


@pytest.mark.parametrize("kind", ["std", "unit", "sign"])
def test_min_max_and_min_sum_with_single_updates_are_the_published_search(kind: str) -> None:
    """The released search by halved steps ends at our root (Shejwalkar and Houmansadr 2021, Algorithm 1)."""
    rows = gradients(2, 8).numpy()
    mean = rows.mean(axis=0)
    p = {"std": -rows.std(axis=0), "unit": -mean / np.linalg.norm(mean), "sign": -np.sign(mean)}[kind]
    apart = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    for name, largest, of in [("min-max", apart.max(), np.max), ("min-sum", apart.sum(axis=1).max(), np.sum)]:
        gamma, step, good = 50.0, 50.0, 0.0
        while abs(good - gamma) > 1e-9:
            fits = of(((mean + gamma * p - rows) ** 2).sum(axis=1)) <= largest
            good = gamma if fits else good
            gamma, step = gamma + step / 2 if fits else gamma - step / 2, step / 2
        sent = sends(name, shown(knowledge_of(m=2, perturbation=kind), torch.from_numpy(rows)))
        assert sent.shape == (2, 53)
        np.testing.assert_allclose(sent.numpy(), np.tile(mean + good * p, (2, 1)), atol=1e-6)


def test_the_line_searches_double_their_step_as_long_as_the_mean_moves_farther() -> None:
    """Against the mean the farthest of ByzFL's 20 factors, 0, 10, 30, 70, …, is the last: 10 * (2 ** 19 - 1)."""
    rows = gradients(3, 8)
    k = combining(shown(knowledge_of(m=2), rows), weighted_mean)
    factor = 10.0 * (2**19 - 1)
    np.testing.assert_allclose(sends("optimal-ipm", k)[0].numpy(), -factor * rows.numpy().mean(axis=0), rtol=1e-4, atol=10.0)
    expected = rows.numpy().mean(axis=0) + factor * rows.numpy().std(axis=0, ddof=1)
    np.testing.assert_allclose(sends("optimal-alie", k)[0].numpy(), expected, rtol=1e-4)


def test_the_line_searches_see_the_clips_of_the_rule() -> None:
    """Behind a clip of each update the result stops moving, and so does the search."""
    k = combining(shown(knowledge_of(m=2), gradients(3, 8)), weighted_mean, before=Clip("l2", 5.0))
    assert float(sends("optimal-ipm", k)[0].norm()) < 1e3 * float(k.honest_mean.norm())


def test_mpaf_pulls_to_one_new_model_in_all_rounds() -> None:
    k = knowledge_of(tau=3.0)
    first = ATTACKS["mpaf"](k, AttackState())
    base = k.random_model(k.own_seed)
    torch.testing.assert_close(first.updates, (3.0 * (k.theta - base)).expand(3, -1))
    later = dataclasses.replace(k, theta=k.theta + 1.0, own_seed=k.own_seed + 1)
    torch.testing.assert_close(ATTACKS["mpaf"](later, first.state).updates, (3.0 * (later.theta - base)).expand(3, -1))
    moved = k.theta - k.server_lr / (3.0 * k.server_lr) * first.updates[0]
    torch.testing.assert_close(moved, base)


def test_a_free_rider_sends_the_last_combined_update_back() -> None:
    k = knowledge_of()
    first = ATTACKS["free-rider"](k, AttackState())
    assert not first.updates.any(), "no step yet"
    update = torch.arange(53, dtype=torch.float64)
    later = dataclasses.replace(k, round=2, theta=k.theta - k.server_lr * update)
    torch.testing.assert_close(ATTACKS["free-rider"](later, first.state).updates, update.expand(3, -1))
    with_momentum = dataclasses.replace(later, momentum=0.75)
    torch.testing.assert_close(ATTACKS["free-rider"](with_momentum, first.state).updates, (update / 4.0).expand(3, -1))
    after_three = dataclasses.replace(later, round=4)
    torch.testing.assert_close(ATTACKS["free-rider"](after_three, first.state).updates, (update / 3.0).expand(3, -1))
    noisy = ATTACKS["free-rider"](dataclasses.replace(later, settings=knowledge_of(tau=0.5).settings), first.state).updates - update
    assert float(noisy.std()) == pytest.approx(0.5, rel=0.2)
    assert not torch.equal(noisy[0], noisy[1])


@pytest.mark.parametrize("tau", [0.0, 2.0])
def test_random_weights_are_uniform(tau: float) -> None:
    sent, limit = sends("random-weights", knowledge_of(tau=tau)), tau or 1e-3
    assert float(sent.abs().max()) <= limit
    assert float(sent.std()) == pytest.approx(limit / 3**0.5, rel=0.15)
    assert not torch.equal(sent[0], sent[1])


@pytest.mark.parametrize("drift", [0.0, 1.0], ids=["the defence holds", "the model follows"])
def test_poisonedfl_is_that_of_numpy_over_two_tests_of_its_success(drift: float) -> None:
    """103 rounds. Where the model does not follow the signs, c falls from 8 to 5.6 and 3.92; where it does, it stays."""
    generator = torch.Generator().manual_seed(4)
    k, state = knowledge_of(), AttackState()
    sent, thetas, factors = list[np.ndarray](), list[np.ndarray](), list[float]()
    for round_ in range(1, 104):
        now = dataclasses.replace(k, round=round_)
        action = ATTACKS["poisonedfl"](now, state)
        state = action.state
        sent, thetas = [*sent, action.updates[1].numpy()], [*thetas, now.theta.numpy()]
        factors.append(action.metrics.get("factor", 8.0))
        step = torch.randn(53, generator=generator, dtype=torch.float64) + drift * 5.0 * state.arrays["signs"]
        k = dataclasses.replace(k, theta=k.theta - k.server_lr * step)
    signs = state.arrays["signs"]
    assert set(signs.tolist()) == {-1.0, 1.0}
    expected = oracles.poisonedfl(thetas, sent, signs.numpy(), k.server_lr, poisoned.critical_count(53))
    np.testing.assert_allclose(np.stack(sent), np.stack(expected), rtol=1e-9, atol=1e-9)
    assert sorted(set(factors)) == pytest.approx([8.0] if drift else [3.92, 5.6, 8.0])


@pytest.mark.parametrize(("d", "published"), [(1204682, 603618), (139960, 70415), (717924, 359948), (145212, 73049)])
def test_the_critical_count_is_that_of_the_released_code(d: int, published: int) -> None:
    assert poisoned.critical_count(d) == published


def rule_of(name: str, m: int) -> Any:
    """A rule of ByzFL, or Krum as it was published (ByzFL's counts one neighbour more)."""
    if name == "Krum":
        return lambda updates, weights, clients: updates[oracles.krum_winner(list(updates.numpy()), m)]
    return byzfl_combine(name, {} if name in ("Median", "Average") else {"f": m}, seed=0)


AGAINST = [
    ("fang-krum", "Krum"),
    ("fang-trim", "TrMean"),
    ("fang-trim", "Median"),
    ("alie", "Median"),
    ("alie", "TrMean"),
    ("min-max", "TrMean"),
    ("min-sum", "Median"),
    ("sign-flip", "Average"),
    ("ipm", "Average"),
    ("mimic", "Average"),
    ("optimal-alie", "TrMean"),
    ("optimal-ipm", "Median"),
]


@pytest.mark.parametrize(("name", "rule"), AGAINST)
@pytest.mark.parametrize("seed", range(4))
def test_an_attack_moves_the_rule_that_it_was_made_for_its_own_way(name: str, rule: str, seed: int) -> None:
    """The rule's result with the attack, minus its result on the honest updates alone, points from the honest mean to what was sent."""
    h, m = 13, 4
    rows, combine = gradients(seed, h), rule_of(rule, m)
    weights = torch.ones(h + m, dtype=torch.float64)
    k = combining(shown(knowledge_of(m=m), rows), lambda updates, weights: combine(updates, weights, torch.arange(len(updates))))
    sent = sends(name, k)
    result = combine(torch.cat([rows, sent]), weights, torch.arange(h + m))
    moved, wanted = result - combine(rows, weights[:h], torch.arange(h)), sent.mean(dim=0) - rows.mean(dim=0)
    assert float(torch.nn.functional.cosine_similarity(moved, wanted, dim=0)) > 0.3
    if name == "fang-krum":
        torch.testing.assert_close(result, sent[0], rtol=1e-5, atol=1e-5)
        assert float(result @ rows.mean(dim=0)) < 0.0, "the model goes where the honest clients come from"
    if name == "fang-trim":
        assert bool((moved * k.honest_mean.sign() < 0.0).all()), "in every coordinate"


@pytest.mark.parametrize("budget", ["combined", "client"])
@pytest.mark.parametrize("name", NEW)
def test_every_one_keeps_to_its_budget(name: str, budget: str) -> None:
    k = combining(shown(knowledge_of(m=3, budget=budget, norm_bound=1e-4), gradients(0, 9)), weighted_mean)
    first = ATTACKS[name](k, AttackState())
    later = dataclasses.replace(k, round=2, theta=k.theta + 0.5)
    sent = within_budget(later, ATTACKS[name](later, first.state).updates)[0]
    lengths = sent.norm(dim=1) if budget == "client" else (later.weights @ (sent - later.updates) / later.total_weight).norm()
    assert float(lengths.max()) == pytest.approx(1e-4)


def test_the_line_searches_need_every_update(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"expected attack.knowledge = 'updates' with attack.name = 'optimal-alie', got 'omniscient'"):
        configure(attack__name="optimal-alie")
    config: Config = configure(attack__name="optimal-ipm", attack__knowledge="updates")
    assert config.attack.knowledge == "updates"


@pytest.mark.parametrize("strategy", ["flwr.FedMedian", "byzfl.MoNNA", "foolsgold", "flame"])
def test_the_line_searches_need_a_rule_that_is_published(configure: Configure, strategy: str) -> None:
    options = "f = 2" if strategy == "byzfl.MoNNA" else ""
    keys = {"attack__knowledge": "updates", "strategy__name": strategy, "strategy__options": options}
    (problem,) = name_problems(configure(attack__name="optimal-alie", **keys))
    assert problem.startswith("expected a rule that publishes how it combines with attack.name = 'optimal-alie'")
    assert f"got strategy.name = {strategy!r}: it " in problem
    assert (
        name_problems(configure(attack__name="optimal-alie", **keys | {"strategy__name": "byzfl.TrMean", "strategy__options": "f = 2"}))
        == []
    )


def test_one_member_is_enough_where_every_update_is_shown(configure: Configure) -> None:
    keys = {"attack__malicious_fraction": 0.0, "attack__poison_ratio": 1 / 12, "attack__name": "alie"}
    (problem,) = name_problems(configure(**keys))
    assert problem.startswith("expected at least 2 malicious clients")
    assert name_problems(configure(**keys, attack__knowledge="updates")) == []


def test_a_clipped_rule_is_clipped_once() -> None:
    """What the line search tries is what the server does: clip, combine."""
    bound = Clip("l2", 2.0)
    rows = gradients(5, 6)
    seen = list[Tensor]()

    def combine(updates: Tensor, weights: Tensor) -> Tensor:
        seen.append(updates)
        return weighted_mean(updates, weights)

    sends("optimal-ipm", combining(shown(knowledge_of(m=2), rows), combine, before=bound))
    torch.testing.assert_close(seen[0][:6], clip(rows, bound)[0], rtol=1e-5, atol=1e-6)
    assert len(seen[0]) == 8
