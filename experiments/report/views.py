"""Accuracy over rounds of a study's runs: for each of its cells the mean over seeds, least and most, and where the phases lie.

Runs fire their trigger in different rounds. So that a mean is one of the same moments, rounds are counted from each run's first trigger
(that round is 0; where none fired, the round for which it was planned), if any run of the study fired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.records.folder import read_rounds
from experiments.report.tables import place, row_axis
from experiments.run.phases import accumulate_rounds
from experiments.sweep.study import Run
from fl_sim.config.resolve import from_json

FROM_START, FROM_TRIGGER = "round", "round, from that of the trigger"
Phase = tuple[str, int, int]  # name, first round, last round


class Curve(NamedTuple):
    """Test accuracies (percent) by round over the seeds, between two evaluations on the line that joins them."""

    rounds: Sequence[int]
    mean: Sequence[float]
    least: Sequence[float]
    most: Sequence[float]


class Panel(NamedTuple):
    """The cells of one column: a curve by row, and the longest phases of those in which a trigger fired."""

    curves: Mapping[str, Curve]
    phases: Sequence[Phase]


class RoundPanels(NamedTuple):
    """A panel for each column of the study's matrix, from where their rounds are counted, and the axis of the rows."""

    panels: Mapping[str, Panel]
    counted: str
    axis: str


def round_panels(runs: Sequence[Run]) -> RoundPanels:
    """The panels of a study's runs."""
    aligned = any(run.summary["triggers"] for run in runs)
    seeds: dict[str, dict[str, list[dict[int, float]]]] = {}
    fired: dict[str, list[int]] = {}
    for run in runs:
        row, column = place(run.cell)
        zero = _trigger_round(run) if aligned else 0
        seeds.setdefault(column, {}).setdefault(row, []).append({round_ - zero: value for round_, value in _accuracies(run).items()})
        fired.setdefault(column, []).extend(round_ - zero for round_ in run.summary["triggers"])
    panels = {
        column: Panel({row: _curve(found) for row, found in rows.items()}, _phases(fired[column], rows)) for column, rows in seeds.items()
    }
    return RoundPanels(panels, FROM_TRIGGER if aligned else FROM_START, row_axis(runs))


def _accuracies(run: Run) -> dict[int, float]:
    """Accuracy by round, from round 0, the burnt-in model; before and after the first trigger as the summary has it."""
    accuracy = run.summary["accuracy"]
    found = {0: accuracy["burn_in"]}
    found |= {line["round"]: line["accuracy"] for line in read_rounds(run.folder)["attacked"] if "accuracy" in line}
    if run.summary["triggers"]:
        first = run.summary["triggers"][0]
        found |= {first - 1: accuracy["before_trigger"], first: accuracy["after_trigger"]}
    return dict(sorted(found.items()))


def _trigger_round(run: Run) -> int:
    if run.summary["triggers"]:
        return run.summary["triggers"][0]
    return accumulate_rounds(from_json((run.folder / "config.json").read_text(encoding="utf-8"))) + 1


def _curve(seeds: Sequence[Mapping[int, float]]) -> Curve:
    rounds = sorted({round_ for seed in seeds for round_ in seed})
    values = np.array([np.interp(rounds, list(seed), list(seed.values()), left=np.nan, right=np.nan) for seed in seeds])
    return Curve(rounds, *(list(map(float, found)) for found in (np.nanmean(values, 0), np.nanmin(values, 0), np.nanmax(values, 0))))


def _phases(fired: Sequence[int], rows: Mapping[str, Sequence[Mapping[int, float]]]) -> list[Phase]:
    if not fired:
        return []
    rounds = [round_ for seeds in rows.values() for seed in seeds for round_ in seed]
    phases = [
        ("accumulate", min(rounds) + 1, min(fired) - 1),
        ("trigger", min(fired), max(fired)),
        ("recover", max(fired) + 1, max(rounds)),
    ]
    return [phase for phase in phases if phase[1] <= phase[2]]
