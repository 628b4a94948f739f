"""Results of finished runs, from their records alone: tables for the terminal, `results.csv` and the sweep's figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.cells import Cell
from experiments.figures import heat_figure, matrix_figure
from experiments.records import is_complete, read_rounds, read_summary, write_atomically
from experiments.search import left_after, stealth_cost
from fl_sim.config_file import flatten


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
        f"stealth gap {_shown(summary['stealth_gap'])[0]} · {summary['client_failures']} client failures · "
        f"{summary['rounds']} rounds in {summary['seconds']['total']:.0f} s"
    )
    table.caption_justify = "left"
    return table


def search_table(measured: Sequence[tuple[Cell, Mapping[str, Any]]], limit: float, shown: int = 10) -> Table:
    """The settings of a search that left the least accuracy, those over the stealth limit (points) after all others."""

    def rank(entry: tuple[Cell, Mapping[str, Any]]) -> tuple[bool, float]:
        return stealth_cost(entry[1]) > limit, left_after(entry[1])

    ranked = sorted(measured, key=rank)
    table = Table(title=f"the worst of {len(measured)} settings", title_justify="left", caption_justify="left")
    for column in ("left (%)", "phase cost", *ranked[0][0].labels):
        table.add_column(column, justify="right")
    for cell, summary in ranked[:shown]:
        lost = stealth_cost(summary)
        table.add_row(*_shown(left_after(summary)), f"{lost:.1f}" + " (over the limit)" * (lost > limit), *cell.labels.values())
    within = sum(not rank(entry)[0] for entry in measured)
    table.caption = f"accuracy after the trigger; with {within} settings the phase before it cost at most {limit:g} points"
    return table


def runs_table(root: Path) -> Table:
    """Every run below a folder: its name, what it is, and how it ended; a run without a summary is incomplete."""
    table = Table(caption_justify="left")
    for column in ("folder", "strategy", "attack", "seed", "rounds", "after trigger (%)", "final (%)", "seconds"):
        table.add_column(column, justify="left" if column in ("folder", "strategy", "attack") else "right", overflow="fold")
    folders = sorted(path.parent for path in root.rglob("config.json") if (path.parent / "rounds.jsonl").exists())
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


def matrix_table(cells: Sequence[Cell], folders: Sequence[Path]) -> Table:
    """Accuracy after the trigger, or at the end where no cell has one: mean (least to most) over seeds, rows by the first axis."""
    matrix, when = _matrix(cells, folders)
    columns = list(matrix)
    table = Table(caption=f"test accuracy {when} (%)", caption_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in dict.fromkeys(row for column in matrix.values() for row in column):
        table.add_row(row, *(_over_seeds(matrix[column].get(row, [])) for column in columns))
    return table


def sweep_figure(path: Path, cells: Sequence[Cell], folders: Sequence[Path]) -> None:
    """Accuracy over rounds of all cells: a panel for each value of the last axes, a colour for each of the first, a curve a seed."""
    curves: dict[str, dict[str, list[dict[int, float]]]] = {}
    for cell, folder in zip(cells, folders, strict=True):
        row, column = _place(cell)
        curve = {line["round"]: line["accuracy"] for line in read_rounds(folder)["attacked"] if "accuracy" in line}
        start = read_summary(folder)["accuracy"]["burn_in"]
        curves.setdefault(column, {}).setdefault(row, []).append({0: start, **curve})
    matrix, when = _matrix(cells, folders)
    shown = {column: {row: _over_seeds(values) for row, values in rows.items()} for column, rows in matrix.items()}
    matrix_figure(path, curves, shown, when)


def sweep_heat_map(path: Path, cells: Sequence[Cell], folders: Sequence[Path]) -> None:
    """Accuracy of all cells as a heat map, after the trigger or at the end: the longer of rows (the first axis) and columns goes down."""
    matrix, when = _matrix(cells, folders)
    means = {column: {row: sum(values) / len(values) for row, values in rows.items() if values} for column, rows in matrix.items()}
    rows = dict.fromkeys(row for column in means.values() for row in column)
    if len(rows) > len(means):
        means = {row: {column: values[row] for column, values in means.items() if row in values} for row in rows}
    heat_figure(path, means, f"test accuracy {when} (%), mean over seeds")


def write_results(path: Path, cells: Sequence[Cell], folders: Sequence[Path]) -> None:
    """`results.csv`: a row a complete cell, with every swept key and every summary figure."""
    rows = [
        {
            **cell.flat,
            "folder": folder.name,
            **{key: json.dumps(value) if isinstance(value, list) else value for key, value in flatten(read_summary(folder)).items()},
        }
        for cell, folder in zip(cells, folders, strict=True)
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def _matrix(cells: Sequence[Cell], folders: Sequence[Path]) -> tuple[dict[str, dict[str, list[float]]], str]:
    """Accuracy by column and row, a value a seed, and when it was measured: after the trigger, or at the end where no cell has one."""
    measured = [read_summary(folder)["accuracy"] for folder in folders]
    without = all(accuracy["after_trigger"] is None for accuracy in measured)
    matrix: dict[str, dict[str, list[float]]] = {}
    for cell, accuracy in zip(cells, measured, strict=True):
        row, column = _place(cell)
        value = accuracy["final" if without else "after_trigger"]
        matrix.setdefault(column, {}).setdefault(row, []).extend([] if value is None else [value])
    return matrix, "at the end" if without else "after the trigger"


def _place(cell: Cell) -> tuple[str, str]:
    """Row (the first axis) and column (the others but the seed) of a cell."""
    row, *others = [label for axis, label in cell.labels.items() if axis != "seed"] or ["all seeds"]
    return row, " · ".join(others) or "accuracy"


def _over_seeds(values: Sequence[float]) -> str:
    """`mean (least to most)` of one or several accuracies."""
    if not values:
        return "-"
    mean = sum(values) / len(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})"


def _shown(*values: float | None) -> list[str]:
    return ["-" if value is None else f"{value:.1f}" for value in values]
