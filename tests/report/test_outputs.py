"""`fl-sim report` and `fl-sim list`: what they write and print, whatever state the runs are in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cli
from experiments.report.outputs import study_tables, write_outputs
from experiments.sweep.study import read_study
from tests.support.small_study import write_study_records

NAMES = {"results.csv", "accuracy.png", "matrix.png", "poison_ratio.png", "stealth.png", "report.html"}


@pytest.mark.slow
def test_report_makes_everything_anew_from_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra parquet)")
    write_study_records(tmp_path)
    made = write_outputs(tmp_path, read_study(tmp_path))
    assert {path.name for path in made} == NAMES
    before = {path: path.read_bytes() for path in made}
    for path in made:
        path.unlink()
    assert cli.main(["report", str(tmp_path), "--parquet", "--latex"]) == 0
    assert {path: path.read_bytes() for path in made} == before, "the same bytes"
    out = capsys.readouterr().out
    for name in (*NAMES, "results.parquet", "results.tex"):
        assert f" {tmp_path / name}\n" in out
        assert (tmp_path / name).is_file()
    assert "97.5 (97.0 to 98.0)" in out


def test_a_report_wants_complete_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "expected DIR to be a folder with runs" in capsys.readouterr().err
    for run in write_study_records(tmp_path):
        (run.folder / "summary.json").unlink()
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "with 12 incomplete" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.usefixtures("empty_figures")
def test_one_damaged_run_does_not_stop_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = write_study_records(tmp_path)[3].folder / "rounds.jsonl"
    cut.write_bytes(cut.read_bytes()[:-37])
    assert cli.main(["report", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert f"{cut}, line 10 is damaged" in captured.err
    assert "the run is left out" in captured.err
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 12, "a heading and eleven runs"
    assert "11 of 12 runs complete" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_the_report_of_a_run_does_not_overwrite_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study_records(tmp_path)[8].folder  # DGC, attacked
    assert cli.main(["report", str(folder)]) == 0
    out = capsys.readouterr().out
    own = {"accuracy.png", "attack.png", "guard.png"}
    assert {path.name for path in folder.glob("*.png")} == own
    assert {path.name for path in (folder / "report").iterdir()} >= {"results.csv", "accuracy.png", "accuracy.pdf", "report.html"}
    assert (folder / "accuracy.png").read_bytes() != (folder / "report" / "accuracy.png").read_bytes()
    assert all(f"figure:  {folder / name}" in out for name in own)
    assert "attacked" in out, "its figures stand beside its table"
    first = (folder / "accuracy.png").read_bytes()
    (folder / "accuracy.png").unlink()
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "accuracy.png").read_bytes() == first, "drawn anew"
    assert len(read_study(tmp_path).folders) == 12, "and it is still one run of its sweep"


@pytest.mark.parametrize("name", ["rounds.jsonl", "summary.json", "config.json"])
def test_one_damaged_run_does_not_stop_a_list(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_study_records(tmp_path)
    cut = runs[3].folder / name
    cut.write_bytes(cut.read_bytes()[:-37])
    assert cli.main(["list", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "11 runs, 11 complete, 1 damaged" in captured.out
    assert str(cut) in captured.err
    assert "the run is left out" in captured.err
    assert [run.folder.name in captured.out for run in runs] == [run is not runs[3] for run in runs]


def test_a_list_follows_links_and_has_names_that_can_be_searched_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_study_records(tmp_path / "real")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "scratch").symlink_to("../real")
    (runs[0].folder / "summary.json").unlink()
    with (runs[0].folder / "rounds.jsonl").open("a") as file:
        file.write('{"tra')
    assert cli.main(["list", str(tmp_path / "runs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(f"scratch/{run.folder.name} " in line for run in runs for line in lines) == 12
    assert any("10 so far" in line and "incomplete" in line for line in lines), "the last line may be half of one"
    assert lines[-1].strip() == "12 runs, 11 complete"


@pytest.mark.usefixtures("empty_figures")
@pytest.mark.slow
def test_the_tables_of_a_search_and_of_published_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study_records(tmp_path / "search", stealth_limit=2.0)
    (table,) = study_tables(tmp_path / "search", read_study(tmp_path / "search"))
    assert table.title == "the worst of 12 settings"
    assert table.row_count == 10
    assert {path.name for path in write_outputs(tmp_path / "search", read_study(tmp_path / "search"))} >= {"search.png", "report.html"}
    numbers = [{"at": {"strategy": "mean", "attack.poison-ratio": "0.1"}, "accuracy": 33.0}]
    entry = {"source": "A paper", "setting": "B", "numbers": numbers, "chains": {}, "rows": []}
    monkeypatch.setattr("experiments.sweep.published.published_numbers", lambda: {"test": entry})
    for module in ("outputs", "tables", "html_page"):
        monkeypatch.setattr(f"experiments.report.{module}.published_numbers", lambda: {"test": entry})
    write_study_records(tmp_path / "sweep", published="test")
    study = read_study(tmp_path / "sweep")
    matrix, published = study_tables(tmp_path / "sweep", study)
    assert "after the trigger" in str(matrix.caption)
    assert [next(iter(column.cells)) for column in published.columns] == ["mean · poison-ratio 0.1", "33.0", "38.5 (38.0 to 39.0)", "+5.5"]
    made = write_outputs(tmp_path / "sweep", study)
    assert tmp_path / "sweep" / "published.png" in made
    assert "A paper" in (tmp_path / "sweep" / "report.html").read_text()


@pytest.mark.slow
def test_a_command_that_runs_loads_nothing_that_draws() -> None:
    """pandas, matplotlib, plotly and Optuna take a second each, scipy half of one."""
    code = "import sys, experiments.cli, experiments.launch.serve, experiments.report.tables; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pandas", "matplotlib", "plotly", "optuna", "pyarrow", "scipy"} & set(loaded)
