"""What a folder of runs is a study of: its cells, what they share, where they lie. Tables, figures and the report are made of it."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Union

from pydantic import BaseModel, ValidationError, create_model

from experiments.records.identity import FINGERPRINT, fingerprint_of_run
from experiments.records.reading import RECORDS, DamagedError, first_problem, read_config, read_meta, read_rounds, read_summary
from experiments.run.summary import Part, Summary
from experiments.sweep.spec import Cell, label
from fl_sim.atomic_files import write_whole, writing
from fl_sim.config.resolve import NOT_HASHED, ConfigError, default_flat, to_json

RECORD = "study.json"
RUN_NAME = re.compile(r".+-[0-9a-f]{12}")


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

    `published` names an entry of published.json or is empty; `stealth_limit` (points) is that of a search, None for a sweep; `axes` are
    those of a search that has several cases.
    """

    name: str
    base: Mapping[str, Any]
    cells: tuple[Cell, ...]
    folders: tuple[str, ...]
    published: str = ""
    stealth_limit: float | None = None
    axes: tuple[str, ...] = ()


class _CellRecord(BaseModel):
    flat: dict[str, Any]
    labels: dict[str, str]


class _Record(BaseModel):
    """`study.json`."""

    name: str
    base: dict[str, Any]
    cells: list[_CellRecord]
    folders: list[str]
    published: str = ""
    stealth_limit: float | None = None
    axes: tuple[str, ...] = ()


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
    if os.path.lexists(folder / RECORD):
        try:
            record = _Record.model_validate_json((folder / RECORD).read_bytes())
            if len(record.cells) != len(record.folders):
                raise ValueError(f"it has {len(record.cells)} cells and {len(record.folders)} folders")
            if repeated := [name for name, count in Counter(record.folders).items() if count > 1]:
                raise ValueError(f"it has the folder {repeated[0]!r} twice")
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise ConfigError([f"{folder / RECORD} is damaged ({reason}); without it the study is all runs below its folder"]) from None
        cells = tuple(Cell(cell.flat, cell.labels) for cell in record.cells)
        return Study(record.name, record.base, cells, tuple(record.folders), record.published, record.stealth_limit, record.axes)
    folders = run_folders(folder)
    if not folders:
        raise ConfigError([f"expected DIR to be a folder with runs, got {str(folder)!r}"])
    flats: dict[Path, dict[str, Any]] = {}
    for place in folders:
        try:
            flats[place] = result_keys(read_config(place))
        except DamagedError:
            continue
    _tell_apart_by_data(flats)
    common, axes = _split(list(flats.values()))

    def cell(place: Path) -> Cell:
        flat = flats.get(place)
        return Cell({key: flat.get(key) for key in axes}, {key: label(flat.get(key, "")) for key in axes}) if flat else Cell({}, {})

    return Study(folder.resolve().name, common, tuple(map(cell, folders)), tuple(str(place.relative_to(folder)) for place in folders))


def _tell_apart_by_data(flats: Mapping[Path, dict[str, Any]]) -> None:
    """Add the fingerprint of the data to the keys of all runs if runs of the same keys are of different data."""
    digests = {place: fingerprint_of_run(place)[:16] for place in flats}
    by_keys: dict[str, set[str]] = {}
    for place, flat in flats.items():
        by_keys.setdefault(json.dumps(flat, sort_keys=True), set()).add(digests[place])
    if any(len(different) > 1 for different in by_keys.values()):
        for place, flat in flats.items():
            flat[FINGERPRINT] = digests[place]


def complete_runs(folder: Path, study: Study) -> StudyRuns:
    """The complete cells of a study, in its order, and why others are left out: a file that is cut, or damaged otherwise, and copies of a
    run, which would be taken for repetitions. A cell that has not ended is left out without a word."""
    runs: list[Run] = []
    first = dict[str, Path]()
    problems: list[str] = []
    for cell, name in zip(study.cells, study.folders, strict=True):
        try:
            if os.path.lexists(folder / name / "summary.json"):  # which may be a folder
                run = read_run(folder / name, cell)
                content = json.dumps([result_keys(run.config), run.summary], sort_keys=True, default=str)  # its seconds are its own
                if (original := first.setdefault(content, run.folder)) == run.folder:
                    runs.append(run)
                else:
                    problems.append(f"{run.folder} is a copy of {original}: it is counted once")
            else:
                _check_unended(folder / name)
        except DamagedError as error:
            problems.append(f"{error}; the run is left out")
    return StudyRuns(runs, problems)


def _any_version(model: type[Part]) -> Any:
    """A model of which each figure may be absent (then it is None); one that is there has its type."""
    fields: dict[str, Any] = {name: (Union[field.annotation, None], None) for name, field in model.model_fields.items()}  # noqa: UP007
    return create_model(f"Any{model.__name__}", __base__=Part, **fields)


_AnySummary = _any_version(Summary)


def read_run(folder: Path, cell: Cell | None = None) -> Run:
    """A complete run. Figures that records of an older version do not have are None. Raises DamagedError."""
    record, lines = read_summary(folder), read_rounds(folder)["attacked"]
    try:
        summary = {**record, **_AnySummary.model_validate(record, strict=True).model_dump()}
    except ValidationError as error:
        raise DamagedError(f"{folder / 'summary.json'} is damaged, or of another version ({first_problem(error)})") from None
    curve = {line["round"]: line["accuracy"] for line in lines if line.get("accuracy") is not None}
    return Run(cell or Cell({}, {}), folder, summary, read_config(folder), read_meta(folder), curve)


def _check_unended(folder: Path) -> None:
    """Raise DamagedError if the records of a run without a summary cannot be read."""
    if any(os.path.lexists(folder / name) for name in RECORDS):
        read_config(folder)
    elif folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise DamagedError(f"{folder} cannot be read (permission denied)")


def run_folders(root: Path) -> list[Path]:
    """The folders of all runs below a folder, itself included, and folders that cannot be read. Links are followed; what several ways lead
    to is there once.

    A run has two of `RECORDS`, or one and a run's name: the others may be lost."""
    folders: list[Path] = []
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:
        if isinstance(error, PermissionError):
            folders.append(Path(error.filename))

    for place, below, files in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(place)  # unlike `Path.resolve` it raises for no link
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()
        records = len({*files, *below} & set(RECORDS))
        if records > 1 or (records and RUN_NAME.fullmatch(Path(real).name)):
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
