"""What a folder of runs is a study of: its cells, what they share, where they lie. Tables, figures and the report are made of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from experiments.records.folder import is_complete, read_rounds, read_summary
from experiments.sweep.spec import Cell, label
from fl_sim.atomic_files import write_whole, writing
from fl_sim.config.resolve import NOT_HASHED, ConfigError, default_flat, to_json

RECORD = "study.json"


@dataclass(frozen=True)
class Run:
    """A complete cell: the folder of its records, its summary, every key of its configuration, what it was made with (`meta.json`), and
    the test accuracy (percent) of the attacked track by round, on `evaluate.examples`."""

    cell: Cell
    folder: Path
    summary: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    curve: Mapping[int, float] = field(default_factory=dict[int, float])


class StudyRuns(NamedTuple):
    """The complete runs of a study, in its order, and a sentence for each run that is left out because its records are damaged."""

    runs: list[Run]
    problems: list[str]


@dataclass(frozen=True)
class Study:
    """A sweep or a search: the flat keys that its cells share, the cells, and their folders' names.

    `published` names an entry of published.json or is empty; `stealth_limit` (points) is that of a search, None for a sweep.
    """

    name: str
    base: Mapping[str, Any]
    cells: tuple[Cell, ...]
    folders: tuple[str, ...]
    published: str = ""
    stealth_limit: float | None = None


class DamagedError(ValueError):
    """A file of a run is cut or holds something else; the message names it."""


def write_study(folder: Path, study: Study) -> None:
    """`study.json` of a study's folder, which is made."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    record = asdict(study)
    for flats in (record, *record["cells"]):  # to_json: infinity as text, as in config.json
        key = "base" if flats is record else "flat"
        flats[key] = {name: json.loads(to_json({name: value}))[name] for name, value in flats[key].items()}  # in the spec's order
    write_whole(folder / RECORD, json.dumps(record, indent=1, allow_nan=False) + "\n")


def read_study(folder: Path) -> Study:
    """The study that was recorded in a folder, or else all runs below it, told apart by the keys in which they differ.

    A run whose configuration is damaged is among them, without keys: `complete_runs` says what is wrong. Raises ConfigError for a folder
    without runs, and for a damaged study.json.
    """
    if (folder / RECORD).is_file():
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            record |= {"cells": tuple(Cell(**cell) for cell in record["cells"]), "folders": tuple(record["folders"])}
            return Study(**record)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError([f"{folder / RECORD} is damaged ({error}); without it the study is all runs below its folder"]) from None
    folders = run_folders(folder)
    if not folders:
        raise ConfigError([f"expected DIR to be a folder with runs, got {str(folder)!r}"])
    flats: dict[Path, dict[str, Any]] = {}
    for place in folders:
        try:
            flats[place] = result_keys(read_config(place))
        except DamagedError:
            continue
    common, axes = _split(list(flats.values()))

    def cell(place: Path) -> Cell:
        flat = flats.get(place)
        return Cell({key: flat.get(key) for key in axes}, {key: label(flat.get(key, "")) for key in axes}) if flat else Cell({}, {})

    return Study(folder.resolve().name, common, tuple(map(cell, folders)), tuple(str(place.relative_to(folder)) for place in folders))


def complete_runs(folder: Path, study: Study) -> StudyRuns:
    """The complete cells of a study, in its order, and why others are left out: a file that is cut, or damaged otherwise. A cell that has
    not ended is left out without a word."""
    runs: list[Run] = []
    problems: list[str] = []
    for cell, name in zip(study.cells, study.folders, strict=True):
        try:
            if is_complete(folder / name):
                runs.append(read_run(folder / name, cell))
            elif (folder / name / "config.json").is_file():
                read_config(folder / name)
        except DamagedError as error:
            problems.append(f"{error}; the run is left out")
    return StudyRuns(runs, problems)


def read_run(folder: Path, cell: Cell) -> Run:
    """A complete run. Raises DamagedError."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damage(folder / "meta.json", error) from None
    return Run(cell, folder, read_whole_summary(folder), read_config(folder), meta, _accuracies(folder))


def read_config(folder: Path) -> dict[str, Any]:
    """Every flat key of a run. Raises DamagedError."""
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damage(folder / "config.json", error) from None


def read_whole_summary(folder: Path) -> dict[str, Any]:
    """The summary of a complete run. Raises DamagedError."""
    try:
        return dict(read_summary(folder))
    except (OSError, ValueError, TypeError) as error:
        raise _damage(folder / "summary.json", error) from None


def _accuracies(folder: Path) -> dict[int, float]:
    """The attacked track's test accuracy (percent) by round."""
    try:
        lines = read_rounds(folder).get("attacked", [])
        return {line["round"]: line["accuracy"] for line in lines if line.get("accuracy") is not None}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damage(folder / "rounds.jsonl", error) from None


def _damage(path: Path, error: Exception) -> DamagedError:
    if str(error).startswith(str(path)):  # it names the line too
        return DamagedError(str(error))
    reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
    return DamagedError(f"{path} is damaged ({reason})")


def run_folders(root: Path) -> list[Path]:
    """The folders of all runs below a folder, itself included. Links are followed; what several ways lead to is there once."""
    folders: list[Path] = []
    seen: set[Path] = set()
    for place, below, files in os.walk(root, followlinks=True):
        real = Path(place).resolve()
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()
        if {"config.json", "rounds.jsonl"} <= set(files):
            folders.append(Path(place))
            below.clear()
    return sorted(folders)


def result_keys(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat keys without those that cannot change a result (but for the name)."""
    return {key: value for key, value in flat.items() if changes_results(key)}


def changes_results(key: str) -> bool:
    """Whether a key is part of what a reader must know of a run."""
    return key == "name" or not key.startswith(NOT_HASHED)


def _split(flats: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The keys that all configurations share, and those in which they differ (also where one knows a key that another does not)."""
    keys = dict.fromkeys([*default_flat(), *(key for flat in flats for key in flat)])
    values = {key: {json.dumps(flat.get(key)) for flat in flats} for key in keys if any(key in flat for flat in flats)}
    common = {key: flats[0][key] for key, different in values.items() if len(different) == 1}
    return common, [key for key, different in values.items() if len(different) > 1]
