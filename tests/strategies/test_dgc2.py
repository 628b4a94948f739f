"""DGC's second version as a whole: what it leaves out, helps and goes back to, its levels, and a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clients.client_app import answer
from experiments.benchmarks.attacks.boosted_push import boosted
from experiments.benchmarks.attacks.newcomers import newcomers, strongest_push
from experiments.benchmarks.attacks.planned_push import planned
from experiments.records.folder import read_rounds, read_summary
from experiments.run.execute import execute_run
from fl_sim import Action, AttackState
from fl_sim.config.keys import Config, Strategy
from fl_sim.grid.transports import InlineTransport
from strategies.dgc2.classes import ByClass
from strategies.dgc2.defence import CALM, Memories, SecondDefence, first_memory
from strategies.dgc2.helping import MOST
from strategies.dgc2.levels import Levels, fit_levels, laxness, no_limits
from strategies.dgc2.persistence import no_pushes, sketch
from strategies.server_sgd import ServerState
from tests.support.small_knowledge import knowledge_of

BETA = 0.95


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
    assert levels.joint_in(1, 0.95) == pytest.approx(levels.joint * (1.0 - 0.95**1.5)), "more than the 2.5 of the first clean round"
    assert levels.joint_in(2, 0.95) == pytest.approx(10.0)
    assert levels.joint_in(20, 0.95) == pytest.approx(levels.joint * (1.0 - 0.95**30))
    early = fit_levels({**record, "joint": [9.0, 8.0]}, 4, Strategy())
    assert early.joint_in(1, 0.95) == pytest.approx(1.25 * 9.0), "not less than a clean round pushed"
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


def test_a_newcomer_sends_the_largest_push_below_its_cut_and_what_it_sends_stays_below() -> None:
    pushed, rested, squares, pushes = 0.0, 0.0, 0.0, list[float]()
    for _ in range(200):
        push, rest = strongest_push(BETA * pushed, BETA * rested, BETA**2 * squares, 1.98)
        assert push**2 + rest**2 == pytest.approx(1.0)
        pushed, rested, squares = BETA * pushed + push, BETA * rested + rest, BETA**2 * squares + 1.0
        assert (pushed**2 + rested**2) / squares <= 1.98 + 1e-6
        pushes.append(push)
    assert pushes[0] == 1.0
    assert pushes[1] > 0.9, "nearly the same update again"
    assert sum(pushes[100:]) / 100 < math.sqrt(1.98 * (1 - BETA) / (1 + BETA)), "section 11.2: what an unseen push can do"
    assert strongest_push(1.9, 1.0, 3.0, 1.98)[1] < 0.0 < strongest_push(1.9, -1.0, 3.0, 1.98)[1], "the rest cancels the one before"


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


@pytest.mark.parametrize("name", ["planned_push:planned", "boosted_push:boosted", "newcomers:newcomers"])
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


@pytest.mark.parametrize("attack", [planned, boosted, newcomers])
def test_attacks_that_were_made_for_it_need_a_bound(attack: Callable[..., Action]) -> None:
    with pytest.raises(ValueError, match=f"{attack.__name__} needs a strategy that clips each update"):
        attack(knowledge_of(), AttackState({}, {}))
