"""Figures of a study that a paper shows, as PNG and PDF: accuracy against the poison ratio and over rounds, the drop against what it cost
in stealth, strategies by attacks, a search, and published numbers beside ours."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from experiments.report.run_figures import PALETTE, finish_axes, shade_phase
from experiments.report.tables import Matrix
from experiments.report.views import RoundPanels
from experiments.sweep.published import Pair
from experiments.sweep.search import STEALTH_LIMIT, left_after, stealth_cost
from experiments.sweep.spec import Cell
from experiments.sweep.study import Run
from fl_sim.atomic_files import writing

RATIOS = ("attack.poison-ratio", "attack.malicious-fraction")
LABEL = 52  # characters of a row's label in a line
STYLES = ["-", "--", ":", "-."]
MARKERS = "osD^vP*X"  # beside the colours, for print without them; one fewer, so that 72 curves differ


def ratio_axis(cells: Sequence[Cell]) -> str | None:
    """The axis that is a poison ratio, if there is one of several values."""
    found = [axis for axis in RATIOS if len({cell.labels.get(axis) for cell in cells}) > 1]
    return found[0] if found else None


def ratio_curves(runs: Sequence[Run], axis: str) -> dict[str, dict[float, list[float]]]:
    """Accuracy (percent) after the trigger, or at the end of a run in which none fired: a value a seed, by the labels of the other axes and
    by ratio, ascending."""
    curves: dict[str, dict[float, list[float]]] = {}
    for cell, _, summary in sorted(runs, key=lambda run: float(run.cell.flat[axis])):
        line = " · ".join(label for name, label in cell.labels.items() if name not in (axis, "seed")) or "accuracy"
        curves.setdefault(line, {}).setdefault(float(cell.flat[axis]), []).append(left_after(summary))
    return curves


def ratio_figure(path: Path, curves: Mapping[str, Mapping[float, Sequence[float]]], axis: str) -> None:
    """A line for each of the curves: the mean over seeds, and least to most shaded. Args: path, without suffix."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for number, (label, values) in enumerate(curves.items()):
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        ratios = [100.0 * ratio for ratio in values]
        means = [sum(found) / len(found) for found in values.values()]
        axes.plot(ratios, means, color=colour, marker=marker, markersize=4, linewidth=1.4, label=label)
        axes.fill_between(ratios, list(map(min, values.values())), list(map(max, values.values())), color=colour, alpha=0.15, linewidth=0)
    share = "poison ratio" if axis == RATIOS[0] else "malicious clients of all"
    axes.set(xlabel=f"{share} (%)", ylabel="test accuracy (%)", ylim=(0, 102))
    seeds = max((len(found) for values in curves.values() for found in values.values()), default=0)
    over = "mean over seeds, least to most shaded" if seeds > 1 else "one seed"
    axes.set_title(f"after the trigger, or at the end where none fired: {over}", fontsize=9)
    _finish(figure, path, len(curves))


def stealth_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs that have a stealth gap and a drop, by their strategy, or by the first axis that is not the seed where that is none."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.summary["stealth_gap"] is not None and run.summary["drop"] is not None:
            labels = {axis: label for axis, label in run.cell.labels.items() if axis != "seed"}
            strategy = labels.get("strategy", labels.get("strategy.name"))
            groups.setdefault(strategy or next(iter(labels.values()), "runs"), []).append(run)
    return groups


def stealth_figure(path: Path, groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Each run a point: how far the accuracy fell at the trigger, against how far the phase before had betrayed the attack.
    Args: path, without suffix; groups, summaries that have both."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for number, (label, summaries) in enumerate(groups.items()):
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        gaps, drops = [summary["stealth_gap"] for summary in summaries], [summary["drop"] for summary in summaries]
        axes.scatter(gaps, drops, s=26, color=colour, marker=marker, label=textwrap.fill(label, 60), alpha=0.8, linewidth=0)
    axes.axvline(STEALTH_LIMIT, color="#000000", linestyle=":", linewidth=0.9)
    axes.annotate("stealth limit", (STEALTH_LIMIT, 0.98), xycoords=("data", "axes fraction"), fontsize=7, rotation=90, va="top", ha="right")
    axes.set(xlabel="stealth gap: clean twin over attacked run, worst round of the phase (points)", ylabel="drop at the trigger (points)")
    if axes.get_xlim()[1] > 10 * STEALTH_LIMIT:  # some broke the model in the open: the others still want to be told apart
        least = axes.dataLim.xmin
        axes.set_xscale("symlog", linthresh=2 * STEALTH_LIMIT)
        axes.set_xlim(left=min(least, 0.0) - 0.2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
    _finish(figure, path, len(groups))


def search_figure(path: Path, runs: Sequence[Run], limit: float) -> None:
    """Each setting of a search a point: the accuracy that it left, against the points that its phase cost; and in which order they came.
    Args: path, without suffix; limit, in points."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    lost = [stealth_cost(run.summary) for run in runs]
    left = [left_after(run.summary) for run in runs]
    points = axes.scatter(lost, left, c=range(1, len(runs) + 1), cmap="cividis", s=24, linewidth=0)
    axes.axvline(limit, color="#000000", linestyle=":", linewidth=0.9, label="stealth limit")
    axes.set(xlabel="cost of the accumulative phase (points)", ylabel="test accuracy after the trigger (%)", ylim=(0, 102))
    figure.colorbar(points, ax=axes, label="setting")
    _finish(figure, path, 1)


def rounds_figure(path: Path, found: RoundPanels) -> None:
    """Accuracy over rounds: a panel a column, a colour a row, the mean over seeds and least to most shaded; at most four panels side by
    side. Args: path, without suffix.
    """
    rows = list(dict.fromkeys(row for panel in found.panels.values() for row in panel.curves))
    down = -(-len(found.panels) // 4)
    across = -(-len(found.panels) // down)
    figure = Figure(figsize=(max(3.0 * across, 6.0), 1.1 + 2.5 * down), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    labelled: dict[str, Any] = {}
    for axes, (column, panel) in zip(grid, found.panels.items(), strict=False):
        for phase in panel.phases:
            shade_phase(axes, *phase)
        for row, curve in panel.curves.items():
            number = rows.index(row)
            colour, style = PALETTE[number % len(PALETTE)], STYLES[number // len(PALETTE) % len(STYLES)]
            axes.plot(curve.rounds, curve.mean, color=colour, linestyle=style, label=row, linewidth=1.3)
            axes.fill_between(curve.rounds, curve.least, curve.most, color=colour, alpha=0.15, linewidth=0)
        for entry, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, entry)
        finish_axes(axes, column)
        axes.set_title(textwrap.fill(column, 40), fontsize=9)
    for number, axes in enumerate(grid):
        lowest = number + across >= len(found.panels)
        axes.set_visible(number < len(found.panels))
        axes.tick_params(labelbottom=lowest)
        axes.set(xlabel=found.counted if number >= across * (down - 1) else "", ylabel="" if number % across else "test accuracy (%)")
    names = [*rows, *(label for label in labelled if label not in rows)]
    entries, title = [labelled[name] for name in names], found.axis or None
    columns = legend_columns(names, figure.get_figwidth())
    figure.legend(entries, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8, title=title)
    figure.suptitle("mean over seeds, least to most shaded", fontsize=9)
    _save(figure, path)


def heat_figure(path: Path, matrix: Matrix) -> None:
    """A matrix as a heat map, the mean over seeds in each square: the longer of rows and columns goes down. Args: path, without suffix."""
    means, title = heat_values(matrix)
    rows, columns = list(means), list(dict.fromkeys(column for row in means.values() for column in row))
    names = [textwrap.fill(row, LABEL) for row in rows]
    widest = max(len(line) for name in names for line in name.splitlines())
    figure = Figure(figsize=(1.6 + 0.07 * widest + 1.2 * len(columns), 1.3 + 0.31 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    grid = [[means[row].get(column, float("nan")) for column in columns] for row in rows]
    image = axes.imshow(grid, cmap="cividis", vmin=0.0, vmax=100.0, aspect="auto")
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            text = "-" if value != value else f"{value:.1f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="#000000" if value > 55.0 else "#FFFFFF")
    axes.set_xticks(range(len(columns)), [textwrap.fill(column, 18, break_long_words=False) for column in columns], fontsize=7)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.set_title(textwrap.fill(title, 60), fontsize=9)
    axes.set_ylabel(matrix.axis if rows == matrix.rows else "", fontsize=8)
    figure.colorbar(image, ax=axes, label="test accuracy (%)")
    _save(figure, path)


def published_figure(path: Path, pairs: Sequence[Pair], title: str) -> None:
    """A line for each setting: the published accuracy (hollow) and ours (filled: the mean over seeds, least to most). Args: path, without
    suffix."""
    figure = Figure(figsize=(7.2, 1.4 + 0.2 * len(pairs)), layout="constrained")
    axes = figure.add_subplot()
    for y, pair in enumerate(pairs):
        axes.plot([pair.published, pair.mean], [y, y], color="#999999", linewidth=1.0, zorder=1)
        axes.plot([min(pair.ours), max(pair.ours)], [y, y], color=PALETTE[0], linewidth=2.4, zorder=2)
    rows = range(len(pairs))
    theirs = [pair.published for pair in pairs]
    axes.scatter(theirs, rows, s=28, facecolor="#FFFFFF", edgecolor=PALETTE[2], linewidth=1.3, zorder=3, label="published")
    axes.scatter([pair.mean for pair in pairs], rows, s=24, color=PALETTE[0], zorder=4, label="ours")
    axes.set_yticks(rows, [textwrap.shorten(pair.setting, 90) for pair in pairs], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy (%)", xlim=(0, 102))
    figure.suptitle(textwrap.fill(title, 100, break_on_hyphens=False), fontsize=8)
    _finish(figure, path, 2)


def heat_values(matrix: Matrix) -> tuple[dict[str, dict[str, float]], str]:
    """Means over seeds, rows by columns, the longer of the two as rows; and a title."""
    means = {column: {row: sum(seeds) / len(seeds) for row, seeds in rows.items() if seeds} for column, rows in matrix.values.items()}
    if len(matrix.rows) > len(means):
        means = {row: {column: values[row] for column, values in means.items() if row in values} for row in matrix.rows}
    return means, matrix.what if "mean" in matrix.what else f"{matrix.what}, mean over seeds"


def _finish(figure: Figure, path: Path, labels: int) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    wide = any(len(text) > 40 for axes in figure.axes for text in axes.get_legend_handles_labels()[1])
    figure.legend(loc="outside lower center", ncols=1 if wide else min(labels, 3), frameon=False, fontsize=8)
    _save(figure, path)


def legend_columns(names: Sequence[str], inches: float) -> int:
    """How many columns of a legend in 8 point letters fit into a width, at most five; matplotlib cuts off what does not."""
    return max(1, min(len(names), 5, int(inches / (0.6 + 0.06 * max(map(len, names))))))


def _save(figure: Figure, path: Path) -> None:
    with writing(path.with_suffix(".png")):
        figure.savefig(path.with_suffix(".png"), dpi=160)
        figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})  # the same records give the same bytes
