"""What is grouped over the seeds: matrices, curves, points."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.report.views import (
    FROM_START,
    FROM_TRIGGER,
    accuracy_matrix,
    matrix_of,
    ratio_axis,
    ratio_curves,
    round_panels,
    search_ranking,
    stealth_points,
    worst_cases,
)
from experiments.sweep.spec import Cell
from experiments.sweep.study import Run
from tests.support.small_study import SEEDS, accuracy_left, write_study_records


def run(labels: dict[str, str], flat: dict[str, Any] | None = None, after: float | None = 50.0, **summary: Any) -> Run:
    figures = {"accuracy": {"after_trigger": after, "final": 97.0}, "stealth_gap": None, "drop": None, **summary}
    return Run(Cell(flat or {}, labels), Path(), figures)


def ratio_run(strategy: str, ratio: float, seed: int, after: float | None, gap: float | None = 0.5, drop: float | None = 60.0) -> Run:
    flat = {"strategy.name": strategy, "attack.poison-ratio": ratio, "seed": seed}
    labels = {"strategy": strategy, "attack.poison-ratio": str(ratio), "seed": str(seed)}
    return run(labels, flat, after, stealth_gap=gap, drop=drop)


RUNS = [
    ratio_run("mean", 0.1, 1, 20.0),
    ratio_run("mean", 0.0, 1, 99.0, gap=None),
    ratio_run("mean", 0.1, 2, 30.0, drop=None),
    ratio_run("dgc", 0.0, 1, 98.0),
    ratio_run("dgc", 0.1, 1, None),
]


def test_curves_hold_the_seeds_of_each_ratio() -> None:
    assert ratio_axis(RUNS) == "attack.poison-ratio"
    assert ratio_axis(RUNS[:1]) is None, "one ratio is no curve"
    assert ratio_axis([run({"seed": "1"}), run({"seed": "2"})]) is None
    curves = ratio_curves(RUNS, "attack.poison-ratio")
    assert list(curves) == ["mean", "dgc"]
    assert curves["mean"]["list"].to_dict() == {0.0: [99.0], 0.1: [20.0, 30.0]}
    assert curves["dgc"]["list"].to_dict() == {0.0: [98.0], 0.1: [97.0]}, "the end where no trigger fired"
    assert list(curves["mean"].index) == [0.0, 0.1], "ascending, whatever order the spec has"
    assert tuple(curves["mean"].loc[0.1, ["mean", "min", "max"]]) == (25.0, 20.0, 30.0)


def test_points_are_runs_that_have_both_numbers() -> None:
    points = stealth_points(RUNS)
    assert list(points["group"]) == ["mean", "dgc", "dgc"]
    assert list(points.index) == [0, 3, 4], "their places among the runs"
    assert set(points["gap"]) == {0.5}
    named = run({"attack.poison-ratio": "0.1", "strategy.name": "mean"}, stealth_gap=0.1, drop=1.0)
    assert list(stealth_points([named])["group"]) == ["mean"], "by strategy where there is one"
    assert list(stealth_points([run({"seed": "1"}, stealth_gap=0.1, drop=1.0)])["group"]) == ["runs"]
    assert stealth_points([run({"strategy": "mean"})]).empty


def test_a_matrix_is_in_the_order_of_the_study_with_gaps_where_nothing_was_run() -> None:
    runs = [
        run({"strategy": "mean", "attack": "z", "seed": "1"}, after=10.0),
        run({"strategy": "mean", "attack": "a", "seed": "1"}, after=None),
        run({"strategy": "dgc", "attack": "z", "seed": "1"}, after=30.0),
        run({"strategy": "mean", "attack": "z", "seed": "2"}, after=20.0),
    ]
    matrix = accuracy_matrix(runs)
    assert (matrix.axis, matrix.what) == ("strategy", "test accuracy after the trigger (%)")
    texts = matrix.texts()
    assert list(texts.index) == ["mean", "dgc"]
    assert list(texts.columns) == ["z", "a"]
    assert texts.to_numpy().tolist() == [["15.0 (10.0 to 20.0)", "-"], ["30.0", "-"]]
    means, title = matrix.means()
    assert means.loc["z", "mean"] == 15.0, "as many columns as rows: columns go down"
    assert math.isnan(means.loc["a", "dgc"])
    assert title == "test accuracy after the trigger (%), mean over seeds"
    assert accuracy_matrix([run({"seed": "1"}), run({"seed": "2"}, after=60.0)]).texts().to_dict() == {
        "accuracy": {"all seeds": "55.0 (50.0 to 60.0)"}
    }


def test_matrix_of_runs_in_which_nothing_fired(tmp_path: Path) -> None:
    runs = write_study_records(tmp_path)
    quiet = [dataclasses.replace(run, summary={**run.summary, "accuracy": {"after_trigger": None, "final": 99.0}}) for run in runs]
    matrix = accuracy_matrix(quiet)
    assert "at the end" in matrix.what
    assert matrix.texts().loc["mean", "0.1"] == "99.0 (99.0 to 99.0)"


def test_a_run_without_a_trigger_is_measured_at_the_end_of_its_attack_and_one_without_an_attack_at_its_end(tmp_path: Path) -> None:
    runs = write_study_records(tmp_path)
    fired = accuracy_matrix(runs)
    accuracy = {"after_trigger": None, "end_of_attack": 41.0, "final": 99.0}
    held = [dataclasses.replace(runs[0], summary={**runs[0].summary, "accuracy": accuracy}), *runs[1:]]
    matrix = accuracy_matrix(held)
    assert matrix.what == "test accuracy after the trigger, or at the end of the attack (%)"
    assert 41.0 in matrix.values.tolist()
    assert len(matrix.values.dropna()) == len(fired.values.dropna())
    nobody = {**runs[0].config, "attack.name": "none"}
    clean = [dataclasses.replace(held[0], config=nobody, summary={**runs[0].summary, "accuracy": {"final": 98.0}}), *runs[1:]]
    assert accuracy_matrix(clean).what == "test accuracy after the trigger, or at the end where nobody attacks (%)"
    assert 98.0 in accuracy_matrix(clean).values.tolist()


def test_worst_cases_take_the_mean_over_seeds_and_then_the_least() -> None:
    def tried(strategy: str, attack: str, rho: float, seed: int, left: float) -> Run:
        flat = {"strategy.name": strategy, "attack.name": attack, "attack.rho": rho, "seed": seed}
        labels = {"strategy": strategy, "attack.name": attack, "attack.rho": str(rho), "seed": str(seed)}
        return run(labels, flat, left)

    runs = [
        tried("mean", "accumulative", 0.5, 1, 10.0), tried("mean", "accumulative", 0.5, 2, 90.0),
        tried("mean", "accumulative", 1.0, 1, 40.0), tried("mean", "accumulative", 1.0, 2, 42.0),
        tried("dgc", "accumulative", 0.5, 1, 97.0), tried("mean", "ipm", 0.5, 1, 70.0),
    ]  # fmt: skip
    matrix = worst_cases(runs)
    assert matrix is not None
    assert matrix.values.to_dict() == {("mean", "accumulative"): 41.0, ("dgc", "accumulative"): 97.0, ("mean", "ipm"): 70.0}, (
        "10 is no worst case but one seed's"
    )
    assert worst_cases([dataclasses.replace(each, cell=Cell({}, {"strategy": "mean"})) for each in runs]) is None


def test_curves_are_of_the_same_moments(tmp_path: Path) -> None:
    shown = round_panels(write_study_records(tmp_path))
    assert shown.counted == FROM_TRIGGER
    panel = shown.panels["0.1"]
    curve = panel.curves["mean"]
    at = dict(zip(curve.rounds, zip(curve.mean, curve.least, curve.most, strict=True), strict=True))
    left = [accuracy_left("mean", 0.1, seed) for seed in SEEDS]
    assert at[0] == (pytest.approx(sum(left) / 2), pytest.approx(min(left)), pytest.approx(max(left))), (
        "both seeds right after their trigger"
    )
    assert at[-1] == pytest.approx((98.5, 98.5, 98.5)), "and right before it, though neither was evaluated there"
    assert at[-6] == pytest.approx((97.0, 97.0, 97.0)), "seed 2 alone starts six rounds before its trigger"
    assert [phase for phase, _, _ in panel.phases] == ["accumulate", "trigger", "recover"]
    assert panel.phases[1][1:] == (0, 0)
    assert shown.panels["0"].phases == []
    assert (
        round_panels([run for run in write_study_records(tmp_path / "b") if run.cell.labels["attack.poison-ratio"] == "0"]).counted
        == FROM_START
    )


def test_a_search_ranks_what_was_left_below_the_limit_first() -> None:
    labels = [{"attack.rho": str(number)} for number in range(4)]
    lost = [(30.0, 0.0), (10.0, 5.0), (20.0, 2.0), (90.0, None)]
    runs = [run(label, after=left, stealth_gap=gap, worst_loss_in_phase=1.0) for label, (left, gap) in zip(labels, lost, strict=True)]
    ranking = search_ranking(runs, limit=2.0)
    assert list(ranking["attack.rho"]) == ["2", "0", "3", "1"], "10 % are left by what cost too much"
    assert list(ranking["over"]) == [False, False, False, True]
    assert list(ranking["cost"]) == [2.0, 0.0, 1.0, 5.0], "without a twin, what the phase lost"


def test_a_study_without_a_second_axis_has_its_clean_twins_beside() -> None:
    runs = [
        run({"strategy": strategy, "seed": seed}, after=after, clean_twin={"at_trigger": clean})
        for strategy, seed, after, clean in (("dgc", "1", 88.0, 93.0), ("dgc", "2", 89.0, 94.0), ("median", "1", 89.0, 90.0))
    ]
    assert accuracy_matrix(runs).texts().to_dict() == {
        "accuracy": {"dgc": "88.5 (88.0 to 89.0)", "median": "89.0"},
        "clean twin": {"dgc": "93.5 (93.0 to 94.0)", "median": "90.0"},
    }
    unlike = [*runs, run({"strategy": "mean", "seed": "1"}, clean_twin=None)]
    assert list(accuracy_matrix(unlike).texts()) == ["accuracy"], "only where every run has one"


def test_a_figure_of_one_seed_does_not_speak_of_a_mean(tmp_path: Path) -> None:
    assert round_panels(write_study_records(tmp_path / "two")).over == "mean over seeds, least to most shaded"
    assert round_panels(write_study_records(tmp_path / "one", seeds=(1,))).over == "one seed"


def test_a_share_of_clients_is_not_headed_accuracy() -> None:
    runs = [run({"strategy": "mean", "seed": "1"})]
    assert list(matrix_of(runs, pd.Series([17.0]), "malicious clients that the strategy left out (%)").texts()) == ["percent"]
    assert list(matrix_of(runs, pd.Series([17.0]), "Accuracy of the worst class (%)").texts()) == ["accuracy"]
