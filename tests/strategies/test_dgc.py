"""Memorization Discrepancy against its oracle, and what DGC's guard does with it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clients.client_app import answer
from experiments.records.folder import read_rounds, read_summary, run_folder
from experiments.run.execute import execute_run
from fl_sim.config.keys import Config, Strategy
from fl_sim.data.batches import Batch
from fl_sim.grid.transports import InlineTransport
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.vectors import flat_parameters
from fl_sim.training.clipping import Clip
from strategies.dgc.discrepancy import memorization_discrepancy
from strategies.dgc.guard import Guard, GuardState, Judgement
from strategies.dgc.thresholds import (
    MEMORY,
    Calibration,
    Level,
    Threshold,
    all_below,
    fit_calibration,
    fit_threshold,
    growth_of,
    running_means,
)
from strategies.server_sgd import ServerState
from tests.support import oracles

NEVER, ALWAYS = Threshold(float("inf"), 0.0), Threshold(-1.0, 0.0)  # a threshold that refuses nothing, or everything
NO_NORMS = torch.full((3,), float("nan"))


def linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_memorization_discrepancy_is_its_definition(kind: Any) -> None:
    before, after, inputs = linear(1), linear(2), 5.0 * torch.randn(7, 1, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        discrepancies = memorization_discrepancy(before, after, inputs, kind)
        expected = oracles.discrepancy(before(inputs).numpy(), after(inputs).numpy(), kind)
        same = memorization_discrepancy(before, before, inputs, kind)
    np.testing.assert_allclose(discrepancies.numpy(), expected, rtol=1e-10)
    assert float(same.abs().max()) < 1e-15


def test_jensen_shannon_is_bounded_and_symmetric_and_kl_is_neither() -> None:
    sure, other = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]])
    identity = nn.Identity()
    assert float(memorization_discrepancy(identity, torch.negative, sure - 30.0, "js")) == pytest.approx(math.log(2.0))
    assert float(memorization_discrepancy(identity, lambda _: other, sure, "js")) == pytest.approx(math.log(2.0))
    assert float(memorization_discrepancy(identity, lambda _: other, sure)) == pytest.approx(60.0)


def test_half_precision_is_widened_and_shapes_must_agree() -> None:
    half = torch.tensor([[3.0, -1.0, 0.5]], dtype=torch.float16)
    assert memorization_discrepancy(lambda _: half, lambda _: half + 1, half).dtype == torch.float32
    with pytest.raises(ValueError, match=r"one shape, got \(1, 3\) and \(1, 2\)"):
        memorization_discrepancy(lambda _: half, lambda _: half[:, :2], half)


def guard_of(
    thresholds: Mapping[str, Threshold], typical: Mapping[str, Threshold] | None = None, **settings: Any
) -> tuple[Guard, ServerState, GuardState]:
    """A guard over a linear model with learning rate 0.5 and momentum 0.9, its server with a velocity of ones."""
    module = linear(3).float()
    theta = flat_parameters(module)
    probe = Batch(torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3)
    strategy = Strategy.model_validate({"rise": False, **{key.replace("_", "-"): value for key, value in settings.items()}})
    guard = Guard(strategy, FlatModel(module), probe, Calibration(thresholds, thresholds, typical or thresholds, {}, 2.0), 0.5, 0.9)
    return guard, ServerState(theta, torch.ones_like(theta)), guard.begin(theta)


def test_what_is_tolerated_is_server_sgd() -> None:
    guard, server, state = guard_of({"history": NEVER, "fixed": NEVER})
    update = torch.randn_like(server.theta)
    judged = guard.judge(server, update, state, NO_NORMS)
    torch.testing.assert_close(judged.server.velocity, 0.9 + update)
    torch.testing.assert_close(judged.server.theta, server.theta - 0.5 * (0.9 + update))
    assert judged.metrics["refused"] == 0.0
    assert guard.before(judged.guard) is None
    assert not [name for name in judged.metrics if "-" in name], "one spelling per figure"


@pytest.mark.parametrize("action", ["backtrack", "skip"])
def test_a_step_that_nothing_makes_tolerable_is_dropped_with_its_momentum(action: str) -> None:
    guard, server, state = guard_of({"history": ALWAYS, "fixed": ALWAYS}, action=action)
    judged = guard.judge(server, torch.ones_like(server.theta), state, NO_NORMS)
    assert torch.equal(judged.server.theta, server.theta)
    assert not judged.server.velocity.any()
    assert judged.metrics["step_scale"] == 0.0


def test_backtracking_takes_the_longest_halving_that_scores_like_a_typical_clean_round() -> None:
    guard, server, state = guard_of({"history": NEVER, "fixed": Threshold(0.04, 0.0)}, {"history": NEVER, "fixed": Threshold(0.01, 0.0)})
    update = 3.0 * torch.randn(len(server.theta), generator=torch.Generator().manual_seed(5))
    judged = guard.judge(server, update, state, NO_NORMS)
    step, scale = 0.9 * server.velocity + update, judged.metrics["step_scale"]
    assert 0.0 < scale < 1.0
    torch.testing.assert_close(judged.server.theta, server.theta - 0.5 * scale * step)
    assert not judged.server.velocity.any(), "nothing of it comes back"

    def drift(factor: float) -> float:
        theta, model = server.theta - 0.5 * factor * step, guard.model
        return float(
            memorization_discrepancy(lambda x: model.logits(server.theta, x), lambda x: model.logits(theta, x), guard.probe.inputs).mean()
        )

    assert drift(scale) <= 0.01 < drift(2.0 * scale)


def test_the_action_clip_applies_the_update_at_the_small_bound() -> None:
    guard, server, state = guard_of({"history": ALWAYS, "fixed": ALWAYS}, action="clip", small_bound=0.5)
    update = torch.ones_like(server.theta)
    judged = guard.judge(server, update, state, NO_NORMS)
    torch.testing.assert_close(judged.server.velocity, 0.9 * server.velocity + 0.5 * update / update.norm())


@pytest.mark.parametrize("action", ["backtrack", "skip", "clip"])
def test_a_model_that_is_not_a_number_is_refused(action: str) -> None:
    guard, server, state = guard_of({"history": NEVER, "fixed": NEVER}, action=action)
    judged = guard.judge(server, torch.full_like(server.theta, float("nan")), state, NO_NORMS)
    assert judged.metrics["refused"] == 1.0
    stepped = server.theta - 0.5 * 0.9 * server.velocity if action == "clip" else server.theta
    assert torch.equal(judged.server.theta, stepped)


def test_the_reference_in_the_history_is_lag_rounds_back_and_the_fixed_one_stays() -> None:
    guard, server, state = guard_of({"history": NEVER, "fixed": NEVER}, lag=3)
    thetas = [server.theta]
    for round_ in range(6):
        judged = guard.judge(server, torch.full_like(server.theta, 0.1 * round_), state, NO_NORMS)
        server, state = judged.server, judged.guard
        thetas.append(server.theta)
        against = thetas[max(0, len(thetas) - 1 - 3)]
        for name, reference in (("history", against), ("fixed", thetas[0])):
            before, after = (guard.model.logits(theta, guard.probe.inputs).detach() for theta in (reference, thetas[-1]))
            assert judged.metrics[name] == pytest.approx(
                sum(oracles.discrepancy(before.numpy(), after.numpy(), "kl")) / 6, rel=1e-4, abs=1e-7
            )


def test_the_rise_is_that_of_the_probe_loss_over_its_lowest() -> None:
    guard, server, state = guard_of({"rise": NEVER}, guard="rehearsing", rise=True, bound=1.0)
    guard = replace(guard, calibration=Calibration({"rise": NEVER, "fragility": NEVER}, {}, {}, {}, 2.0))
    server = server._replace(velocity=torch.zeros_like(server.theta))
    losses = [float(guard.model.loss(server.theta, *guard.probe))]
    rises = list[float]()
    for round_ in range(6):
        push = guard.model.gradient(server.theta, *guard.probe) * (-8.0 if round_ % 3 == 2 else 1.0)
        judged = guard.judge(server, push, state, NO_NORMS)
        server, state = judged.server, judged.guard
        losses.append(float(guard.model.loss(server.theta, *guard.probe)))
        rises.append(judged.metrics["rise"])
    assert rises == pytest.approx([max(0.0, losses[i] - min(losses[:i])) for i in range(1, 7)], abs=1e-5)
    assert min(rises) == 0.0
    assert max(rises) > 0.1


def test_the_rise_alone_refuses_and_not_a_number_does_not_pass_for_0() -> None:
    guard, server, state = guard_of({"fragility": NEVER, "rise": Threshold(0.1, 0.0)}, guard="rehearsing", rise=True)
    server = server._replace(velocity=torch.zeros_like(server.theta))
    gradient = guard.model.gradient(server.theta, *guard.probe)
    assert guard.judge(server, gradient, state, NO_NORMS).metrics["refused"] == 0.0
    assert guard.judge(server, -50.0 * gradient, state, NO_NORMS).metrics["refused"] == 1.0
    broken = guard.judge(server, torch.full_like(server.theta, float("nan")), state, NO_NORMS)
    assert math.isnan(broken.metrics["rise"])
    assert not all_below({"rise": float("nan")}, {"rise": NEVER}, 1)


def test_fragility_is_what_one_reversed_step_would_cost() -> None:
    guard, server, state = guard_of({"fragility": NEVER}, guard="rehearsing", bound=2.0)
    judged = guard.judge(server, torch.zeros_like(server.theta), state, NO_NORMS)
    theta, model = judged.server.theta, guard.model
    gradient = model.gradient(theta, *guard.probe)
    hurt = model.loss(theta + 0.5 * 2.0 * gradient / gradient.norm(), *guard.probe) - model.loss(theta, *guard.probe)
    assert set(judged.metrics) & {"history", "fixed", "fragility"} == {"fragility"}
    assert judged.metrics["fragility"] == pytest.approx(float(hurt), rel=1e-4)
    assert judged.metrics["fragility"] > 0.0


def test_probation_clips_each_client_at_the_upper_quartile_of_its_first_round() -> None:
    guard, server, state = guard_of({"history": ALWAYS}, reference="history", probation=2)
    guard = replace(guard, calibration=guard.calibration._replace(during_probation={"history": NEVER}))
    update, wary, clips = torch.ones_like(server.theta), list[bool](), list[Clip | None]()
    quartiles = iter([1.0, 7.0, 1.5, 0.1, 0.2, 7.0, *[7.0] * 9])
    for _ in range(15):
        clips.append(guard.before(state))
        wary.append(clips[-1] is not None)
        norms = torch.tensor([0.0, 0.0, 0.0, next(quartiles), 99.0]) if wary[-1] else torch.tensor([float("nan"), 1e-3])
        state = guard.judge(server, update, state, norms).guard
    assert "".join("-c"[was] for was in wary) == "-cc-cccccccc-cc", "2 rounds of probation, then 8, then 32"
    bounds = [clip.bound if clip else 0.0 for clip in clips]
    assert bounds[1:3] == [2.0, 1.0], (
        "of the calibration, then of the first round of it; not of malicious ones, whose norms are always known"
    )
    assert bounds[4:12] == [2.0] + [1.5] * 7, "not of the last"
    assert bounds[13:] == [2.0, 2.0], "never above the calibration's"


def test_a_probation_is_four_times_as_long_as_the_one_before_however_calm_it_was_in_between() -> None:
    strict, server, state = guard_of({"history": ALWAYS, "fixed": ALWAYS}, probation=2)
    tolerant, _, _ = guard_of({"history": NEVER, "fixed": NEVER}, probation=2)
    update, lengths = torch.ones_like(server.theta), list[int]()
    for _ in range(3):
        state = strict.judge(server, update, state, NO_NORMS).guard
        lengths.append(state.probation)
        for _ in range(lengths[-1] + 30):
            state = tolerant.judge(server, update, state, NO_NORMS).guard
    assert lengths == [2, 8, 32]


def test_the_scope_client_clips_only_the_suspicious() -> None:
    guard, server, state = guard_of({"history": NEVER, "fixed": Threshold(0.05, 0.0)}, scope="client", bound=0.1)
    updates = torch.zeros(3, len(server.theta))
    updates[1] = 8.0 * torch.randn(len(server.theta), generator=torch.Generator().manual_seed(2))
    updates[2] = 0.01
    sifted, metrics = guard.sift(server.theta, updates, state)
    assert torch.equal(sifted[[0, 2]], updates[[0, 2]])
    torch.testing.assert_close(sifted[1], updates[1] * (0.1 / updates[1].norm()))
    assert metrics["refused"] == 1.0


def test_a_threshold_is_a_margin_times_a_line_above_all_clean_rounds() -> None:
    rising = {t: 0.1 + 0.02 * t for t in (1, 2, 3, 4, 8, 9, 10)}
    growth = growth_of(rising)
    assert growth == pytest.approx(0.02)
    assert growth_of({1: 5.0, 2: 4.0}) == 0.0, "what falls does not grow"
    line = fit_threshold(rising, 3.0, growth=growth)
    assert line.start == pytest.approx(0.3)
    assert line.growth == pytest.approx(0.06)
    falling = {1: 5.0, 2: 4.0, 3: 3.0, 4: 3.5}
    assert fit_threshold(falling, 2.0) == Threshold(10.0, 0.0), "a score that does not grow keeps its highest value"
    assert fit_threshold(falling, 1.0, quantile=0.5) == Threshold(3.75, 0.0)
    assert fit_threshold(dict.fromkeys(range(20), 0.0), 3.0, least=0.1) == Threshold(pytest.approx(0.3), 0.0), "steady learning leaves room"
    assert fit_threshold(rising, 3.0, growth=growth, least=0.01) == line
    assert fit_threshold({1: 0.0, 2: 0.0, 3: 1.0}, 1.0, growth=0.5, quantile=0.5).start == 0.0, "never below 0"
    noisy = {1: 0.3, 2: 0.1, 3: 0.5, 4: 0.2, 5: 0.6}
    tight = fit_threshold(noisy, 1.0, growth=0.07)
    above = [tight.at(t) - score for t, score in noisy.items()]
    assert min(above) == pytest.approx(0.0, abs=1e-12)


def test_a_running_mean_begins_at_the_mean_and_forgets() -> None:
    bump = dict(enumerate([0.0] * 40 + [1.0] * 20 + [0.0] * 40, start=1))
    means = running_means(bump)
    assert list(means) == list(bump)
    for t in (1, 30, 50, 60, 100):
        remembered = sum((1 - 1 / MEMORY) ** (t - k) / MEMORY * bump[k] for k in range(1, t + 1))
        assert means[t] == pytest.approx(0.2 * (1 - 1 / MEMORY) ** t + remembered)


def test_what_clean_rounds_tell() -> None:
    """A bump in the rehearsed probation widens only a probation's thresholds; only the fixed discrepancy grows."""
    ramp = [0.01 * t for t in range(1, 101)]
    bump = [0.1] * 60 + [0.9] * 20 + [0.1] * 20
    settings = Strategy.model_validate({"margin": 2.0, "drift": 1.5})
    scores = {"history": bump, "fixed": ramp, "rise": [0.0] * 100}
    known = fit_calibration(settings, scores, range(61, 81), least_rise=0.02, upper_norm=7.0)
    assert known.thresholds["history"] == Threshold(pytest.approx(0.2), 0.0)
    assert known.during_probation["history"] == Threshold(pytest.approx(1.8), 0.0)
    assert known.typical["history"] == Threshold(pytest.approx(0.1), 0.0)
    assert known.levels["history"] == Level(pytest.approx(0.1), pytest.approx(0.15)), "of the rounds outside"
    assert known.thresholds["fixed"] == Threshold(pytest.approx(0.0, abs=1e-12), pytest.approx(0.02))
    assert fit_calibration(settings, {"history": ramp}, range(0), least_rise=0.0, upper_norm=7.0).thresholds["history"] == Threshold(
        2.0, 0.0
    )
    assert known.thresholds["rise"] == known.during_probation["rise"] == Threshold(pytest.approx(0.04), 0.0)
    assert set(known.levels) == {"history", "fixed"}
    assert known.usual() == {"history": pytest.approx(0.1), "fixed": pytest.approx(sum(ramp[:60] + ramp[80:]) / 80)}


@pytest.mark.parametrize(("divergence", "most"), [("kl", 0.006), ("js", 0.0008)])
def test_next_to_nothing_is_no_drift_and_an_infinite_drift_is_none(divergence: str, most: float) -> None:
    settings = Strategy.model_validate({"divergence": divergence, "drift": 2.0})
    calibration = fit_calibration(settings, {"fixed": [1e-5] * 50}, range(0), least_rise=0.0, upper_norm=1.0)
    assert calibration.levels["fixed"] == Level(pytest.approx(1e-5), pytest.approx(most))
    endless = settings.model_copy(update={"drift": math.inf})
    assert fit_calibration(endless, {"fixed": [1e-5] * 50}, range(0), least_rise=0.0, upper_norm=1.0).levels == {}


def judged_rounds(scores: list[float], level: Level, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[Judgement]:
    """Rounds of a guard that sees these scores of the history, under a threshold of 1."""
    guard, server, state = guard_of({"history": Threshold(1.0, 0.0)}, reference="history", **settings)
    guard, rounds = replace(guard, calibration=guard.calibration._replace(levels={"history": level})), list[Judgement]()
    state = guard.begin(server.theta)
    remaining = iter(scores)
    monkeypatch.setattr(Guard, "scores", lambda self, theta, _: ({"history": next(remaining)}, self._log_probs(theta)))
    for _ in scores:
        rounds.append(guard.judge(server, torch.zeros_like(server.theta), state, NO_NORMS))
        state = rounds[-1].guard
    return rounds


def test_many_small_pushes_are_a_drift_and_bring_a_probation(monkeypatch: pytest.MonkeyPatch) -> None:
    level = Level(0.1, 0.15)
    rounds = judged_rounds([0.1] * 5 + [0.3] * 6 + [0.9] * 2 + [0.1] * 3, level, monkeypatch, probation=2)
    drifted = [judged.metrics["drifted"] for judged in rounds]
    assert drifted == [0.0] * 10 + [1.0] + [0.0] * 5, "0.1 + 0.2 * (1 - 0.95^6) > 0.15; of the probation nothing counts"
    assert [judged.metrics["probation"] for judged in rounds] == [0.0] * 11 + [1.0] * 2 + [0.0] * 3
    assert [judged.metrics["refused"] for judged in rounds] == [0.0] * 16, "no step was refused"
    assert [bool(judged.server.velocity.any()) for judged in rounds[9:11]] == [True, False], "what waits in the velocity goes"
    assert [judged.guard.running["history"] for judged in rounds[10:13]] == [0.1] * 3, "it begins anew"
    assert judged_rounds([0.9], Level(0.1, 0.12), monkeypatch)[0].metrics["drifted"] == 1.0
    spike = judged_rounds([5.0], level, monkeypatch, action="skip", probation=0)[0]
    assert (spike.metrics["refused"], spike.metrics["drifted"], spike.guard.running["history"]) == (1.0, 0.0, 0.1), (
        "what was refused is no drift"
    )


def test_a_probation_has_thresholds_of_its_own() -> None:
    guard, server, state = guard_of({"history": ALWAYS}, reference="history", probation=2)
    guard = replace(guard, calibration=guard.calibration._replace(during_probation={"history": NEVER}))
    refused = list[float]()
    for _ in range(5):
        judged = guard.judge(server, torch.ones_like(server.theta), state, NO_NORMS)
        refused.append(judged.metrics["refused"])
        state = judged.guard
    assert refused == [1.0, 0.0, 0.0, 1.0, 0.0]


def test_a_second_drift_brings_a_longer_probation(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = judged_rounds([0.9] * 12, Level(0.1, 0.11), monkeypatch, probation=1)
    assert "".join("-c"[int(judged.metrics["probation"])] for judged in rounds) == "-c-cccc-cccc"


DGC: dict[str, Any] = {"strategy__name": "dgc", "strategy__calibration_rounds": 20, "strategy__probation": 10}


def run(config: Config, folder: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    place = execute_run(config, folder, InlineTransport(answer), lambda *_: None)
    return read_summary(place), read_rounds(place)


@pytest.mark.parametrize(
    "settings", [{}, {"strategy__guard": "both"}, {"strategy__scope": "client", "strategy__bound": 0.1}, {"strategy__reference": "fixed"}]
)
@pytest.mark.slow
def test_dgc_refuses_the_trigger_and_leaves_the_twin_alone(
    configure: Callable[..., Config], tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = configure(**DGC, **settings, control=False, schedule__burn_in_epochs=20)
    summary, tracks = run(config, tmp_path)
    undefended, _ = run(configure(strategy__name="mean", control=False, schedule__burn_in_epochs=20), tmp_path)
    assert tracks["attacked"][3]["strategy"]["refused"] >= 1.0
    assert summary["refused"]["twin"] == 0
    assert summary["drifted"] == {"attacked": sum(line["strategy"].get("drifted", 0.0) for line in tracks["attacked"]), "twin": 0}
    assert summary["accuracy"]["after_trigger"] > undefended["accuracy"]["after_trigger"] + 5.0
    assert summary["accuracy"]["after_trigger"] > summary["accuracy"]["burn_in"] - 3.0
    assert (run_folder(tmp_path, config) / "calibration.json").is_file()


@pytest.mark.slow
def test_the_thresholds_come_from_clean_rounds_alone(configure: Callable[..., Config], tmp_path: Path) -> None:
    """The same with and without an attack, and from other batches than the run's."""
    run(configure(**DGC, control=False), tmp_path / "a")
    run(configure(**DGC, attack__name="none", attack__malicious_fraction=0.0), tmp_path / "b")
    first, second = (next((tmp_path / name).glob("*/calibration.json")).read_text() for name in "ab")
    assert first == second
    few = {"server__clients_per_round": 4}
    attacked = configure(**DGC, **few, attack__poison_ratio=0.5, control=False, twin=False, data__cache_dir=str(tmp_path / "x"))
    unattacked = configure(**DGC, **few, attack__name="none", attack__malicious_fraction=0.0, data__cache_dir=str(tmp_path / "y"))
    run(attacked, tmp_path / "c")
    run(unattacked, tmp_path / "d")
    third, fourth = (next((tmp_path / name).glob("*/calibration.json")).read_text() for name in "cd")
    assert third == fourth != first, "who is malicious among a few sampled clients has no say in it"
    clean = next((tmp_path / "b").glob("*/rounds.jsonl"))
    assert str(run_scores(clean)[0]) not in first


def run_scores(rounds: Path) -> list[float]:
    return [line["strategy"]["fixed"] for line in read_rounds(rounds.parent)["attacked"]]


@pytest.mark.slow
def test_a_calibration_that_permits_too_much_is_said(
    configure: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"strategy__name": "dgc", "strategy__calibration_rounds": 10, "strategy__probation": 4, "twin": False, "control": False}
    for margin, said in ((100.0, True), (1.0, False)):
        place = execute_run(configure(**keys, strategy__margin=margin), tmp_path, InlineTransport(answer), lambda *_: None)
        warnings = json.loads((place / "calibration.json").read_text())["warnings"]
        printed = capsys.readouterr().out
        assert bool(warnings) == said == ("a trigger may pass" in printed)
