"""Records that were cut or spoilt: the run is named, and report, list, search and Python go on with the others."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fl_sim
from clients.client_app import answer
from experiments import cli
from experiments.api import Run
from experiments.records.folder import is_complete, run_folder
from experiments.records.reading import RECORDS, DamagedError
from experiments.report.outputs import write_outputs
from experiments.report.tables import runs_table
from experiments.run.execute import execute_run, run_lock
from experiments.sweep.search import evaluated
from experiments.sweep.study import complete_runs, read_study, run_folders
from fl_sim.config.resolve import ConfigError, resolve
from fl_sim.grid.transports import InlineTransport
from tests.support.small_run import ALONE, SETTINGS, SMALL, words
from tests.support.small_study import write_study_records

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("empty_figures")]  # many small runs and processes

CASES = 60  # for each file


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """A study of twelve runs. The records of the one that is spoilt are those of a real run under DGC, with twin and control."""
    folder = tmp_path_factory.mktemp("records")
    write_study_records(folder)
    dgc = {"strategy.name": "dgc", "strategy.calibration-rounds": 10, "strategy.probation": 2, "data.cache-dir": str(cache_dir)}
    real = execute_run(resolve({**SETTINGS, **dgc}), tmp_path_factory.mktemp("real"), InlineTransport(answer), lambda *_: None)
    for name in RECORDS:
        shutil.copy(real / name, one_run(folder) / name)
    return folder


@pytest.fixture
def study(records: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(records, tmp_path / "study"))


def one_run(folder: Path) -> Path:
    """DGC's run under attack: its records have the most in them."""
    return folder / read_study(folder).folders[8]


def check_that_it_goes_on(folder: Path, spoilt: Path, *, report: bool) -> None:
    """Either the run's records can still be read, or it is named and left out; the other eleven are there."""
    table, problems = runs_table(folder)
    assert table.row_count + len(problems) == 12
    assert all(str(spoilt.parent) in problem for problem in problems)
    runs, reasons = complete_runs(folder, read_study(folder))
    assert len(runs) + len(reasons) == 12
    assert len(runs) >= 11
    assert all(str(spoilt) in reason and "the run is left out" in reason for reason in reasons)
    if report:
        write_outputs(folder, read_study(folder), runs)


@pytest.mark.parametrize("name", RECORDS)
def test_a_file_that_is_cut_anywhere(name: str, study: Path) -> None:
    """Every file of a run, cut at random bytes: 240 cases."""
    path = one_run(study) / name
    whole, draw = path.read_bytes(), random.Random(name)
    for case in range(CASES):
        path.write_bytes(whole[: draw.randrange(len(whole))])
        check_that_it_goes_on(study, path, report=case % 30 == 0)


@pytest.mark.parametrize("name", RECORDS)
def test_a_file_with_other_bytes(name: str, study: Path) -> None:
    """Every file of a run, with a few random bytes in it: 240 cases, many of which stay valid."""
    path = one_run(study) / name
    whole, draw = path.read_bytes(), random.Random(name)
    for case in range(CASES):
        spoilt = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            spoilt[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(spoilt)
        check_that_it_goes_on(study, path, report=case % 20 == 0)


VALUES: tuple[Any, ...] = (None, True, -1, 10**30, 1.5, "", "text", [], {}, [1], {"a": 1}, "NaN")


def paths_of(value: Any) -> list[list[Any]]:
    """The path of every value in a record."""
    if not isinstance(value, dict):
        return []
    return [path for key, item in value.items() for path in ([key], *([key, *rest] for rest in paths_of(item)))]


@pytest.mark.parametrize("name", [name for name in RECORDS if name != "rounds.jsonl"])
def test_a_record_of_another_version_or_with_values_of_another_type(name: str, study: Path) -> None:
    """Keys that are missing, keys that are new, values of other types."""
    path = one_run(study) / name
    whole, draw = path.read_text(), random.Random(name)
    places = paths_of(json.loads(whole))
    for case, place in enumerate(places[draw.randrange(len(places))] for _ in range(CASES)):
        record = json.loads(whole)
        *above, last = place
        holder = record
        for key in above:
            holder = holder[key]
        if draw.random() < 0.2:
            del holder[last]
        else:
            holder[last] = draw.choice(VALUES)
        holder["new-in-later-versions"] = draw.choice(VALUES)
        path.write_text(json.dumps(record))
        check_that_it_goes_on(study, path, report=case % 12 == 0)


def test_lines_with_values_of_another_type(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = one_run(study) / "rounds.jsonl"
    lines, draw = path.read_text().splitlines(), random.Random(1)
    for case in range(CASES):
        number = draw.randrange(len(lines))
        line = json.loads(lines[number])
        key = draw.choice([*line])
        line[key] = draw.choice(VALUES)
        path.write_text("\n".join([*lines[:number], json.dumps(line), *lines[number + 1 :]]) + "\n")
        check_that_it_goes_on(study, path, report=case % 20 == 0)
        if case % 5 == 0:
            assert cli.main(["report", str(path.parent)]) in (0, 1, 2)  # it draws the run's own figures
            assert "Traceback" not in capsys.readouterr().err


OTHER_ROUNDS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "a round twice": (lambda lines: [*lines[:3], *lines[2:]], "line 4 is damaged: round 3 of the attacked track is there twice"),
    "two files in one": (lambda lines: lines * 2, "is damaged: round 1 of the attacked track is there twice"),
    "a round less": (lambda lines: [*lines[:3], *lines[4:]], "line 4 is damaged: round 4 of the attacked track is missing"),
    "without the first": (lambda lines: lines[1:], "line 1 is damaged: round 1 of the attacked track is missing"),
    "another order": (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1 is damaged: round 1 of the attacked track is missing"),
}


@pytest.mark.parametrize("how", OTHER_ROUNDS)
def test_rounds_that_are_there_twice_or_missing_are_named(how: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, (change, sentence) = one_run(study) / "rounds.jsonl", OTHER_ROUNDS[how]
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    assert cli.main(["list", str(study)]) == 0
    captured = capsys.readouterr()
    assert f"warning: {path}, " in captured.err
    assert f"{sentence}; the run is left out" in captured.err
    assert path.parent.name not in captured.out
    assert cli.main(["report", str(study)]) == 0
    assert f"{sentence}; the run is left out" in capsys.readouterr().err
    assert len((study / "results.csv").read_text().splitlines()) == 12, "a heading and eleven runs"
    with pytest.raises(DamagedError, match=sentence):
        _ = Run(path.parent).rounds


@pytest.mark.parametrize("name", [name for name in RECORDS if name != "rounds.jsonl"])
def test_a_record_with_a_key_twice_is_named(name: str, study: Path) -> None:
    path = one_run(study) / name
    record = json.loads(path.read_text())
    key = next(iter(record))
    path.write_text(json.dumps(record)[:-1] + f", {json.dumps(key)}: {json.dumps(record[key])}}}")
    runs, problems = complete_runs(study, read_study(study))
    assert len(runs) == 11
    assert problems == [f"{path} is damaged (ValueError: it has {key!r} twice); the run is left out"]


def test_a_study_with_a_folder_twice_is_named(study: Path) -> None:
    """Its run would count as two seeds."""
    path = study / "study.json"
    record = json.loads(path.read_text())
    first = record["folders"][0]
    path.write_text(json.dumps({**record, "folders": [first, first, *record["folders"][2:]]}))
    with pytest.raises(ConfigError, match=rf"study\.json is damaged \(it has the folder '{first}' twice\)"):
        read_study(study)


def test_an_interrupted_run_with_a_round_twice_is_named(
    finished: Path, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (folder,) = out.iterdir()
    (folder / "summary.json").unlink()
    path = folder / "rounds.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines]))
    assert cli.main(command(out, cache_dir)) == 1
    error = capsys.readouterr().err
    assert f"{path}, line 2 is damaged: round 1 of the attacked track is there twice" in error
    assert "Traceback" not in error


SPOIL: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(300)),
    "text": lambda path: path.write_text("text"),
    "a list": lambda path: path.write_text("[1, 2]\n"),
    "an empty object": lambda path: path.write_text("{}\n"),
    "pairs": lambda path: path.write_text('[["name", 1]]\n'),
    "NaN": lambda path: path.write_text('{"name": NaN}\n'),
    "too deep": lambda path: path.write_text("[" * 100_000),
    "latin-1": lambda path: path.write_bytes('{"name": "ü"}\n'.encode("latin-1")),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path)),
    "a broken link": lambda path: (path.unlink(), path.symlink_to(path.with_name("gone"))),
}


@pytest.mark.parametrize("how", SPOIL)
@pytest.mark.parametrize("name", RECORDS)
def test_a_file_that_is_something_else(name: str, how: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = one_run(study) / name
    SPOIL[how](path)
    assert cli.main(["list", str(study)]) == 0
    captured = capsys.readouterr()
    named = str(path) in captured.err
    assert named or path.parent.name in captured.out
    incomplete = (name, how) == ("summary.json", "missing")
    assert cli.main(["report", str(study)]) == 0
    captured = capsys.readouterr()
    assert (f"warning: {path}" in captured.err) is not incomplete
    assert len((study / "results.csv").read_text().splitlines()) == 12, "a heading and eleven runs"
    (study / "study.json").unlink()
    assert len(complete_runs(study, read_study(study)).runs) == 11


@pytest.mark.parametrize("how", SPOIL)
def test_a_study_that_is_something_else(how: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SPOIL[how](study / "study.json")
    code = cli.main(["report", str(study)])
    captured = capsys.readouterr()
    assert code == (0 if how == "missing" else 2)
    assert how == "missing" or f"error: {study / 'study.json'} is damaged" in captured.err


@pytest.mark.parametrize(
    "change",
    [
        {"folders": ["one"]},
        {"folders": [1] * 12},
        {"cells": "x"},
        {"cells": [{"flat": {}}] * 12},
        {"base": []},
        {"name": None},
        {"stealth_limit": "x"},
    ],
    ids=str,
)
def test_a_study_with_values_of_another_type(change: dict[str, Any], study: Path) -> None:
    path = study / "study.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=r"study\.json is damaged"):
        read_study(study)


def test_a_study_of_a_later_version(study: Path) -> None:
    path = study / "study.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "new": 1, "published": "a-paper-of-2030"}))
    assert cli.main(["report", str(study)]) == 0


def test_a_folder_that_may_not_be_read_is_named(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not bind the user of these tests if that is root."""
    closed = one_run(study)
    walk = os.walk

    def walking(root: Any, **more: Any) -> Any:
        for place, below, files in walk(root, **more):
            if Path(place) == closed:
                more["onerror"](PermissionError(13, "Permission denied", str(closed)))
            else:
                yield place, below, files

    monkeypatch.setattr(os, "walk", walking)
    assert closed in run_folders(study)


def test_python_names_the_file(study: Path) -> None:
    path = one_run(study) / "summary.json"
    path.write_bytes(path.read_bytes()[:-37])
    with pytest.warns(UserWarning, match="the run is left out"), pytest.raises(ConfigError, match="to hold a complete run"):
        fl_sim.open_study(path.parent).report()
    with pytest.warns(UserWarning, match="the run is left out"):
        assert len(fl_sim.open_study(study).frame()) == 11
    run = next(run for run in (fl_sim.open_study(path.parent.parent)).record.folders if run == path.parent.name)
    with pytest.raises(DamagedError, match=r"summary\.json is damaged"):
        _ = Run(study / run).summary
    (path.parent / "config.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"config\.json is damaged \(it has no name\)"):
        _ = Run(study / run).config
    (path.parent / "rounds.jsonl").write_text("{")
    with pytest.raises(DamagedError, match=r"rounds\.jsonl, line 1 is damaged"):
        _ = Run(study / run).rounds


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """A whole run of the command, in a folder of its own."""
    out = tmp_path_factory.mktemp("finished")
    assert cli.main(command(out, cache_dir)) == 0
    return out


def command(out: Path, cache_dir: Path) -> list[str]:
    return ["run", "digits", "--transport", "inline", "-o", str(out), *SMALL, *words(ALONE), "-c", f"data.cache-dir={cache_dir}"]


@pytest.mark.parametrize("name", RECORDS)
def test_the_same_command_over_a_damaged_run_names_the_file(
    name: str, finished: Path, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (path,) = out.glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:-20])
    capsys.readouterr()
    assert cli.main(command(out, cache_dir)) == 1
    error = capsys.readouterr().err
    assert f"error: {path}" in error
    assert "damaged" in error
    assert "Traceback" not in error


def test_a_run_goes_on_although_its_meta_is_damaged(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (folder,) = out.iterdir()
    (folder / "summary.json").unlink()
    (folder / "meta.json").write_text("{")
    execute_run(Run(folder).config, out, InlineTransport(answer), lambda *_: None)
    assert is_complete(folder)
    assert f"fl-sim: {folder / 'meta.json'} is damaged" in capsys.readouterr().out


def test_a_search_leaves_out_a_damaged_run(finished: Path, tmp_path: Path, cache_dir: Path) -> None:
    common = {**SETTINGS, **ALONE, "name": "digits", "data.cache-dir": str(cache_dir)}
    (folder,) = finished.iterdir()
    assert run_folder(finished, resolve(common)).name == folder.name
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (summary,) = evaluated(common, out, [{}])
    assert summary is not None
    (out / folder.name / "summary.json").write_text("{")
    assert list(evaluated(common, out, [{}])) == [None]


def test_an_interrupted_run_whose_lines_are_damaged_is_named(
    finished: Path, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (folder,) = out.iterdir()
    (folder / "summary.json").unlink()
    lines = folder / "rounds.jsonl"
    lines.write_bytes(b"\0" * 20 + lines.read_bytes()[20:])
    capsys.readouterr()
    assert cli.main(command(out, cache_dir)) == 1
    error = capsys.readouterr().err
    assert f"{lines}, line 1 is damaged" in error
    assert "Traceback" not in error


def test_a_second_command_over_one_folder_names_the_first(
    finished: Path, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.run.execute.LOCK_WAIT", 0.1)
    out = tmp_path / "out"
    (folder,) = finished.iterdir()
    with run_lock(out / folder.name, cache_dir):
        assert cli.main(command(out, cache_dir)) == 1
    error = capsys.readouterr().err
    assert f"another process has been writing into {out / folder.name} for 0 s" in error
    assert f"by process {os.getpid()} on " in error
    assert "Traceback" not in error


def test_a_copy_of_a_run_is_no_repetition(tmp_path: Path) -> None:
    write_study_records(tmp_path)
    (tmp_path / "study.json").unlink()
    place = min(tmp_path.glob("small-*"))
    shutil.copytree(place, tmp_path / "copies" / place.name)
    runs, problems = complete_runs(tmp_path, read_study(tmp_path))
    assert len(runs) == 12
    assert problems == [f"{place} is a copy of {tmp_path / 'copies' / place.name}: it is counted once"]
