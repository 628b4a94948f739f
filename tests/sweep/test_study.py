"""What is read back from a study's folder, whatever state its runs are in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.sweep.spec import Cell
from experiments.sweep.study import Run, complete_runs, read_study, run_folders, write_study
from fl_sim.config.resolve import ConfigError
from tests.support.small_study import write_study_records


def test_a_study_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    runs = write_study_records(tmp_path, published="pang2021-table3")
    study = read_study(tmp_path)
    assert study.base == {"name": "small", "model.name": "mlp"}
    assert study.published == "pang2021-table3"
    assert complete_runs(tmp_path, study) == (runs, [])
    assert len(runs) == 12
    write_study(tmp_path, study)
    assert read_study(tmp_path) == study
    assert [list(cell.flat) for cell in read_study(tmp_path).cells] == [["strategy.name", "attack.poison-ratio", "seed"]] * 12, "in order"


def test_a_run_holds_what_the_report_needs_of_it(tmp_path: Path) -> None:
    run = write_study_records(tmp_path)[2]
    assert run.curve == dict.fromkeys(range(2, 11, 2), 98.0)
    assert run.config["attack.poison-ratio"] == 0.1
    assert run.meta["device"] == "cpu <of a test>"
    assert run.summary["trigger_round"] == 5


def test_runs_without_a_study_are_told_apart_by_the_keys_in_which_they_differ(tmp_path: Path) -> None:
    write_study_records(tmp_path)
    (tmp_path / "study.json").unlink()
    study = read_study(tmp_path)
    assert {axis for cell in study.cells for axis in cell.labels} == {"seed", "strategy.name", "attack.poison-ratio"}
    assert study.base["model.name"] == "mlp"
    assert "strategy.name" not in study.base
    assert "output-dir" not in study.base
    one = tmp_path / study.folders[0]
    assert [cell.labels for cell in read_study(one).cells] == [{}], "a folder may be a run itself"


def test_an_incomplete_run_is_left_out_without_a_word(tmp_path: Path) -> None:
    runs = write_study_records(tmp_path)
    (runs[3].folder / "summary.json").unlink()
    assert complete_runs(tmp_path, read_study(tmp_path)) == ([*runs[:3], *runs[4:]], [])


@pytest.mark.parametrize("recorded", [True, False], ids=["a sweep", "any runs"])
@pytest.mark.parametrize("name", ["rounds.jsonl", "summary.json", "config.json", "meta.json"])
def test_a_damaged_run_is_named_and_the_others_are_there(name: str, recorded: bool, tmp_path: Path) -> None:
    runs = write_study_records(tmp_path)
    if not recorded:
        (tmp_path / "study.json").unlink()
    cut = runs[3].folder / name
    cut.write_bytes(cut.read_bytes()[:-37])
    complete, problems = complete_runs(tmp_path, read_study(tmp_path))
    assert {run.folder for run in complete} == {run.folder for run in runs if run is not runs[3]}
    (problem,) = problems
    assert problem.startswith(f"{cut}, line 10 is damaged: " if name == "rounds.jsonl" else f"{cut} is damaged (JSONDecodeError: ")
    assert problem.endswith("; the run is left out")


def test_a_file_that_is_missing_is_damage_too(tmp_path: Path) -> None:
    runs = write_study_records(tmp_path)
    (runs[0].folder / "meta.json").unlink()
    complete, problems = complete_runs(tmp_path, read_study(tmp_path))
    assert len(complete) == 11
    assert problems == [f"{runs[0].folder / 'meta.json'} is damaged (No such file or directory); the run is left out"]


def test_a_damaged_study_is_named(tmp_path: Path) -> None:
    write_study_records(tmp_path)
    record = tmp_path / "study.json"
    record.write_bytes(record.read_bytes()[:-37])
    with pytest.raises(ConfigError, match=r"study\.json is damaged .* without it the study is all runs below its folder"):
        read_study(tmp_path)


def test_links_are_followed_and_each_run_is_there_once(tmp_path: Path) -> None:
    write_study_records(tmp_path / "real")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "scratch").symlink_to("../real")
    (tmp_path / "runs" / "scratch" / "around").symlink_to("..")
    folders = run_folders(tmp_path / "runs")
    assert len(folders) == 12
    assert all(folder.parent == tmp_path / "runs" / "scratch" for folder in folders)
    assert len(run_folders(tmp_path)) == 12, "two ways lead there"
    (tmp_path / "real" / "study.json").unlink()
    assert len(complete_runs(tmp_path / "runs", read_study(tmp_path / "runs")).runs) == 12


def test_infinite_bounds_are_text_in_the_record(tmp_path: Path) -> None:
    write_study_records(tmp_path)
    study = read_study(tmp_path)
    cell = Cell({"strategy.bound": float("inf")}, {"strategy.bound": "inf"})
    write_study(tmp_path, type(study)("s", {"attack.norm-bound": float("inf")}, (cell,), ("x",)))
    record = json.loads((tmp_path / "study.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["base"] == {"attack.norm-bound": "inf"}
    assert record["cells"][0]["flat"] == {"strategy.bound": "inf"}


def test_a_run_may_be_made_without_records() -> None:
    assert Run(Cell({}, {}), Path(), {}).curve == {}
