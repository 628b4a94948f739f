"""The map of a search with several cases: the least that any of the attack's settings left in each of them, and which settings did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.report.views import SEPARATOR, Matrix
from experiments.sweep.search import left_after, stealth_cost, worst_class_left
from experiments.sweep.study import Run
from fl_sim.atomic_files import write_whole

LEAST = {
    "accuracy": "least test accuracy that any setting left (%)",
    "worst_class": "least accuracy of the worst class that any setting left (%)",
}


def worst_map(runs: Sequence[Run], axes: Sequence[str], limit: float) -> pd.DataFrame:
    """One row per case (a combination of the axes, the seed among them), in the order of the search. Columns: the axes' labels;
    `accuracy` and `worst_class`, the least (percent) that any setting left; `accuracy_by` and `worst_class_by`, the settings that did;
    `accuracy_hidden` and `worst_class_hidden`, whether that run's phase cost at most `limit` points of accuracy; `clean_accuracy` and
    `clean_worst_class`, of the run without an attack, if the search has one; `settings`, how many attacks were tried."""
    cases: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        cases.setdefault(tuple(run.cell.labels[axis] for axis in axes), []).append(run)
    return pd.DataFrame([{**dict(zip(axes, case, strict=True)), **_row(tried, axes, limit)} for case, tried in cases.items()])


def _row(tried: Sequence[Run], axes: Sequence[str], limit: float) -> dict[str, Any]:
    clean = [run for run in tried if run.cell.flat.get("attack.name") == "none"]
    runs = [run for run in tried if run not in clean]
    row: dict[str, Any] = {"settings": len(runs)}
    for name, left in (("accuracy", left_after), ("worst_class", worst_class_left)):
        if clean:
            row[f"clean_{name}"] = left(clean[0].summary)
        values = {place: value for place, run in enumerate(runs) if (value := left(run.summary)) is not None}
        if values:
            worst = runs[min(values, key=lambda place: values[place])]
            by = SEPARATOR.join(text for axis, text in worst.cell.labels.items() if axis not in axes)
            row |= {name: min(values.values()), f"{name}_by": by, f"{name}_hidden": stealth_cost(worst.summary) <= limit}
    return row


def map_matrices(runs: Sequence[Run], axes: Sequence[str], limit: float) -> Mapping[str, Matrix]:
    """`map` and `map_worst_class`: rows by the first axis but the seed, columns by the others."""
    frame = worst_map(runs, axes, limit)
    shown = [axis for axis in axes if axis != "seed"]
    row = frame[shown[0]] if shown else pd.Series("all seeds", index=frame.index)
    column = frame[shown[1:]].agg(SEPARATOR.join, axis=1) if len(shown) > 1 else pd.Series("least", index=frame.index)
    places = pd.MultiIndex.from_frame(pd.DataFrame({"row": row, "column": column}))
    names = {"accuracy": "map", "worst_class": "map_worst_class"}
    axis = shown[0] if shown else ""
    return {names[name]: Matrix(frame[name].astype(float).set_axis(places), what, axis) for name, what in LEAST.items() if name in frame}


def write_map(path: Path, runs: Sequence[Run], axes: Sequence[str], limit: float) -> None:
    """`map.csv`: the rows of `worst_map`."""
    write_whole(path, worst_map(runs, axes, limit).to_csv(index=False, float_format="%.4g"))
