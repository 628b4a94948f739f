"""DGC's second version: persistence, attribution, and the way back, each against a loop or a closed form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clients.client_app import answer
from experiments.records.folder import read_rounds, read_summary
from experiments.run.execute import execute_run
from fl_sim.config.keys import Config, Strategy
from fl_sim.data.batches import Batch
from fl_sim.grid.transports import InlineTransport
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.vectors import flat_parameters
from strategies.dgc2.attribution import harmful, harmful_part
from strategies.dgc2.classes import ByClass, ClassProbe, follow
from strategies.dgc2.defence import CALM, Memories, SecondDefence, first_memory
from strategies.dgc2.helping import MOST, boosts, strength
from strategies.dgc2.levels import Levels, fit_levels, laxness, no_limits
from strategies.dgc2.persistence import Pushes, add, conspirators, factors, largest_persistence, no_pushes, persistence, products, sketch
from strategies.server_sgd import ServerState

BETA = 0.95


def applied(pushes: Pushes, updates: Tensor, beta: float = BETA, scales: Tensor | None = None) -> Pushes:
    """The pushes after updates (n, d), each applied with its factor; the given ones stay."""
    old = pushes._replace(sums=pushes.sums.clone())
    factor = torch.ones(len(updates)).to(updates) if scales is None else scales
    return add(old, updates, factor, products(old, updates), beta)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_persistence_is_the_squared_discounted_sum_over_the_discounted_squares() -> None:
    updates = draw(12, 3, 40).double()
    pushes = Pushes(*(part.double() for part in no_pushes(3, 40)))
    for round_ in range(12):
        pushes = applied(pushes, updates[round_])
    for client in range(3):
        rows = updates[:, client].numpy()
        total = np.sum([BETA ** (11 - t) * rows[t] for t in range(12)], axis=0)
        squares = sum((BETA ** (11 - t)) ** 2 * float(rows[t] @ rows[t]) for t in range(12))
        np.testing.assert_allclose(float(persistence(pushes)[client]), float(total @ total) / squares, rtol=1e-12)


def test_the_same_update_for_ever_has_the_largest_persistence_and_independent_ones_about_one() -> None:
    same, other = no_pushes(1, 1024), no_pushes(200, 1024)
    for round_ in range(150):
        same = applied(same, draw(1, 1024), BETA)
        other = applied(other, draw(200, 1024, seed=round_), BETA)
    assert float(persistence(same)) == pytest.approx(largest_persistence(BETA), rel=2e-3)
    assert float(persistence(other).mean()) == pytest.approx(1.0, abs=0.05)


def test_a_sketch_is_linear_and_keeps_inner_products_in_expectation() -> None:
    a, b = draw(1, 3000), draw(1, 3000, seed=2) + 0.5 * draw(1, 3000)
    products = list[float]()
    for seed in range(100):
        signs = draw(3000, seed=100 + seed).sign()
        torch.testing.assert_close(sketch(2.0 * a + b, signs), 2.0 * sketch(a, signs) + sketch(b, signs))
        products.append(float((sketch(a, signs) * sketch(b, signs)).sum()))
    lengths = float(a.norm() * b.norm())
    assert np.mean(products) == pytest.approx(float((a * b).sum()), abs=4.0 * lengths / math.sqrt(1024 * 100))
    assert np.std(products) < 1.5 * lengths / math.sqrt(1024)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.floats(1.2, 20.0), st.floats(0.0, 3.0), st.floats(0.5, 0.99))
def test_no_sequence_of_updates_exceeds_the_cut_and_the_factor_is_the_largest_that_does_not(
    seed: int, cut: float, pull: float, beta: float
) -> None:
    """Updates that are partly the same, of any length, some zero: R stays at most the cut, and a little more of an update would not."""
    generator = torch.Generator().manual_seed(seed)
    common, cuts = torch.randn(1024, generator=generator), torch.full((6,), cut)
    pushes = no_pushes(6, 1024)
    for _ in range(15):
        lengths = torch.rand(6, 1, generator=generator) ** 4 * (torch.rand(6, 1, generator=generator) > 0.2)
        sketches = lengths * (pull * common + torch.randn(6, 1024, generator=generator))
        scales = factors(pushes, products(pushes, sketches), beta, cuts)
        more = persistence(applied(pushes, sketches, beta, torch.clamp(scales + 0.02, max=1.0)))
        pushes = applied(pushes, sketches, beta, scales)
        assert bool(((scales >= 0.0) & (scales <= 1.0)).all())
        assert bool((persistence(pushes) <= cut * (1.0 + 1e-4)).all())
        assert bool((more[scales < 0.98] > cut * (1.0 - 1e-4)).all())


def test_what_an_unseen_push_can_do() -> None:
    """docs/mathematics.md, section 11.2: with a cosine alpha to h and independent rest, `E R = 1 + 2 beta alpha^2 / (1 - beta)`, so that a
    cut allows `alpha* = sqrt((cut - 1) (1 - beta) / (2 beta))`; whatever is sent, the mean push along h is at most
    `b sqrt(cut (1 - beta) / (1 + beta))`, and a liar whose rest cancels over the rounds comes near it."""
    cut, rounds, clients, dimensions = 2.2, 300, 40, 1024
    alpha = math.sqrt((cut - 1.0) * (1.0 - BETA) / (2.0 * BETA))
    h = torch.zeros(dimensions)
    h[0] = 1.0
    pushes, values = no_pushes(clients, dimensions), list[float]()
    for round_ in range(rounds):
        rest = draw(clients, dimensions, seed=round_)
        rest[:, 0] = 0.0
        pushes = applied(pushes, alpha * h + math.sqrt(1.0 - alpha**2) * rest / rest.norm(dim=1, keepdim=True), BETA)
        values.append(float(persistence(pushes).mean()))
    assert np.mean(values[100:]) == pytest.approx(cut, rel=0.03)

    most = math.sqrt(cut / largest_persistence(BETA))
    for rest_sign, low, high in ((1.0, 0.0, 0.5), (-1.0, 0.85, 1.0)):  # a rest that adds up, and one that cancels
        pushes, moved, rest, sign = no_pushes(1, dimensions), 0.0, draw(dimensions, seed=5), 1.0
        rest[0] = 0.0
        rest = rest / rest.norm()
        for round_ in range(rounds):
            sign = rest_sign * sign
            update = (most * h + math.sqrt(1.0 - most**2) * sign * rest).unsqueeze(0)
            scale = factors(pushes, products(pushes, update), BETA, torch.tensor([cut]))
            pushes = applied(pushes, scale * update, BETA)
            moved += float(scale) * most if round_ >= 100 else 0.0
        assert low <= moved / (rounds - 100) / most <= high + 1e-6


def pushed_apart(sums: Tensor) -> float:
    """The largest `|(S - mean S) v|^2`, by a singular value decomposition."""
    return float(torch.linalg.matrix_norm(sums - sums.mean(dim=0), 2) ** 2)


@settings(derandomize=True, deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.floats(5.0, 60.0), st.floats(0.0, 3.0), st.integers(1, 9))
def test_together_clients_do_not_push_apart_by_more_than_the_limit(seed: int, limit: float, pull: float, members: int) -> None:
    """Whatever members send, in one direction or in turns, with everybody in each round."""
    generator = torch.Generator().manual_seed(seed)
    sums, cuts, clients = torch.zeros(20, 1024), torch.full((20,), 2.0), torch.arange(20)
    directions = torch.nn.functional.normalize(torch.randn(3, 1024, generator=generator), dim=1)
    for round_ in range(40):
        sketches = torch.nn.functional.normalize(torch.randn(20, 1024, generator=generator), dim=1)
        sketches[:members] += pull * directions[(round_ // 10) % 3]
        joint = conspirators(sums, sketches, clients, BETA, cuts, limit)
        sums = BETA * sums + torch.where(joint.silent, 0.0, 1.0).unsqueeze(1) * sketches
        assert pushed_apart(sums) <= 1.001 * limit
        assert joint.push == pytest.approx(pushed_apart(sums), rel=1e-3)


def test_of_those_who_push_together_the_strongest_go_first_in_proportion_to_what_they_may() -> None:
    h, clients = draw(1, 1024) / 32.0, torch.arange(40)
    sums = draw(40, 1024, seed=2) / 32.0
    lengths = torch.cat([torch.full((10,), 3.0), torch.zeros(30)]).unsqueeze(1)
    sums = sums + lengths * h
    sketches = draw(40, 1024, seed=3) / 32.0 + 0.2 * lengths * h
    unlimited = conspirators(sums, sketches, clients, BETA, torch.full((40,), 2.0), float("inf"))
    assert not unlimited.silent.any()
    one = conspirators(sums, sketches, clients, BETA, torch.full((40,), 2.0), 0.99 * unlimited.push)
    assert one.silent.any()
    assert not one.silent[10:].any()
    assert one.push <= 0.99 * unlimited.push
    cuts = torch.full((40,), 2.0)
    cuts[:5] = float("inf")  # these always pushed like that
    other = conspirators(sums, sketches, clients, BETA, cuts, 0.99 * unlimited.push)
    assert other.silent[5:10].any()
    assert not other.silent[:5].any()


def test_what_is_not_a_number_is_nobodys_push() -> None:
    joint = conspirators(torch.zeros(3, 1024), torch.full((3, 1024), math.nan), torch.arange(3), BETA, torch.full((3,), 2.0), 1.0)
    assert not joint.silent.any()


def test_what_all_push_together_is_not_pushed_apart() -> None:
    same = draw(1, 1024).expand(30, 1024)
    joint = conspirators(torch.zeros(30, 1024), same, torch.arange(30), BETA, torch.full((30,), 2.0), 1.0)
    assert not joint.silent.any()
    assert joint.push == pytest.approx(0.0, abs=1e-3)


def test_harmful_updates_are_the_largest_until_the_rest_adds_less_than_half_of_what_others_take_away() -> None:
    for seed in range(20):
        harm = draw(15, seed=seed) + 0.5
        left = [*range(15)]
        while (added := sum(float(harm[i]) for i in left if harm[i] > 0)) > 0 and added >= 0.5 * -sum(
            float(harm[i]) for i in left if harm[i] < 0
        ):
            left.remove(max(left, key=lambda i: float(harm[i])))
        assert harmful(harm).tolist() == [i not in left for i in range(15)]
    assert not harmful(torch.tensor([-1.0, 0.4, -0.5])).any(), "others take away more than twice as much"
    assert harmful(torch.tensor([1.0, 0.0])).tolist() == [True, False]


def test_the_harmful_part_of_a_velocity_is_what_climbs() -> None:
    gradient = draw(30)
    climbing = draw(30, seed=2) - gradient
    assert float(torch.dot(climbing - harmful_part(climbing, gradient), gradient)) == pytest.approx(0.0, abs=1e-4)
    assert not harmful_part(-climbing + 2 * gradient, gradient).any(), "a descent stays"


def test_a_reference_is_a_slow_mean_that_is_never_worse_than_usual() -> None:
    usual = torch.tensor([1.0, 1.0, 1.0, 1.0])
    # better than usual, worse than usual, above usual and falling (a model that still learns), above usual and rising
    reference = follow(torch.tensor([0.5, 0.5, 3.0, 3.0]), torch.tensor([0.2, 3.0, 0.7, 4.0]), usual, 100.0)
    torch.testing.assert_close(reference, torch.tensor([0.497, 0.525, 0.997, 3.0]))
    for _ in range(1000):  # a patient attacker
        reference = follow(reference, torch.full((4,), 5.0), usual, 100.0)
    torch.testing.assert_close(reference, torch.tensor([1.0, 1.0, 1.0, 3.0]))


def test_helping_grows_with_the_deficit_up_to_the_largest_of_clean_rounds() -> None:
    falls = torch.tensor([2.0, 8.0])
    assert strength(torch.tensor([0.0, 0.0]), falls) == 0.0
    assert strength(torch.tensor([-3.0, -1.0]), falls) == 0.0
    assert strength(torch.tensor([0.5, 4.0]), falls) == pytest.approx(MOST / 2)
    assert strength(torch.tensor([0.0, 80.0]), falls) == MOST
    assert strength(torch.tensor([0.5, 4.0]), torch.full((2,), float("inf"))) == 0.0, "nothing in the clean rounds of the calibration"
    assert strength(torch.tensor([math.nan, 4.0]), falls) == 0.0


def test_an_update_counts_more_by_its_cosine_with_the_gradient_and_no_update_counts_less() -> None:
    updates, gradient = draw(12, 30), draw(30, seed=2)
    updates[3], updates[4], updates[5] = 2.0 * gradient, -gradient, 0.0
    found = boosts(updates, updates.norm(dim=1), gradient, 3.0)
    for i, update in enumerate(updates):
        cosine = float(torch.nn.functional.cosine_similarity(update, gradient, dim=0))
        assert float(found[i]) == pytest.approx(1.0 + 3.0 * max(cosine, 0.0), rel=1e-5)
    assert float(found[3]) == pytest.approx(4.0)
    assert float(found[4]) == float(found[5]) == 1.0


def probe_of_a_linear_model() -> tuple[ClassProbe, Tensor]:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    return ClassProbe(FlatModel(module), Batch(draw(7, 1, 2, 2), torch.tensor([0, 2, 2, 0, 0, 2, 2]))), flat_parameters(module)


def test_losses_accuracies_and_gradients_by_class() -> None:
    probe, theta = probe_of_a_linear_model()
    now = probe.by_class(theta)
    losses, hits = probe.model.examples(theta, *probe.probe)
    for position, label in enumerate((0, 2)):
        own = [i for i, other in enumerate(probe.probe.labels.tolist()) if other == label]
        assert float(now.losses[position]) == pytest.approx(sum(float(losses[i]) for i in own) / len(own))
        assert float(now.accuracies[position]) == pytest.approx(100.0 * sum(float(hits[i]) for i in own) / len(own))
        probabilities = torch.softmax(probe.model.logits(theta, probe.probe.inputs[own]), dim=1)[:, label]
        assert float(now.confidences[position]) == pytest.approx(100.0 * float(probabilities.mean()))
    own = probe.probe.labels == 2
    expected = probe.model.gradient(theta, probe.probe.inputs[own], probe.probe.labels[own])
    torch.testing.assert_close(probe.gradient(theta, torch.tensor([False, True])), expected)


@pytest.mark.parametrize("reference", [(90.0, 80.0), (90.0, 1.0), (1.0, 90.0)])
def test_the_gradient_of_the_shortfall_is_that_of_finite_differences(reference: tuple[float, float]) -> None:
    probe, theta = probe_of_a_linear_model()

    def deficits(point: Tensor) -> Tensor:
        return (torch.tensor(reference) - probe.by_class(point).confidences).clamp(min=0.0)

    gradient, step = probe.shortfall_gradient(theta, deficits(theta)), 1e-2
    for i in range(len(theta)):
        moved = torch.zeros_like(theta)
        moved[i] = step
        ahead, behind = (0.5 * float(deficits(theta + sign * moved).square().sum()) for sign in (1.0, -1.0))
        assert float(gradient[i]) == pytest.approx((ahead - behind) / (2.0 * step), rel=0.02, abs=0.5)
    assert float(gradient.norm()) > 50.0


def defence_of(levels: Levels, looks: Callable[[Tensor], ByClass], theta: Tensor, pull: Tensor | None = None) -> SecondDefence:
    memories = Memories(BETA, momentum=0.9)
    memory = first_memory(theta, looks(theta), no_pushes(len(levels.cuts), len(theta)), levels)
    gradient = torch.zeros_like(theta) if pull is None else pull
    return SecondDefence(
        looks, lambda *_: gradient, lambda *_: gradient, lambda number: draw(len(theta), seed=number).sign(), levels, memories, memory
    )


def healthy(theta: Tensor) -> ByClass:
    return ByClass(torch.tensor([0.1, 0.2]), torch.tensor([90.0, 100.0]), torch.tensor([80.0, 70.0]))


def test_without_limits_it_is_the_weighted_mean_of_clipped_updates() -> None:
    updates, weights, theta = draw(5, 50), torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0]), draw(50, seed=9)
    defence = defence_of(no_limits(8, 0.3), healthy, theta)
    combined = defence.combine(ServerState(theta, theta), updates, weights, torch.tensor([0, 2, 3, 4, 7]))
    torch.testing.assert_close(combined, weights @ updates / 8.0)
    assert defence.before().bound == pytest.approx(0.3)
    assert defence.left_out is not None
    assert not defence.left_out.any()


def test_a_client_that_repeats_itself_is_silenced_and_the_others_are_not() -> None:
    theta, clients = draw(2000, seed=9), torch.arange(6)
    defence = defence_of(no_limits(6)._replace(cuts=torch.full((6,), 2.0)), healthy, theta)
    same = draw(2000, seed=77)
    for round_ in range(20):
        updates = draw(6, 2000, seed=round_)
        updates[4] = same
        defence.combine(ServerState(theta, theta), updates, torch.ones(6), clients)
    assert defence.left_out is not None
    assert defence.left_out.tolist() == [False, False, False, False, True, False]


def test_a_push_that_a_sketch_does_not_see_is_seen() -> None:
    """An attacker that has learnt the signs of a sketch pushes in its null space: here those of the first round, for ever."""
    theta, clients = draw(3000, seed=9), torch.arange(40)
    signs = draw(3000, seed=0).sign()
    unseen = draw(1, 3000, seed=5)
    unseen[:, :1024] -= signs[:1024] * sketch(unseen, signs)
    torch.testing.assert_close(sketch(unseen, signs), torch.zeros(1, 1024), atol=1e-4, rtol=0.0)
    for limits in (no_limits(40)._replace(cuts=torch.full((40,), 2.0)), no_limits(40)._replace(joint=3.0e5)):
        defence, server = defence_of(limits, healthy, theta), ServerState(theta, theta)
        along = list[float]()
        for round_ in range(40):
            updates = draw(40, 3000, seed=round_)
            updates[:8] += 2.0 * unseen
            combined = defence.combine(server, updates, torch.ones(40), clients)
            along.append(float(combined @ unseen[0]) / float(unseen.square().sum()))
            server, _ = defence.settle(server)
        assert sum(along[25:]) < 0.5 * 15 * along[0]
        assert defence.left_out is not None
        assert defence.left_out[:8].any()
        assert not defence.left_out[8:].any()


def test_when_a_class_gets_worse_what_harms_it_is_left_out_and_taken_from_the_velocity() -> None:
    theta, gradient = draw(20, seed=9), draw(20, seed=4)
    unit = gradient / gradient.norm()
    defence = defence_of(
        no_limits(3)._replace(rises=torch.tensor([0.5, 0.5]), lost=torch.tensor([30.0, 30.0, 5.0])), healthy, theta, pull=gradient
    )
    defence.memory = defence.memory._replace(now=ByClass(torch.tensor([0.1, 0.9]), torch.tensor([90.0, 60.0]), torch.tensor([80.0, 50.0])))
    updates = torch.stack([unit, 0.4 * unit, -3.0 * unit])  # the third climbs
    velocity = -2.0 * unit
    combined = defence.combine(ServerState(theta, velocity), updates, torch.ones(3), torch.arange(3))
    torch.testing.assert_close(combined, 1.4 / 3.0 * unit - 0.9 * velocity)
    assert defence.left_out is not None
    assert defence.left_out.tolist() == [False, False, True]
    assert defence.figures["rising_classes"] == 1.0
    torch.testing.assert_close(defence.memory.pushes.sums, torch.stack([unit, 0.4 * unit, 0.0 * unit]))  # what was left out is no push


def test_a_class_below_its_usual_confidence_is_helped_and_pushes_are_counted_as_they_were_sent() -> None:
    theta, gradient = draw(20, seed=9), draw(20, seed=4)
    unit = gradient / gradient.norm()
    across = torch.nn.functional.normalize(draw(20, seed=5) - (draw(20, seed=5) @ unit) * unit, dim=0)
    levels = no_limits(3)._replace(usual_confidences=torch.tensor([80.0, 70.0]), falls=torch.tensor([4.0, 4.0]))
    updates = torch.stack([unit, across, -unit])
    for confidences, factor in (((80.0, 70.0), 1.0), ((90.0, 70.0), 1.0), ((80.0, 69.0), 2.0), ((80.0, 20.0), 5.0)):
        defence = defence_of(levels, healthy, theta, pull=gradient)
        defence.memory = defence.memory._replace(now=healthy(theta)._replace(confidences=torch.tensor(confidences)))
        combined = defence.combine(ServerState(theta, theta), updates, torch.ones(3), torch.arange(3))
        torch.testing.assert_close(combined, (factor * unit + across - unit) / 3.0)
        assert defence.figures["helping"] == factor - 1.0
        torch.testing.assert_close(defence.memory.pushes.sums, updates)


def test_no_patience_lowers_the_confidence_that_is_expected_of_a_class() -> None:
    theta = draw(20, seed=9)
    levels = no_limits(3)._replace(usual_confidences=torch.tensor([80.0, 70.0]), falls=torch.tensor([4.0, 4.0]))
    now = [healthy(theta)]
    defence = defence_of(levels, lambda _: now[0], theta)
    for round_ in range(600):
        now[0] = healthy(theta)._replace(confidences=torch.tensor([90.0, 70.0 - 0.1 * round_]))
        defence.settle(ServerState(theta, torch.zeros(20)))
    torch.testing.assert_close(defence.memory.confidence, torch.tensor([90.0, 70.0]), atol=0.1, rtol=0.0)


def test_a_tighter_clip_limits_pushes_as_much_as_the_usual_one() -> None:
    """After a return updates are shorter; the same ones in the new length are left out and scaled as before."""
    theta, clients, left_out = draw(2000, seed=9), torch.arange(40), list[Tensor]()
    for tightness in (1.0, 0.25):
        defence = defence_of(no_limits(40)._replace(cuts=torch.full((40,), 2.0), joint=4.0e4), healthy, theta)
        defence.memory = defence.memory._replace(tightness=tightness)
        for round_ in range(20):
            updates = draw(40, 2000, seed=round_)
            updates[:8] += draw(2000, seed=77)
            defence.combine(ServerState(theta, theta), tightness * updates, torch.ones(40), clients)
            assert defence.left_out is not None
            left_out.append(defence.left_out)
    assert torch.equal(torch.stack(left_out[:20]), torch.stack(left_out[20:]))
    assert torch.stack(left_out)[:, :8].any()


@pytest.mark.parametrize(
    "bad",
    [
        ByClass(torch.tensor([0.1, 9.0]), torch.tensor([95.0, 0.0]), torch.tensor([90.0, 0.0])),
        ByClass(torch.full((2,), float("nan")), torch.zeros(2), torch.full((2,), float("nan"))),
    ],
)
def test_the_server_goes_back_to_the_last_healthy_model_with_a_tighter_clip_that_loosens_again(bad: ByClass) -> None:
    good, broken, velocity = draw(20, seed=9), draw(20, seed=10), draw(20, seed=11)
    defence = defence_of(
        no_limits(3, 1.0)._replace(rises=torch.tensor([0.5, 0.5]), lost=torch.tensor([30.0, 30.0, 5.0])),
        lambda theta: bad if torch.equal(theta, broken) else healthy(theta),
        good,
    )
    later = good + 1.0
    server, _ = defence.settle(ServerState(later, velocity))
    assert torch.equal(server.theta, later), "healthy: it becomes the model to go back to"
    assert torch.equal(server.velocity, velocity)
    rounds = 0
    while True:
        server, figures = defence.settle(ServerState(broken, velocity))
        rounds += 1
        if figures["returned"]:
            break
    assert rounds <= 5, "a class that is dead for good is seen within the memory of the means"
    assert torch.equal(server.theta, later)
    assert not server.velocity.any()
    assert defence.before().bound == 0.5
    for _ in range(CALM):
        server, figures = defence.settle(ServerState(later, velocity))
        assert not figures["returned"]
    assert defence.before().bound == 1.0, "never frozen"


def test_it_does_not_go_back_to_a_model_that_fell_faster_than_the_means_follow() -> None:
    """Else the means would follow that model down after the return, and the server would return to it again and again."""
    good, falling, broken = draw(20, seed=9), draw(20, seed=10), draw(20, seed=11)
    found = {
        falling: ByClass(torch.tensor([0.1, 0.2]), torch.tensor([90.0, 72.0]), torch.tensor([80.0, 50.0])),
        broken: ByClass(torch.zeros(2), torch.zeros(2), torch.zeros(2)),
    }
    levels = no_limits(3, 1.0)._replace(rises=torch.tensor([0.5, 0.5]), lost=torch.tensor([30.0, 30.0, 10.0]))
    defence = defence_of(
        levels, lambda theta: next((now for model, now in found.items() if torch.equal(theta, model)), healthy(theta)), good
    )
    for model in (good, falling, broken):
        server, figures = defence.settle(ServerState(model, torch.zeros(20)))
    assert figures["returned"]
    assert torch.equal(server.theta, good)
    for _ in range(2 * CALM):
        _, figures = defence.settle(server)
        assert not figures["returned"]


def test_after_a_return_no_more_is_expected_of_a_class_than_of_the_model_that_it_went_back_to() -> None:
    """Else a model that learnt since then would be the measure of an older one, help would stay at its strongest, and bend it."""
    good, better, broken = draw(20, seed=9), draw(20, seed=10), draw(20, seed=11)
    sure = {good: torch.tensor([50.0, 40.0]), better: torch.tensor([80.0, 70.0])}

    def looks(theta: Tensor) -> ByClass:
        confidences = next((found for model, found in sure.items() if torch.equal(theta, model)), torch.zeros(2))
        right = 0.0 if torch.equal(theta, broken) else 1.0
        falling = torch.equal(theta, better)  # as far down in accuracy as is not healthy any more
        return ByClass(torch.tensor([0.1, 0.2]), right * torch.tensor([90.0, 75.0 if falling else 100.0]), confidences)

    levels = no_limits(3, 1.0)._replace(
        lost=torch.tensor([30.0, 30.0, 20.0]), falls=torch.ones(2), usual_confidences=torch.full((2,), 90.0)
    )
    defence = defence_of(levels, looks, good)
    for model in (good, better, *[broken] * 5):
        server, figures = defence.settle(ServerState(model, torch.zeros(20)))
        if figures["returned"]:
            break
    assert torch.equal(server.theta, good)
    defence.combine(server, draw(3, 20), torch.ones(3), torch.arange(3))
    assert defence.figures["helping"] == 0.0


def test_a_client_is_compared_with_its_own_clean_level() -> None:
    values = {"0": [1.0, 1.3], "1": [4.0, 6.0], "3": [30.0, 12.0]}
    record = {
        "bound": 0.5,
        "persistence": values,
        "joint": [2.0, 8.0],
        "losses": [[0.9, 3.0], [0.5, 1.0], [0.6, 1.6]],  # usual: 0.55, 1.3; the second is above it at first, then falls to it
        "confidences": [[60.0, 10.0], [55.0, 30.0], [57.0, 24.0]],  # usual: 56, 27; the second is below it at first
        "means": [[80.0, 60.0, 70.0], [80.0, 90.0, 85.0], [80.0, 50.0, 65.0]],
    }
    levels = fit_levels(record, 4, Strategy())
    assert levels.cuts.tolist() == [2.0, 7.5, 2.0, float("inf")]
    assert levels.joint == pytest.approx(10.0 / (1.0 - 0.95**3)), "a client was in one and a half rounds in the mean"
    torch.testing.assert_close(levels.usual_losses, torch.tensor([0.55, 1.3]))
    torch.testing.assert_close(levels.usual_accuracies, torch.tensor([80.0, 70.0, 75.0]))
    torch.testing.assert_close(levels.rises, torch.tensor([0.1 + 0.75 * 0.55, 0.1 + 0.75 * 1.3]), atol=0.01, rtol=0.0)
    torch.testing.assert_close(levels.lost, torch.tensor([20.0, 30.0, 15.0]), atol=0.02, rtol=0.0)
    torch.testing.assert_close(levels.usual_confidences, torch.tensor([56.0, 27.0]))
    torch.testing.assert_close(levels.falls, torch.tensor([1.03, 3.0]), atol=0.02, rtol=0.0)
    first, second = laxness(levels, Strategy())
    assert first.startswith("points that may be lost, above strategy.most-lost-class = 20")
    assert first.endswith(": class 1 30")
    assert second.startswith("15 points of accuracy may be lost")
    assert laxness(levels, Strategy().model_copy(update={"most_lost_class": 40.0, "most_lost": 20.0})) == []


DGC2: dict[str, Any] = {"strategy__name": "dgc-2", "strategy__calibration_rounds": 12, "strategy__probe_size": 30}


@pytest.mark.slow
def test_a_run_with_a_patient_coalition_records_what_the_defence_did(configure: Callable[..., Config], tmp_path: Path) -> None:
    attack = {
        "attack__objective": "erosion",
        "attack__scaling": "exact",
        "attack__stealth_gamma": float("inf"),
        "attack__poison_ratio": 0.25,
    }
    config = configure(**DGC2, **attack, twin=False, control=False)
    place = execute_run(config, tmp_path, InlineTransport(answer), lambda *_: None)
    lines = read_rounds(place)["attacked"]
    assert read_summary(place)["filtering"] is not None
    assert all(line["strategy"]["combined_norm"] >= 0.0 and "returned" in line["strategy"] for line in lines)
    assert any(line["strategy"]["helping"] > 0.0 for line in lines)
    assert all(0.0 <= line["strategy"]["helping"] <= MOST for line in lines)


@pytest.mark.parametrize("name", ["planned_push:planned", "boosted_push:boosted"])
def test_attacks_that_were_made_for_it_send_updates_at_its_bound(configure: Callable[..., Config], tmp_path: Path, name: str) -> None:
    attack = {
        "attack__name": f"experiments.benchmarks.attacks.{name}",
        "attack__budget": "client",
        "attack__norm_bound": 1000.0,
        "attack__options": '{"attacked": 3}',
        "attack__poison_ratio": 0.25,
    }
    place = execute_run(configure(**DGC2, **attack, twin=False, control=False), tmp_path, InlineTransport(answer), lambda *_: None)
    bound = json.loads((place / "calibration.json").read_text())["bound"]
    norm = read_summary(place)["malicious_norm"]
    assert norm is not None
    assert norm["median"] == pytest.approx(bound, rel=1e-4)
    assert norm["largest"] == pytest.approx(bound, rel=1e-4)
