"""What is printed is what is there: brackets, characters that the terminal does not have, long names, readers that leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from experiments import cli
from experiments.launch.doctor import doctor
from experiments.launch.launch import error_console
from experiments.launch.progress.display import display
from experiments.sweep.study import read_study
from fl_sim.registry import how_to_install
from tests.support.small_run import ALONE, SMALL, words
from tests.support.small_study import write_run, write_study_records

pytestmark = pytest.mark.slow  # many small runs and processes

ODD = ["[extra]", "[/]", "[bold]", "[red]x[/red]", "a:smile:b", "100 %", "a#b", "{a}", "$x$ and $", "ü ß 漢"]


def run_command(*line: str, stdout: int | None = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "experiments", *line]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **environment}, timeout=100, check=False)


@pytest.mark.parametrize("name", ODD)
def test_a_list_shows_names_as_they_are(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = write_run(tmp_path / name, {"name": "small"})
    assert cli.main(["list", str(tmp_path)]) == 0
    assert f"{name}/{place.name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ODD)
def test_an_error_shows_names_as_they_are(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", str(tmp_path / name)]) == 2
    assert str(tmp_path / name) in capsys.readouterr().err


@pytest.mark.parametrize("name", ODD)
def test_a_report_of_a_folder_of_any_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: Path(path).touch())
    write_study_records(tmp_path / name, seeds=(1,))
    (tmp_path / name / "study.json").unlink()
    assert cli.main(["report", str(tmp_path / name)]) == 0
    assert f"records: {tmp_path / name / 'results.csv'}\n" in capsys.readouterr().out


def test_dollars_in_a_label_are_no_mathematics(tmp_path: Path) -> None:
    """matplotlib sets what stands between two dollars as mathematics, and raises if it is none."""
    record = tmp_path / "study.json"
    write_study_records(tmp_path, seeds=(1,))
    record.write_text(record.read_text().replace('"strategy": "mean"', '"strategy": "own$^_$.py:mean"'))
    assert read_study(tmp_path).cells[0].labels["strategy"] == "own$^_$.py:mean"
    assert cli.main(["report", str(tmp_path)]) == 0


@pytest.mark.parametrize("name", ["own[extra].py", "own[red]x[].py", "o$w^n_$.py"])
def test_a_run_with_a_file_of_any_name(name: str, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / name
    own.write_text("def mean(updates, weights):\n    return (updates * weights[:, None]).sum(0) / weights.sum()\n")
    line = ["run", "digits", "--transport", "inline", "-o", str(tmp_path / "out"), *SMALL, *words(ALONE)]
    assert cli.main([*line, "-c", f"data.cache-dir={cache_dir}", "-c", f"strategy.name={own}:mean"]) == 0
    captured = capsys.readouterr()
    assert f"against {own}:mean · " in captured.err
    assert cli.main(["list", str(tmp_path / "out")]) == 0
    assert f"{own.name}:mean" in capsys.readouterr().out


def test_a_missing_package_is_named_with_its_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.launch.doctor.find_spec", lambda name: None)
    doctor(error_console())
    assert f"no byzfl ({how_to_install('byzfl')})" in capsys.readouterr().err


def test_a_long_path_stays_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = Path(*(30 * "x" for _ in range(12)))
    place = write_run(tmp_path / deep, {"name": "n" * 64})
    assert cli.main(["list", str(tmp_path)]) == 0
    assert f" {deep / place.name} " in capsys.readouterr().out


def test_a_line_for_the_user_is_shown_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with display(error_console(), "a run", []) as on_line:
        on_line("fl-sim: waiting for worker 1 [/]")
        assert "warning: waiting for worker 1 [/]" in capsys.readouterr().err


@pytest.mark.parametrize("line", [["list"], ["report", "--latex"]], ids=["list", "report"])
def test_a_reader_that_leaves(line: list[str], tmp_path: Path) -> None:
    """`fl-sim list | head -1`"""
    write_study_records(tmp_path, seeds=(1,))
    reader, writer = os.pipe()
    os.close(reader)
    done = run_command(line[0], str(tmp_path), *line[1:], stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_standard_output_on_a_full_disk(tmp_path: Path) -> None:
    write_run(tmp_path, {"name": "small"})
    with Path("/dev/full").open("wb") as full:
        done = run_command("list", str(tmp_path), stdout=full.fileno())
    assert (done.returncode, done.stderr) == (1, b"error: standard output could not be written: No space left on device\n")


def test_no_standard_output(tmp_path: Path) -> None:
    write_run(tmp_path, {"name": "small"})
    command = f"{sys.executable} -m experiments list {tmp_path} >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=100, check=False)
    assert b"Traceback" not in done.stderr
    assert done.returncode in (0, 1)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"NO_COLOR": "1", "TERM": "dumb"},
        {"FORCE_COLOR": "1"},
    ],
    ids=str,
)
def test_a_terminal_that_does_not_have_the_characters(environment: dict[str, str], tmp_path: Path) -> None:
    place = write_run(tmp_path / "ü [extra]", {"name": "small"})
    (tmp_path / "ü [extra]" / "small-0123456789ab").mkdir()
    (tmp_path / "ü [extra]" / "small-0123456789ab" / "summary.json").write_text("{")
    done = run_command("list", str(tmp_path), **environment)
    assert done.returncode == 0, done.stderr
    assert place.name.encode() in done.stdout
    assert b"Traceback" not in done.stderr
    assert b"[extra]/small-0123456789ab" in done.stderr


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """A folder's name may be any bytes."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    place = write_run(folder, {"name": "small"})
    for line in (["list", str(tmp_path)], ["report", str(folder)]):
        done = run_command(*line)
        assert done.returncode == 0, done.stderr
    assert place.name.encode() in run_command("list", str(tmp_path)).stdout


def test_a_missing_package_is_installed_by_make_in_a_checkout_alone(tmp_path: Path) -> None:
    assert how_to_install("byzfl", tmp_path) == "pip install 'fl-sim[byzfl]'"
    (tmp_path / "Makefile").touch()
    assert how_to_install("byzfl", tmp_path) == f"make .venv in {tmp_path}"
