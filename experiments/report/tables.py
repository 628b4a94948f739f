"""Results of finished runs, from their records alone: tables for the terminal, `results.csv`, and a study's accuracies as a matrix."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from experiments.records.folder import is_complete, read_summary, run_folders
from experiments.sweep.published import Pair, agreement, published_numbers
from experiments.sweep.search import left_after, stealth_cost
from experiments.sweep.spec import Cell
from experiments.sweep.study import Run
from fl_sim.atomic_files import write_whole
from fl_sim.config.resolve import flatten


def run_table(summary: Mapping[str, Any]) -> Table:
    """What a single run's command prints."""
    accuracy, twin, control = summary["accuracy"], summary["clean_twin"] or {}, summary["control"] or {}
    table = Table(title=f"test accuracy (%), trigger in round {summary['trigger_round'] or '-'}", title_justify="left")
    for column in ("", "before trigger", "after trigger", "final"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("attacked", *_shown(accuracy["before_trigger"], accuracy["after_trigger"], accuracy["final"]))
    table.add_row("clean twin", *_shown(None, twin.get("at_trigger"), twin.get("final")))
    table.add_row("control", *_shown(control.get("before_trigger"), control.get("after_trigger"), None))
    table.caption = (
        f"burn-in {_shown(accuracy['burn_in'])[0]} · drop {_shown(summary['drop'])[0]} · gain over control {_shown(summary['gain'])[0]} · "
        f"stealth gap {_shown(summary['stealth_gap'])[0]} · {summary['client_failures']} client failures, "
        f"{summary['retries']} retries · "
        f"{summary['rounds']} rounds in {summary['seconds']['total']:.0f} s"
    )
    table.caption_justify = "left"
    return table


def search_table(runs: Sequence[Run], limit: float, shown: int = 10) -> Table:
    """The settings of a search that left the least accuracy, those over the stealth limit (points) after all others."""

    def rank(run: Run) -> tuple[bool, float]:
        return stealth_cost(run.summary) > limit, left_after(run.summary)

    ranked = sorted(runs, key=rank)
    table = Table(title=f"the worst of {len(runs)} settings", title_justify="left", caption_justify="left")
    for column in ("left (%)", "phase cost", *ranked[0].cell.labels):
        table.add_column(column, justify="right")
    for cell, _, summary in ranked[:shown]:
        lost = stealth_cost(summary)
        table.add_row(*_shown(left_after(summary)), f"{lost:.1f}" + " (over the limit)" * (lost > limit), *cell.labels.values())
    within = sum(not rank(run)[0] for run in runs)
    table.caption = f"accuracy after the trigger; with {within} settings the phase before it cost at most {limit:g} points"
    return table


def runs_table(root: Path) -> Table:
    """Every run below a folder: its name, what it is, and how it ended; a run without a summary is incomplete."""
    table = Table(caption_justify="left")
    for column in ("folder", "strategy", "attack", "seed", "rounds", "after trigger (%)", "final (%)", "seconds"):
        table.add_column(column, justify="left" if column in ("folder", "strategy", "attack") else "right", overflow="fold")
    folders = run_folders(root)
    for folder in folders:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        who = [str(folder.relative_to(root)), config["strategy.name"], config["attack.name"], str(config["seed"])]
        if is_complete(folder):
            summary = read_summary(folder)
            accuracy = summary["accuracy"]
            ended = [str(summary["rounds"]), *_shown(accuracy["after_trigger"], accuracy["final"]), f"{summary['seconds']['total']:.0f}"]
        else:
            done = (folder / "rounds.jsonl").read_text(encoding="utf-8").count("\n")  # the last line may be half of one
            ended = [f"{done} so far", "-", "-", "incomplete"]
        table.add_row(*who, *ended)
    complete = sum(map(is_complete, folders))
    table.caption = f"{len(folders)} runs, {complete} complete"
    return table


class Matrix(NamedTuple):
    """Accuracies (percent), a value a seed, by column and row; what they are, in words; and the axis of the rows."""

    values: Mapping[str, Mapping[str, Sequence[float]]]
    what: str
    axis: str = ""

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(row for column in self.values.values() for row in column))


def accuracy_matrix(runs: Sequence[Run]) -> Matrix:
    """Accuracy after the trigger, or at the end where no run has one: rows by the first axis, columns by the others but the seed."""
    without = all(run.summary["accuracy"]["after_trigger"] is None for run in runs)
    matrix: dict[str, dict[str, list[float]]] = {}
    for cell, _, summary in runs:
        row, column = place(cell)
        value = summary["accuracy"]["final" if without else "after_trigger"]
        matrix.setdefault(column, {}).setdefault(row, []).extend([] if value is None else [value])
    what = "test accuracy at the end (%)" if without else "test accuracy after the trigger (%)"
    return Matrix(matrix, what, row_axis(runs))


def worst_cases(runs: Sequence[Run]) -> Matrix | None:
    """Strategies by attacks: the mean over seeds left by those of the attack's settings that leave least. None for a study of other axes.

    Source: the heat maps of ByzFL (Gonzalez et al. 2025), there the worst case over attacks.
    """
    if not all(_axis(run.cell, "strategy") and "attack.name" in run.cell.flat for run in runs):
        return None
    settings: dict[str, dict[str, dict[str, list[float]]]] = {}
    for cell, _, summary in runs:
        labels = {axis: text for axis, text in cell.labels.items() if axis != "seed"}
        own = [axis for axis in labels if axis.partition(".")[0] == "attack"]
        row = " · ".join(text for axis, text in labels.items() if axis not in own)
        column = settings.setdefault(cell.flat["attack.name"], {}).setdefault(row, {})
        column.setdefault(" · ".join(labels[axis] for axis in own), []).append(left_after(summary))
    worst = {
        attack: {row: [min(sum(left) / len(left) for left in tried.values())] for row, tried in rows.items()}
        for attack, rows in settings.items()
    }
    return Matrix(worst, "test accuracy after the trigger, or at the end (%): mean over seeds, worst of the attack's settings")


def matrix_table(runs: Sequence[Run]) -> Table:
    """The accuracy matrix: mean (least to most) over seeds."""
    matrix = accuracy_matrix(runs)
    table = Table(caption=matrix.what, caption_justify="left")
    table.add_column(matrix.axis, overflow="fold")
    for column in matrix.values:
        table.add_column(column, justify="right", overflow="fold")
    for row in matrix.rows:
        table.add_row(row, *(over_seeds(column.get(row, [])) for column in matrix.values.values()))
    return table


def published_table(entry: str, pairs: Sequence[Pair]) -> Table:
    """Published accuracies beside ours: mean (least to most) over seeds, and the difference of the means."""
    source = published_numbers()[entry]["source"]
    table = Table(caption=f"test accuracy (%); published: {source}; {agreement(entry, pairs)}", caption_justify="left")
    for column in ("setting", "published", "ours", "ours - published"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    for pair in pairs:
        table.add_row(pair.setting, f"{pair.published:.1f}", over_seeds(pair.ours), f"{pair.mean - pair.published:+.1f}")
    return table


def write_results(path: Path, runs: Sequence[Run]) -> None:
    """`results.csv`: a row a complete cell, with every swept key and every summary figure."""
    rows = [
        {
            **cell.flat,
            "folder": folder.name,
            **{key: json.dumps(value) if isinstance(value, list) else value for key, value in flatten(summary).items()},
        }
        for cell, folder, summary in runs
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def place(cell: Cell) -> tuple[str, str]:
    """Row (the first axis) and column (the others but the seed) of a cell."""
    row, *others = [label for axis, label in cell.labels.items() if axis != "seed"] or ["all seeds"]
    return row, " · ".join(others) or "accuracy"


def row_axis(runs: Sequence[Run]) -> str:
    """The axis whose values are rows: the first but the seed; empty for a study without one."""
    return next((axis for run in runs for axis in run.cell.labels if axis != "seed"), "")


def _axis(cell: Cell, section: str) -> bool:
    """Whether the name of a section is swept."""
    return section in cell.labels or f"{section}.name" in cell.labels


def over_seeds(values: Sequence[float]) -> str:
    """`mean (least to most)` of one or several accuracies."""
    if not values:
        return "-"
    mean = sum(values) / len(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})"


def _shown(*values: float | None) -> list[str]:
    return ["-" if value is None else f"{value:.1f}" for value in values]
