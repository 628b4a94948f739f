"""The matrices of a study beside its accuracies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.report.measures import MEASURES, measured
from experiments.report.outputs import study_tables, write_outputs
from experiments.sweep.spec import Cell
from experiments.sweep.study import Run, read_study
from tests.support.small_study import write_study_records


def run(strategy: str, seed: int, summary: dict[str, Any], attacked: int = -1) -> Run:
    labels = {"strategy": strategy, "seed": str(seed)}
    config = {"attack.name": "accumulative", "attack.class": attacked, "attack.attacked": -1}
    return Run(Cell({"strategy.name": strategy, "seed": seed}, labels), Path(f"{strategy}-{seed}"), summary, config, {})


def test_each_measure_is_taken_where_it_was_measured() -> None:
    classes = {"after_trigger": None, "end_of_attack": [90.0, 4.0, None], "final": [99.0, 50.0, None]}
    full = {
        "accuracy_by_class": classes,
        "attack_success_rate": {"end_of_attack": 80.0, "final": 7.0},
        "filtering": {"true_positive_rate": 0.75, "false_positive_rate": None},
    }
    fired = {"accuracy_by_class": {**classes, "after_trigger": [10.0, 20.0, None]}, "attack_success_rate": None}
    found = measured([run("mean", 1, full, attacked=1), run("dgc", 1, fired, attacked=0), run("dgc", 2, {}, attacked=0)])
    means = {name: matrix.grid("mean").iloc[:, 0].to_dict() for name, matrix in found.items()}
    nan = pytest.approx(float("nan"), nan_ok=True)
    assert means == {
        "attacked_class": {"mean": 4.0, "dgc": 10.0},
        "success": {"mean": 80.0, "dgc": nan},
        "success_final": {"mean": 7.0, "dgc": nan},
        "true_positives": {"mean": 75.0, "dgc": nan},
        "worst_class": {"mean": 4.0, "dgc": 10.0},
    }
    assert list(found) == [name for name in MEASURES if name != "false_positives"], (
        "in the order of the table, and nothing that nobody measured"
    )


def test_the_class_that_moles_attack_has_a_key_of_its_own() -> None:
    one = run("mean", 1, {"accuracy_by_class": {"after_trigger": None, "end_of_attack": [90.0, 4.0], "final": None}})
    moles = replace(one, config={**one.config, "attack.name": "moles", "attack.attacked": 1})
    assert "attacked_class" not in measured([one])
    assert measured([moles])["attacked_class"].grid("mean").iloc[0, 0] == 4.0


@pytest.mark.usefixtures("empty_figures")
@pytest.mark.slow
def test_a_study_of_backdoors_prints_and_draws_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study_records(tmp_path)
    monkeypatch.setitem(MEASURES, "success", MEASURES["success"]._replace(value=lambda run: 12.5 * run.config["seed"]))
    study = read_study(tmp_path)
    _, success = study_tables(tmp_path, study)
    assert "attack success rate" in str(success.caption)
    assert "18.8 (12.5 to 25.0)" in list(success.columns[1].cells)
    names = {path.name for path in write_outputs(tmp_path, study)}
    assert "success.png" in names
    assert "success_final.png" not in names
    assert "Attack success rate at the end of the attack (%), mean over seeds" in (tmp_path / "report.html").read_text()
