"""A defence that did not act is said: rounds skipped, clips that never clipped, more malicious clients than a rule is made for."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from clients.client_app import answer
from experiments.report.outputs import study_tables
from experiments.report.tables import run_table
from experiments.run.execute import execute_run
from experiments.sweep.inaction import inaction_notes
from experiments.sweep.spec import Cell
from experiments.sweep.study import Run, complete_runs, read_run, read_study
from fl_sim.config.keys import Config
from fl_sim.grid.transports import InlineTransport
from tests.support.runs import lines, run

Configure = Callable[..., Config]
ALONE: dict[str, Any] = {"twin": False, "control": False}

OWN = """
from flwr.app import MetricRecord
from flwr.serverapp.strategy import FedAvg

class Shy(FedAvg):
    '''Asks nobody in round 1, and returns nothing in round 2.'''

    def configure_train(self, server_round, arrays, config, grid):
        return [] if server_round == 1 else super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        return (None, MetricRecord({})) if server_round == 2 else super().aggregate_train(server_round, replies)
"""


def printed(summary: dict[str, Any]) -> str:
    """What a run's command prints, on one line."""
    file = io.StringIO()
    Console(width=250, file=file).print(run_table(summary))
    return " ".join(file.getvalue().split())


def notes_of(place: Path) -> list[str]:
    return inaction_notes([read_run(place, Cell({}, {}))])


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("byzfl.TrMean", "f = 5", "expected at least 2f + 1 = 11 updates a round with byzfl.TrMean and f = 5, got 10"),
        ("flwr.Bulyan", "num_malicious_nodes = 2", "Bulyan returned no model from 10 replies"),
    ],
)
@pytest.mark.slow
def test_rounds_with_too_few_replies_are_skipped_and_counted(
    configure: Configure, tmp_path: Path, name: str, options: str, reason: str
) -> None:
    """Two of twelve clients fail. The rule has what it needs from twelve, but not from ten."""
    summary, place = run(configure(strategy__name=name, strategy__options=options, fault__raises="0,1", **ALONE), tmp_path)
    assert summary["skipped"] == {"attacked": summary["rounds"], "twin": None, "reason": reason}
    assert {line["skipped"] for line in lines(place)} == {reason}
    assert summary["accuracy"]["final"] == summary["accuracy"]["burn_in"]
    assert f"{summary['rounds']} of {summary['rounds']} rounds skipped ({reason})" in printed(summary)
    assert any(f"rounds were skipped: {reason}" in note for note in notes_of(place))
    assert "rounds were skipped" in _report(place)


def _report(place: Path) -> str:
    from experiments.report.outputs import write_outputs

    study = read_study(place)
    written = write_outputs(place, study)
    return next(path for path in written if path.suffix == ".html").read_text(encoding="utf-8")


def test_a_strategy_that_asks_nobody_or_returns_nothing_skips_the_round(configure: Configure, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    summary, place = run(configure(strategy__name=f"{path}:Shy", control=False), tmp_path / "runs")
    assert summary["skipped"] == {"attacked": 2, "twin": 2, "reason": "Shy asked no client"}
    first, second, third, *_ = lines(place)
    assert (first["skipped"], first["clients"]) == ("Shy asked no client", 0)
    assert (second["skipped"], second["clients"]) == ("Shy returned no model from 12 replies", 12)
    assert first["accuracy"] == second["accuracy"], "neither moves the model"
    assert "skipped" not in third
    assert third["strategy"]["applied_norm"] > 0.0


@pytest.mark.parametrize(
    ("name", "bound", "acts"),
    [("clip-after", 1e6, False), ("clip-after", 1e-3, True), ("clip-before", 1e6, False), ("clip-before", 1e-3, True)],
)
def test_how_often_a_clip_acted_is_in_the_summary(configure: Configure, tmp_path: Path, name: str, bound: float, acts: bool) -> None:
    summary, place = run(configure(strategy__name=name, strategy__bound=bound, **ALONE), tmp_path)
    rounds = summary["rounds"] if acts else 0
    clipped = summary["clipped"]
    assert (clipped["rounds"], clipped["under_attack"]) == (rounds, 4 if acts else 0), "four rounds until the trigger"
    if name == "clip-before" and acts:  # members send the bound itself, so rounding decides whether they count: 2 of 12
        assert 10 / 12 <= clipped["updates"] <= 1.0
    else:
        assert clipped["updates"] == (0.0 if name == "clip-before" else None)
    assert f"clipped in {rounds} of {summary['rounds']} rounds, {4 if acts else 0} of them under attack" in printed(summary)
    assert any("the clip shortened nothing while the coalition acted" in note for note in notes_of(place)) == (not acts)
    (table,) = study_tables(place, read_study(place))
    assert f"clipped in {rounds} of" in str(table.caption)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("byzfl.CenteredClipping", "tau = 1e-4"),
        ("byzfl.Clipping+Median", "c = 1e-4"),
        ("flwr.DifferentialPrivacyServerSideFixedClipping", '{"noise_multiplier": 0.1, "clipping_norm": 1e-6}'),
    ],
)
def test_the_clips_of_others_are_counted_too(configure: Configure, tmp_path: Path, name: str, options: str) -> None:
    summary, _ = run(configure(strategy__name=name, strategy__options=options, **ALONE), tmp_path)
    assert summary["clipped"] == {"rounds": summary["rounds"], "under_attack": 4, "updates": pytest.approx(1.0)}


@pytest.mark.parametrize(("f", "exceeded"), [(1, 4), (2, 0)])
def test_more_malicious_clients_than_f_are_counted(configure: Configure, tmp_path: Path, f: int, exceeded: int) -> None:
    """Two malicious clients act in the four rounds of the phase and of the trigger, and rest in the recovery."""
    config = configure(strategy__name="byzfl.TrMean", strategy__options=f"f = {f}", **ALONE)
    summary, place = run(config, tmp_path)
    assert summary["tolerance"] == {"f": f, "exceeded": exceeded}
    assert ("more malicious clients than f = 1 in 4 of 6 rounds" in printed(summary)) == bool(exceeded)
    assert len(notes_of(place)) == bool(exceeded)


def test_a_plain_mean_promises_nothing(configure: Configure, tmp_path: Path) -> None:
    summary, place = run(configure(strategy__name="mean", **ALONE), tmp_path)
    assert (summary["clipped"], summary["tolerance"], summary["judged"]) == (None, None, 0)
    assert summary["skipped"] == {"attacked": 0, "twin": None, "reason": None}
    assert notes_of(place) == []
    assert "strategy:" not in printed(summary)


def test_a_guard_that_never_refused_is_said(configure: Configure, tmp_path: Path) -> None:
    config = configure(strategy__name="dgc", strategy__margin=1e6, strategy__drift=float("inf"), strategy__calibration_rounds=10, **ALONE)
    summary, place = run(config, tmp_path)
    assert summary["judged"] == summary["rounds"]
    assert "0 rounds refused, 0 drifts" in printed(summary)
    assert any("the guard refused nothing" in note for note in notes_of(place))


def test_a_burn_in_that_taught_nothing_is_said(configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rate, said in ((30.0, True), (0.03, False)):
        _, place = run(configure(strategy__name="mean", schedule__burn_in_learning_rate=rate, **ALONE), tmp_path)
        assert ("it has learnt nothing (schedule.burn-in-learning-rate" in capsys.readouterr().out) == said
        assert any(note.startswith("burn-in: the model knows one class at most") for note in notes_of(place)) == said


def test_notes_are_counted_by_strategy(configure: Configure, tmp_path: Path) -> None:
    runs: list[Run] = []
    for seed in (1, 2):
        for bound in (1e-3, 1e6):
            config = configure(strategy__name="clip-after", strategy__bound=bound, seed=seed, **ALONE)
            place = execute_run(config, tmp_path, InlineTransport(answer), lambda *_: None)
            runs.append(read_run(place, Cell({}, {"strategy": f"clip-after {bound:g}"})))
    assert inaction_notes(runs) == ["clip-after 1e+06: the clip shortened nothing while the coalition acted (2 of 2 attacked runs)"]
    assert complete_runs(tmp_path, read_study(tmp_path)).problems == []


@pytest.mark.parametrize(
    ("code", "settings", "reason"),
    [
        ("return 0.0 * updates.mean(dim=0)", {}, "the combined update is zero"),
        ("return updates.mean(dim=0)", {"server__learning_rate": 1e-30}, "the server's step is too short to change a float32 weight"),
    ],
)
def test_a_model_that_does_not_move_is_said(configure: Configure, tmp_path: Path, code: str, settings: dict[str, Any], reason: str) -> None:
    """Its accuracy does not drop, whatever the attack sends."""
    path = tmp_path / "own.py"
    path.write_text(f"def rule(updates, weights):\n    {code}\n")
    summary, place = run(configure(strategy__name=f"{path}:rule", **settings, **ALONE), tmp_path / "runs")
    assert summary["skipped"] == {"attacked": summary["rounds"], "twin": None, "reason": reason}
    assert any(f"rounds were skipped: {reason}" in note for note in notes_of(place))


def test_a_filter_that_leaves_out_nobody_is_said(configure: Configure, tmp_path: Path) -> None:
    _, place = run(configure(strategy__name="fldetector", strategy__options="window = 50", **ALONE), tmp_path)
    assert notes_of(place) == ["fldetector: it left out no client while the coalition acted"]


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"schedule__accumulate_rounds": 0}, "the run has no round in which the coalition may act"),
        ({"attack__name": "trigger-only"}, "the run has no round in which the coalition may act"),
        ({"attack__malicious_fraction": 0.09, "server__clients_per_round": 1}, "no malicious client was sampled in a round in which"),
        (
            {"fault__raises": "0,1,2,3,4,5,6,7,8,9,10", "attack__malicious_fraction": 0.09, "seed": 1},
            "every malicious client failed in each round",
        ),
    ],
)
def test_an_attack_that_never_acts_is_said(configure: Configure, tmp_path: Path, settings: dict[str, Any], note: str) -> None:
    _, place = run(configure(schedule__triggers=0, strategy__name="mean", **{**ALONE, **settings}), tmp_path)
    assert any(note in text for text in notes_of(place)), notes_of(place)


def test_a_wrapper_of_flower_says_nothing_of_our_records(configure: Configure, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = '{"noise_multiplier": 0.1, "clipping_norm": 1e-3}'
    run(configure(strategy__name="flwr.DifferentialPrivacyServerSideFixedClipping", strategy__options=options, **ALONE), tmp_path)
    assert "overwritten" not in "".join(capfd.readouterr())
