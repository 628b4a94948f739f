"""docs/records.md names every key that a run and a sweep write, and no other."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import fl_sim
from experiments.report.frame import write_csv
from experiments.report.outputs import write_outputs
from experiments.run.summary import Summary
from experiments.sweep.study import read_study
from fl_sim.config.resolve import default_flat
from strategies.calibration import SCORES
from strategies.dgc.thresholds import DISCREPANCIES
from tests.support.pages import text_of
from tests.support.small_study import write_study_records

OCCASIONAL = {
    "skipped",
    "idle",
    "missed_trigger",
    "attack.provoked",
    "attack.delivery_gap",
    "attack.plain_gap",
}  # keys of a line that neither of the runs below needs; tests of their own have them
REASONS = ("failures", "retried")  # their keys are clients and blocks
SMALL: Mapping[str, Any] = {
    "data.num-clients": 12,
    "client.block": 4,
    "model.name": "mlp",
    "attack.malicious-fraction": 0.17,
    "attack.fire-from": 1,
    "schedule.burn-in-epochs": 1,
    "schedule.accumulate-rounds": 3,
    "schedule.recovery-rounds": 3,
    "fault.raises": "3",
    "control-honest": True,
    "monitor.action": "rollback",
    "monitor.drop": 20.0,
    "monitor.class-drop": 0.1,
    "checkpoint.every": 2,
    "strategy.name": "dgc",
    "strategy.guard": "both",
    "strategy.calibration-rounds": 10,
    "strategy.probation": 1,
    "strategy.margin": 1.0,
}


def named(heading: str) -> set[str]:
    """The keys in the first column of the tables of a section, `<score>` written out."""
    section = re.split(rf"^#+ {re.escape(heading)}", text_of("records.md"), flags=re.MULTILINE)[1]
    cells = re.findall(r"^\| (`.*?) \|", re.split(r"^#+ ", section, flags=re.MULTILINE)[0], flags=re.MULTILINE)
    keys = {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}
    scored = {key: DISCREPANCIES if key.startswith("levels") else SCORES for key in keys if "<score>" in key}
    return keys - set(scored) | {key.replace("<score>", score) for key, scores in scored.items() for score in scores}


def paths(value: Any, prefix: str = "") -> Iterator[str]:
    """The paths of a record's keys; those of the entries of a list too, under the list's own."""
    if isinstance(value, list):
        for item in value:
            yield from paths(item, prefix)
    if not isinstance(value, Mapping) or not value:
        if prefix:
            yield prefix.removesuffix(".")
        return
    for key, item in value.items():
        yield from [f"{prefix}{key}.<>"] if f"{prefix}{key}" in REASONS else paths(item, f"{prefix}{key}.")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """The folder of a run in which as much happens as may."""
    keys = {**SMALL, "data.cache-dir": str(cache_dir)}
    return fl_sim.run("digits", keys, output_dir=tmp_path_factory.mktemp("runs"), progress=False).folder


@pytest.fixture(scope="module")
def selecting(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """The folder of a run with a backdoor, against a strategy that leaves out clients."""
    keys = {name: value for name, value in SMALL.items() if not name.startswith(("strategy.", "monitor.", "attack.fire"))}
    keys |= {
        "strategy.name": "flwr.MultiKrum",
        "strategy.options": '{"num_malicious_nodes": 2, "num_nodes_to_select": 6}',
        "attack.name": "badnets",
    }
    return fl_sim.run(
        "digits", {**keys, "data.cache-dir": str(cache_dir)}, output_dir=tmp_path_factory.mktemp("runs"), progress=False
    ).folder


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """The folder of a run with moved images, against clients that filter theirs."""
    keys = {name: value for name, value in SMALL.items() if not name.startswith(("strategy.", "monitor.", "fault."))}
    keys |= {"attack.surface": "images", "cleaning.name": "filter-lid", "data.public-size": 200, "twin": False, "control": False}
    return fl_sim.run(
        "digits", {**keys, "data.cache-dir": str(cache_dir)}, output_dir=tmp_path_factory.mktemp("runs"), progress=False
    ).folder


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> tuple[Path, Path]:
    """The folders of runs under `dgc-2` and `crfl`, which have figures of their own."""
    keys = {name: value for name, value in SMALL.items() if not name.startswith(("strategy.", "monitor.", "fault.", "attack."))}
    keys |= {"strategy.probe-size": 40, "twin": False, "control": False, "attack.name": "badnets", "data.cache-dir": str(cache_dir)}
    folder = tmp_path_factory.mktemp("runs")
    settings = [{**keys, "strategy.name": "dgc-2", "strategy.calibration-rounds": 10}, {**keys, "strategy.name": "crfl"}]
    first, second = (fl_sim.run("digits", one, output_dir=folder, progress=False).folder for one in settings)
    return first, second


@pytest.mark.slow
def test_every_key_of_a_line(run: Path, selecting: Path, cleaned: Path, guarded: tuple[Path, Path]) -> None:
    """Both ways: nothing is missing on the page, and nothing on it is no longer written."""
    places = (run, selecting, cleaned, *guarded)
    images = {"attack.images", "attack.image_shift", "attack.images_corrected"}  # of docs/image_attacks.md
    lines = [json.loads(text) for place in places for text in (place / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    on_page = {re.sub(r"<\w+>", "<>", key) for key in named("2. A line") if "<figure>" not in key}
    written = {path for line in lines for path in paths(line)} - images
    assert written | OCCASIONAL == on_page | named("2.1") | named("2.2") | named("2.3")


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The paths of a model's fields."""
    for name, field in model.model_fields.items():
        kinds = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(kind, type)]
        parts = [kind for kind in kinds if issubclass(kind, BaseModel)]
        place = f"{prefix}{field.serialization_alias or name}"
        yield from fields(parts[0], f"{place}.") if parts else [place]


def test_every_key_of_a_summary() -> None:
    assert set(fields(Summary)) == named("3.")


@pytest.mark.slow
def test_every_key_of_the_other_files_of_a_run(run: Path, selecting: Path, cleaned: Path, guarded: tuple[Path, Path]) -> None:
    summary, other = read(run / "summary.json"), read(selecting / "summary.json")
    assert summary["filtering"] is summary["cleaning"] is None
    summary["cleaning"] = read(cleaned / "summary.json")["cleaning"]
    summary["smoothed"] = read(guarded[1] / "summary.json")["smoothed"]
    assert set(read(cleaned / "cleaning.json")) == named("5.1")
    assert set(paths(summary | {key: other[key] for key in ("filtering", "attack_success_rate", "tolerance")})) == named("3.")
    meta = read(run / "meta.json")
    (session,) = meta.pop("sessions")
    assert set(paths(meta)) | {"sessions"} | {f"sessions.{key}" for key in ("resumed_from", "damaged")} == named("4.")
    assert set(session) - {"versions", "device", "git_commit", "started"} == {"resumed_from", "damaged"}
    levels = {place: set(paths(read(place / "calibration.json"))) for place in (run, guarded[0])}
    persistence = {key for key in levels[guarded[0]] if key.startswith("persistence.")}
    assert persistence
    assert levels[run] | levels[guarded[0]] - persistence | {"persistence.<client>"} == named("5.")
    assert set(read(run / "config.json")) == set(default_flat())


@pytest.mark.slow
def test_every_file_of_a_run(run: Path, selecting: Path, cleaned: Path) -> None:
    files: set[str] = set()
    for place in (run, selecting, cleaned):
        fl_sim.open_study(place).runs[0].draw()
        files |= {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    places = {re.sub(r"(?:attacked|twin|control|honest-trigger)-\d{6}", "<track>-<round>", name) for name in files}
    said = {name for name in named("1.") if not name.endswith("/")} - {".png", ".pdf"}
    drawn = {name for name in said if "." not in name}
    assert places | {"failure.txt"} == said - drawn | {f"{name}{suffix}" for name in drawn for suffix in (".png", ".pdf")}


def test_every_key_of_a_study(tmp_path: Path) -> None:
    runs = write_study_records(tmp_path)
    record = read(tmp_path / "study.json")
    cells = {f"cells.{key}" for cell in record["cells"] for key in cell}
    assert set(record) | cells == named("8.1")
    write_csv(tmp_path / "results.csv", runs)
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        swept, figures = (header := next(csv.reader(file)))[:4], header[4:]
    assert swept == ["strategy.name", "attack.poison-ratio", "seed", "folder"]
    assert {key.partition(".")[0] for key in figures} <= {key.partition(".")[0] for key in named("3.")}


@pytest.mark.slow  # draws
def test_every_file_of_a_study(tmp_path: Path) -> None:
    write_study_records(tmp_path, seeds=(1,))
    written = {path.stem if path.suffix == ".png" else path.name for path in write_outputs(tmp_path, read_study(tmp_path), latex=True)}
    assert written <= named("8. A sweep")
