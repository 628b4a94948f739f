"""Two folders of runs side by side: in which settings they differ, and in which numbers beyond the spread over the seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from experiments.report.measures import MEASURES, Measure
from experiments.report.views import SEPARATOR
from experiments.sweep.search import left_after
from experiments.sweep.study import Run, changes_results, complete_runs, read_study
from fl_sim.config.resolve import ConfigError, default_flat, flatten, to_json

PLACES = ("name", "output-dir", "cells", "search", "tracking", "data.cache-dir")  # keys that change neither numbers nor speed
UNMATCHED = ("seed", "data.root")  # cells are matched without these: the first is what a mean is over, the second a place
CHANCE = 0.05  # of a difference beyond the interval where there is none

SAME, WITHIN, BEYOND, ONE_SEED = "same", "within", "beyond", "one seed"
Key = tuple[str, ...]


def _of_summary(*path: str, scale: float = 1.0) -> Callable[[Run], float | None]:
    def value(run: Run) -> float | None:
        entry: Any = run.summary
        for key in path:
            entry = (entry or {}).get(key)
        return None if entry is None else scale * entry

    return value


def _left(run: Run) -> float:
    return left_after(run.summary)


NUMBERS: Mapping[str, Measure] = {
    "left": Measure("accuracy after the trigger, or at the end (%)", _left),
    "accuracy.final": Measure("accuracy at the end (%)", _of_summary("accuracy", "final")),
    "drop": Measure("drop at the trigger (points)", _of_summary("drop")),
    "gain": Measure("gain over the control (points)", _of_summary("gain")),
    "stealth_gap": Measure("stealth gap (points)", _of_summary("stealth_gap")),
    **MEASURES,
    "ms_per_round": Measure("time per round (ms)", _of_summary("seconds", "attacked_round", scale=1000.0)),
}


class Difference(NamedTuple):
    """B - A: the difference of the means, the half-width of its 95 % interval (None where a side has one seed), and a verdict."""

    difference: float
    interval: float | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """Two folders of runs. settings: `key`, `a`, `b`, the keys and versions that are not the same (texts); identical: pairs of runs of one
    cell and seed that agree in every figure but the times, of so many pairs; notes: what is left out, and why."""

    a: Path
    b: Path
    settings: pd.DataFrame
    numbers: pd.DataFrame
    identical: int
    pairs: int
    notes: Sequence[str]

    def frame(self) -> pd.DataFrame:
        """A row per matched cell and number: `cell`, `number` (of `NUMBERS`), of each side the mean, the standard deviation (n - 1) and the
        runs (`a`, `a_std`, `a_runs`, `b`, `b_std`, `b_runs`), and `difference` (B - A), `interval`, `verdict` of `difference`."""
        return self.numbers.copy()


def compare_folders(a: Path, b: Path) -> Comparison:
    """Compare the complete runs of two folders: studies, or any runs.

    A key that has one value in A and another in B is a difference of the settings. The cells are matched by all other keys that vary. An
    absent key has its default. Damaged and incomplete runs are left out. Raises ConfigError if no cell of A has a partner in B.
    """
    notes: list[str] = []
    sides = tuple(_runs(folder, side, notes) for folder, side in ((a, "A"), (b, "B")))
    flats = tuple([_full(run) for run in side] for side in sides)
    values = tuple(_values(side) for side in flats)
    keys = dict.fromkeys([*values[0], *values[1]])
    constant = [key for key in keys if all(len(side.get(key, ["null"])) == 1 for side in values)]
    varying = [key for key in keys if key not in constant and changes_results(key) and key not in UNMATCHED]
    cells = tuple(_cells(side, flat, varying) for side, flat in zip(sides, flats, strict=True))
    matched = [key for key in cells[0] if key in cells[1]]
    if not matched:
        raise ConfigError([f"expected a run of {str(a)!r} with a partner in {str(b)!r}, got none: {_no_partner(varying, values)}"])
    for name, one, other in (("A", *cells), ("B", *reversed(cells))):
        if alone := [_label(runs) for key, runs in one.items() if key not in other]:
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            notes.append(f"{len(alone)} cells are in {name} alone and left out: {'; '.join(alone[:3])}{more}")
    pairs = [pair for key in matched for pair in _pairs(cells[0][key], cells[1][key])]
    rows = [row for key in matched for row in _rows(_label(cells[0][key]), cells[0][key], cells[1][key])]
    settings = _settings(values, [*constant, "seed"], sides)
    return Comparison(a, b, settings, pd.DataFrame(rows), sum(_agree(*pair) for pair in pairs), len(pairs), notes)


def difference(a: Mapping[Any, float], b: Mapping[Any, float]) -> Difference:
    """The difference of two means over seeds, and whether it is beyond what seeds explain. Args: a and b, a value by seed, at least one.

    With the same seeds on both sides the pairs are compared: half-width t(0.975, n - 1) * std(b - a) / sqrt(n). With other seeds Welch's:
    t(0.975, f) * sqrt(var(a) / n_a + var(b) / n_b), f of Satterthwaite. Source: Student 1908; Welch 1947.
    """
    ours, theirs = np.array(list(a.values())), np.array([b[seed] for seed in a] if a.keys() == b.keys() else list(b.values()))
    mean = float(theirs.mean() - ours.mean())
    if a.keys() == b.keys():
        if np.array_equal(ours, theirs):
            return Difference(0.0, 0.0 if len(ours) > 1 else None, SAME)
        freedom, error = len(ours) - 1.0, (theirs - ours).std(ddof=1) / len(ours) ** 0.5 if len(ours) > 1 else np.nan
    else:
        freedom, error = _welch(ours, theirs)
    if np.isnan(error):
        return Difference(mean, None, ONE_SEED)
    interval = float(error * stdtrit(max(freedom, 1.0), 1.0 - CHANCE / 2))
    return Difference(mean, interval, BEYOND if abs(mean) > interval else WITHIN)


def _welch(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Degrees of freedom and standard error; NaN where a side has one value."""
    if min(len(ours), len(theirs)) < 2:
        return np.nan, np.nan
    parts = [side.var(ddof=1) / len(side) for side in (ours, theirs)]
    weights = [part**2 / (len(side) - 1) for part, side in zip(parts, (ours, theirs), strict=True)]
    return float(sum(parts) ** 2 / sum(weights)) if sum(weights) else 1.0, float(sum(parts) ** 0.5)


def _runs(folder: Path, side: str, notes: list[str]) -> list[Run]:
    study = read_study(folder)
    runs, problems = complete_runs(folder, study)
    notes += [f"{side}: {problem}" for problem in problems]
    if unended := len(study.folders) - len(runs) - len(problems):
        notes.append(f"{side}: {unended} of {len(study.folders)} runs are not complete and left out")
    if not runs:
        raise ConfigError([f"expected DIR_{side} to hold a complete run, got {str(folder)!r} with none"])
    return runs


def _full(run: Run) -> dict[str, str]:
    """Every key as JSON, with the default of one that the record does not have."""
    flat = {**json.loads(to_json(default_flat())), **run.config}
    return {key: json.dumps(value) for key, value in flat.items() if key not in PLACES}


def _values(flats: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The different values of each key over all runs of one side, whole numbers in their order."""
    keys = dict.fromkeys(key for flat in flats for key in flat)
    return {key: sorted({flat.get(key, "null") for flat in flats}, key=lambda text: (len(text), text)) for key in keys}


def _cells(runs: Sequence[Run], flats: Sequence[Mapping[str, str]], varying: Sequence[str]) -> dict[Key, list[Run]]:
    cells: dict[Key, list[Run]] = {}
    for run, flat in zip(runs, flats, strict=True):
        cells.setdefault(tuple(flat.get(key, "null") for key in varying), []).append(run)
    return cells


def _label(runs: Sequence[Run]) -> str:
    return SEPARATOR.join(text for axis, text in runs[0].cell.labels.items() if axis != "seed") or "all seeds"


def _no_partner(varying: Sequence[str], values: Sequence[Mapping[str, Sequence[str]]]) -> str:
    texts = [[", ".join(side.get(key, ["null"])) for side in values] for key in varying]
    apart = [key for key in varying if not set(values[0].get(key, ())) & set(values[1].get(key, ()))] or varying
    return "; ".join(f"{key} is {a} in A and {b} in B" for key, (a, b) in zip(varying, texts, strict=True) if key in apart)


def _settings(values: Sequence[Mapping[str, Sequence[str]]], keys: Sequence[str], sides: Sequence[Sequence[Run]]) -> pd.DataFrame:
    """The keys of which the values differ, then what the runs were made with."""
    made = tuple(_values([_made_with(run) for run in side]) for side in sides)
    rows = [(key, *(", ".join(side.get(key, ["-"])) for side in values)) for key in keys]
    rows += [(key, *(", ".join(side.get(key, ["-"])) for side in made)) for key in {**made[0], **made[1]}]
    return pd.DataFrame([row for row in rows if row[1] != row[2]], columns=["key", "a", "b"])


def _made_with(run: Run) -> dict[str, str]:
    meta = {key: run.meta.get(key) for key in ("versions", "device", "git_commit")}
    data = (run.meta.get("data") or {}).get("fingerprint") or "-"
    return {key: str(value) for key, value in flatten(meta).items()} | {"data": data[:16]}


def _pairs(a: Sequence[Run], b: Sequence[Run]) -> list[tuple[Run, Run]]:
    by_seed = {run.config["seed"]: run for run in b}
    return [(run, by_seed[run.config["seed"]]) for run in a if run.config["seed"] in by_seed]


def _agree(one: Run, other: Run) -> bool:
    """Whether two runs have the same curve and the same summary, but for times and the hash."""
    figures = ({key: value for key, value in run.summary.items() if key not in ("seconds", "config_hash")} for run in (one, other))
    return one.curve == other.curve and next(figures) == next(figures)


def _rows(label: str, a: Sequence[Run], b: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of one cell: the numbers that both sides have."""
    rows: list[dict[str, Any]] = []
    for name, measure in NUMBERS.items():
        sides = [{(run.config["seed"], place): measure.value(run) for place, run in _numbered(runs)} for runs in (a, b)]
        ours, theirs = ({seed: value for seed, value in side.items() if value is not None} for side in sides)
        if not ours or not theirs:
            continue
        row: dict[str, Any] = {"cell": label, "number": name}
        for letter, side in (("a", ours), ("b", theirs)):
            values = pd.Series(list(side.values()), dtype=float)
            row |= {letter: values.mean(), f"{letter}_std": values.std(), f"{letter}_runs": len(values)}
        rows.append(row | difference(ours, theirs)._asdict())
    return rows


def _numbered(runs: Sequence[Run]) -> list[tuple[int, Run]]:
    """Each run with how many of the same seed are before it: a folder may hold a seed twice."""
    seen: dict[Any, int] = {}
    numbered: list[tuple[int, Run]] = []
    for run in runs:
        seed = run.config["seed"]
        numbered.append((seen.get(seed, 0), run))
        seen[seed] = seen.get(seed, 0) + 1
    return numbered
