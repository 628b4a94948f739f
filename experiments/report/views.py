"""What the tables and figures of a study show: its runs grouped by setting, over the seeds.

Accuracy over rounds: runs fire their trigger in different rounds. So that a mean is one of the same moments, rounds are counted from each
run's first trigger (that round is 0; where none fired, the round for which it was planned), if any run of the study fired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.report.frame import label_frame, study_frame
from experiments.run.phases import accumulate_rounds
from experiments.sweep.published import over_seeds
from experiments.sweep.search import left_after, stealth_cost
from experiments.sweep.study import Run
from fl_sim.config.resolve import config_of

FROM_START, FROM_TRIGGER = "round", "round, from that of the trigger"
RATIOS: Mapping[str, str] = {"attack.poison-ratio": "poison ratio", "attack.malicious-fraction": "malicious clients of all"}
SEPARATOR = " · "
SEEDS_SHADED = "mean over seeds, least to most shaded"
ACCURACY, TWIN = "accuracy", "clean twin"  # the columns of a study without a second axis
Phase = tuple[str, int, int]  # name, first round, last round


class Matrix(NamedTuple):
    """Accuracies (percent) of a study, a value per seed, with the labels of their `row` and `column`; what they are, in words; and the axis
    of the rows."""

    values: pd.Series  # by (row, column), in the study's order; NaN where nothing was measured
    what: str
    axis: str = ""

    def grid(self, over: Callable[[pd.Series], Any] | str) -> pd.DataFrame:
        """Rows by columns, in the study's order: an aggregate over the seeds. NaN where the study has no such setting."""
        table = self.values.groupby(level=["row", "column"], sort=False).agg(over).unstack("column")
        rows, columns = (self.values.index.get_level_values(level).unique() for level in ("row", "column"))
        return table.reindex(index=rows, columns=columns)

    def texts(self) -> pd.DataFrame:
        """Rows by columns: `mean (least to most)` over the seeds, "-" where there is none."""
        return self.grid(seeds_text).fillna("-")

    def means(self) -> tuple[pd.DataFrame, str]:
        """The means over the seeds, the longer of rows and columns as rows; and a title."""
        means = self.grid("mean")
        title = self.what if "mean" in self.what else f"{self.what}, mean over seeds"
        return (means if len(means) > len(means.columns) else means.T), title


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
    """A panel for each column of the study's matrix, from where their rounds are counted, the axis of the rows, and what a line is."""

    panels: Mapping[str, Panel]
    counted: str
    axis: str
    over: str = SEEDS_SHADED


def seeds_text(values: pd.Series) -> str:
    """`mean (least to most)` of the values over the seeds that are not missing, "-" of none: an aggregate for a group-by."""
    return over_seeds(values.dropna().tolist())


def accuracies(runs: Sequence[Run]) -> tuple[pd.Series, str]:
    """Accuracy (percent) of each run after the trigger; at the end of the attack where no trigger fired, at the end of the run where nobody
    attacked; where no run has any of these, at the end; and what they are, in words."""
    frame = study_frame(runs)
    empty = pd.Series(float("nan"), frame.index)
    after, ended = (frame.get(f"accuracy.{place}", empty).astype(float) for place in ("after_trigger", "end_of_attack"))
    final = frame["accuracy.final"].astype(float)
    clean = final.where(pd.Series([run.config.get("attack.name") == "none" for run in runs], frame.index))
    values, words = empty, list[str]()
    for here, text in ((after, "after the trigger"), (ended, "at the end of the attack"), (clean, "at the end where nobody attacks")):
        if (values.isna() & here.notna()).any():
            values, words = values.fillna(here), [*words, text]
    if values.isna().all() or words == ["at the end where nobody attacks"]:
        return final, "test accuracy at the end (%)"
    return values, f"test accuracy {', or '.join(words)} (%)"


def accuracy_matrix(runs: Sequence[Run]) -> Matrix:
    """The `accuracies` of a study: rows by the first axis, columns by the others but the seed; without others a column of clean twins."""
    matrix = matrix_of(runs, *accuracies(runs))
    if set(matrix.values.index.get_level_values("column")) != {ACCURACY} or (twins := clean_twins(runs)) is None:
        return matrix
    beside = twins.set_axis(pd.MultiIndex.from_frame(place_frame(runs, TWIN)))
    return matrix._replace(values=pd.concat([matrix.values, beside]))


def clean_twins(runs: Sequence[Run]) -> pd.Series | None:
    """Accuracy (percent) of each run's clean twin after the round of the trigger. None unless every run has both."""
    frame = study_frame(runs)
    wanted = ("accuracy.after_trigger", "clean_twin.at_trigger")
    if not set(wanted) <= set(frame) or frame[list(wanted)].isna().any(axis=None):
        return None
    return frame["clean_twin.at_trigger"].astype(float)


def matrix_of(runs: Sequence[Run], values: pd.Series, what: str) -> Matrix:
    """A matrix of one value (percent) per run, as `accuracy_matrix`."""
    places = pd.MultiIndex.from_frame(place_frame(runs, ACCURACY if ACCURACY in what.lower() else "percent"))
    return Matrix(values.set_axis(places), what, _row_axis(runs))


def worst_cases(runs: Sequence[Run]) -> Matrix | None:
    """Strategies by attacks: the mean over seeds left by those of the attack's settings that leave least. None for a study of other axes.

    Source: the heat maps of ByzFL (Gonzalez et al. 2025), there the worst case over attacks.
    """
    if not all({"strategy", "strategy.name"} & set(run.cell.labels) and "attack.name" in run.cell.flat for run in runs):
        return None
    labels = label_frame(runs)
    attacks = [axis for axis in labels if str(axis).partition(".")[0] == "attack"]
    places = pd.DataFrame(
        {
            "row": _joined(labels.drop(columns=attacks)),
            "column": [run.cell.flat["attack.name"] for run in runs],
            "setting": _joined(labels[attacks]),
        }
    )
    means = _left(runs).groupby([places[name] for name in places], sort=False).mean()
    worst = means.groupby(level=["row", "column"], sort=False).min()
    what = "test accuracy after the trigger, or at the end (%): mean over seeds, worst of the attack's settings"
    return Matrix(worst, what)


def ratio_axis(runs: Sequence[Run]) -> str | None:
    """The axis that is a poison ratio, if there is one of several values."""
    labels = label_frame(runs)
    return next((axis for axis in RATIOS if axis in labels and labels[axis].nunique() > 1), None)


def ratio_curves(runs: Sequence[Run], axis: str) -> dict[str, pd.DataFrame]:
    """Accuracy (percent) after the trigger, or at the end of a run in which none fired: by the labels of the other axes a frame with one
    row per ratio, ascending: `mean`, `min` and `max` over the seeds, and `list`, each of them."""
    labels = label_frame(runs)
    ratios = pd.Series([float(run.cell.flat[axis]) for run in runs], name="ratio")
    lines = _joined(labels.drop(columns=axis), "accuracy").rename("line")
    points = pd.concat([lines, ratios, _left(runs).rename("left")], axis=1).sort_values("ratio", kind="stable")
    spread = points.groupby(["line", "ratio"], sort=False)["left"].agg(["mean", "min", "max", list])
    return {str(line): spread.loc[line] for line in points["line"].unique()}


def stealth_points(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run that has both: its `gap` and `drop` (points), and its `group`: the strategy, or the label of the first axis that is
    not the seed; the index is the run's place among `runs`."""
    labels, frame = label_frame(runs), study_frame(runs)
    axes = [*(axis for axis in ("strategy", "strategy.name") if axis in labels), *labels.columns[:1]]
    groups = labels[axes[0]] if axes else pd.Series("runs", index=labels.index)
    points = pd.DataFrame({"group": groups, "gap": frame["stealth_gap"].astype(float), "drop": frame["drop"].astype(float)})
    return points.dropna(subset=["gap", "drop"])


def search_ranking(runs: Sequence[Run], limit: float) -> pd.DataFrame:
    """The settings of a search by what they left (percent), the least first, those over the stealth limit (points) after all others.
    Columns: `left`, `cost` (points that the phase cost), `over` the limit, and the labels of the settings."""
    figures = pd.DataFrame(
        {"left": [left_after(run.summary) for run in runs], "cost": [stealth_cost(run.summary) for run in runs]}, dtype=float
    )
    figures["over"] = figures["cost"] > limit
    labels = pd.DataFrame([dict(run.cell.labels) for run in runs], dtype=object)
    return pd.concat([figures, labels], axis=1).sort_values(["over", "left"], kind="stable")


def place_frame(runs: Sequence[Run], alone: str = ACCURACY) -> pd.DataFrame:
    """One row per run: its `row` (the label of the first axis) and its `column` (those of the others, or `alone`) in the study's tables."""
    labels = label_frame(runs)
    rows = labels.iloc[:, 0] if len(labels.columns) else pd.Series("all seeds", index=labels.index)
    return pd.DataFrame({"row": rows, "column": _joined(labels.iloc[:, 1:], alone)})


def round_panels(runs: Sequence[Run]) -> RoundPanels:
    """The panels of a study's runs."""
    aligned = any(run.summary["triggers"] for run in runs)
    zeros = [_trigger_round(run) if aligned else 0 for run in runs]
    places = place_frame(runs)
    curves: dict[str, dict[str, list[dict[int, float]]]] = {}
    triggers: dict[str, list[int]] = {}
    for run, zero, row, column in zip(runs, zeros, places["row"], places["column"], strict=True):
        curve = {round_ - zero: value for round_, value in _accuracies(run).items()}
        curves.setdefault(column, {}).setdefault(row, []).append(curve)
        triggers.setdefault(column, []).extend(round_ - zero for round_ in run.summary["triggers"])
    panels = {
        column: Panel({row: _curve(seeds) for row, seeds in rows.items()}, _phases(triggers[column], rows))
        for column, rows in curves.items()
    }
    several = any(len(seeds) > 1 for rows in curves.values() for seeds in rows.values())
    return RoundPanels(panels, FROM_TRIGGER if aligned else FROM_START, _row_axis(runs), SEEDS_SHADED if several else "one seed")


def _row_axis(runs: Sequence[Run]) -> str:
    """The axis whose values are rows: the first but the seed; empty for a study without one."""
    return str(next(iter(label_frame(runs).columns), ""))


def _joined(labels: pd.DataFrame, otherwise: str = "") -> pd.Series:
    """The labels of each run as one text."""
    return labels.agg(SEPARATOR.join, axis=1) if len(labels.columns) else pd.Series(otherwise, index=labels.index)


def _left(runs: Sequence[Run]) -> pd.Series:
    """What each run's attack left (percent): see `left_after`."""
    return pd.Series([left_after(run.summary) for run in runs], dtype=float)


def _accuracies(run: Run) -> dict[int, float]:
    """Accuracy by round, from round 0, the burnt-in model; before and after the first trigger as the summary has it."""
    accuracy, triggers = run.summary["accuracy"], run.summary["triggers"]
    curve = {0: accuracy["burn_in"], **run.curve}
    if triggers:
        curve |= {triggers[0] - 1: accuracy["before_trigger"], triggers[0]: accuracy["after_trigger"]}
    return dict(sorted(curve.items()))


def _trigger_round(run: Run) -> int:
    if run.summary["triggers"]:
        return run.summary["triggers"][0]
    return accumulate_rounds(config_of(run.config)) + 1


def _curve(seeds: Sequence[Mapping[int, float]]) -> Curve:
    rounds = sorted({round_ for seed in seeds for round_ in seed})
    values = np.array([np.interp(rounds, list(seed), list(seed.values()), left=np.nan, right=np.nan) for seed in seeds])
    return Curve(rounds, *(statistic(values, 0).tolist() for statistic in (np.nanmean, np.nanmin, np.nanmax)))


def _phases(triggers: Sequence[int], rows: Mapping[str, Sequence[Mapping[int, float]]]) -> list[Phase]:
    if not triggers:
        return []
    rounds = [round_ for seeds in rows.values() for curve in seeds for round_ in curve]
    phases = [
        ("accumulate", min(rounds) + 1, min(triggers) - 1),
        ("trigger", min(triggers), max(triggers)),
        ("recover", max(triggers) + 1, max(rounds)),
    ]
    return [phase for phase in phases if phase[1] <= phase[2]]
