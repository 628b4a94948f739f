"""What a folder of runs is a study of: its cells, what they share, where they lie. Tables, figures and the report are made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments.records.folder import is_complete, read_summary, run_folders
from experiments.sweep.spec import Cell, label
from fl_sim.atomic_files import write_whole, writing
from fl_sim.config.resolve import NOT_HASHED, ConfigError, default_flat, to_json

RECORD = "study.json"


class Run(NamedTuple):
    """A complete cell, the folder of its records, and its summary."""

    cell: Cell
    folder: Path
    summary: Mapping[str, Any]


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

    Raises ConfigError for a folder without either.
    """
    if (folder / RECORD).is_file():
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        record |= {"cells": tuple(Cell(**cell) for cell in record["cells"]), "folders": tuple(record["folders"])}
        return Study(**record)
    found = run_folders(folder)
    if not found:
        raise ConfigError([f"expected DIR to be a folder with runs, got {str(folder)!r}"])
    flats = [read_config(run) for run in found]
    common, axes = _split(flats)
    cells = tuple(Cell({key: flat.get(key) for key in axes}, {key: label(flat.get(key, "")) for key in axes}) for flat in flats)
    return Study(folder.resolve().name, common, cells, tuple(str(run.relative_to(folder)) for run in found))


def complete_runs(folder: Path, study: Study) -> list[Run]:
    """The complete cells of a study, in its order."""
    places = [folder / name for name in study.folders]
    return [Run(cell, place, read_summary(place)) for cell, place in zip(study.cells, places, strict=True) if is_complete(place)]


def read_config(folder: Path) -> dict[str, Any]:
    """A run's flat keys without those that cannot change a result (but for its name)."""
    flat = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in flat.items() if changes_results(key)}


def changes_results(key: str) -> bool:
    """Whether a key is part of what a reader must know of a run."""
    return key == "name" or not key.startswith(NOT_HASHED)


def _split(flats: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The keys that all configurations share, and those in which they differ (also where one knows a key that another does not)."""
    keys = dict.fromkeys([*default_flat(), *(key for flat in flats for key in flat)])
    values = {key: {json.dumps(flat.get(key)) for flat in flats} for key in keys if any(key in flat for flat in flats)}
    common = {key: flats[0][key] for key, found in values.items() if len(found) == 1}
    return common, [key for key, found in values.items() if len(found) > 1]
