"""A study's runs as a pandas frame, one row per run, and what is written of it: results.csv, results.parquet, results.tex."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

from experiments.sweep.study import Run
from fl_sim.atomic_files import whole_file, write_whole
from fl_sim.config.resolve import default_flat, flatten


def study_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run: the label of each axis that is a whole section (`strategy`: "clip-after 1"), the value of each key that the study
    varies, the folder's name, and every figure of the summary (`accuracy.after_trigger`, percent).

    Whole numbers, numbers, truth values and texts have columns of their types; where a run has none, the value is missing.
    """
    sections = {axis: [run.cell.labels.get(axis) for run in runs] for axis in _section_axes(runs)}
    rows = [{**run.cell.flat, "folder": run.folder.name, **flatten(run.summary)} for run in runs]
    columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    return pd.DataFrame({key: _typed(key, values) for key, values in {**sections, **columns}.items()})


def label_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run, as in `study_frame`: the label of each axis but the seed."""
    axes = dict.fromkeys(axis for run in runs for axis in run.cell.labels if axis != "seed")
    labels = {axis: [run.cell.labels.get(axis, "") for run in runs] for axis in axes}
    return pd.DataFrame(labels, index=range(len(runs)), dtype=object)


def write_csv(path: Path, runs: Sequence[Run]) -> None:
    """`results.csv`: one row per run, with every swept key and every figure of the summary; lists as JSON."""
    frame = study_frame(runs).drop(columns=_section_axes(runs))
    lists = {str(column): values.map(_json_of_list) for column, values in frame.items() if values.dtype == object}
    write_whole(path, frame.assign(**lists).to_csv(index=False, lineterminator="\n"))


def write_parquet(path: Path, runs: Sequence[Run]) -> None:
    """`results.parquet`: what results.csv holds, with types. Raises ImportError without pyarrow."""
    frame = study_frame(runs).drop(columns=_section_axes(runs))
    with whole_file(path) as part:
        frame.to_parquet(part, engine="pyarrow", index=False)


def _section_axes(runs: Sequence[Run]) -> list[str]:
    """The axes that are no key: each of their choices sets several."""
    axes = dict.fromkeys(axis for run in runs for axis in run.cell.labels)
    return [axis for axis in axes if not any(axis in run.cell.flat for run in runs)]


def _typed(key: str, values: Sequence[Any]) -> pd.Series:
    """A column of one type; infinity, which JSON has as text, is a number where the key is one."""
    if isinstance(default_flat().get(key), float):
        values = [math.inf if value == "inf" else value for value in values]
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean")
    if kinds == {int}:
        return pd.Series(values, dtype="Int64")
    if kinds and kinds <= {int, float}:
        return pd.Series(values, dtype="float64")
    if kinds and not kinds & {list, dict}:
        return pd.Series([None if value is None else str(value) for value in values])
    return pd.Series([_plain(value) for value in values], dtype=object)


def _json_of_list(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return dict(cast(Mapping[str, Any], value)) if isinstance(value, Mapping) else value
