"""Figures of a study that a paper shows, as PNG and PDF: accuracy against the poison ratio and over rounds, the drop against what it cost
in stealth, strategies by attacks, a search, and published numbers beside ours."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from experiments.report.figures.run_figures import PALETTE, finish_axes, save, shade_phase
from experiments.report.views import RATIOS, Matrix, RoundPanels
from experiments.sweep.published import Pair
from experiments.sweep.search import STEALTH_LIMIT, left_after, stealth_cost
from experiments.sweep.study import Run
from fl_sim.atomic_files import writing

LABEL = 52  # characters of a row's label in a line
STYLES = ["-", "--", ":", "-."]
MARKERS = "osD^vP*X"  # for print without colours; one fewer than colours, so that 72 curves differ


def ratio_figure(path: Path, curves: Mapping[str, pd.DataFrame], axis: str) -> None:
    """A line for each of the curves: the mean over seeds, and least to most shaded. Args: path, without suffix; curves, of
    `ratio_curves`."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for number, (label, curve) in enumerate(curves.items()):
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        ratios = [100.0 * ratio for ratio in curve.index]
        axes.plot(ratios, curve["mean"], color=colour, marker=marker, markersize=4, linewidth=1.4, label=label)
        axes.fill_between(ratios, curve["min"], curve["max"], color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel=f"{RATIOS[axis]} (%)", ylabel="test accuracy (%)", ylim=(0, 102))
    seeds = max((len(values) for curve in curves.values() for values in curve["list"]), default=0)
    over = "mean over seeds, least to most shaded" if seeds > 1 else "one seed"
    axes.set_title(f"after the trigger, or at the end where none fired: {over}", fontsize=9)
    _finish(figure, path, len(curves))


def stealth_figure(path: Path, points: pd.DataFrame) -> None:
    """Each run a point: how far the accuracy fell at the trigger, against how much of it the phase before the trigger cost.
    Args: path, without suffix; points, of `stealth_points`."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    labels = list(points["group"].unique())
    for number, label in enumerate(labels):
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        group = points[points["group"] == label]
        text = textwrap.fill(label, 60)
        axes.scatter(group["gap"], group["drop"], s=26, color=colour, marker=marker, label=text, alpha=0.8, linewidth=0)
    axes.axvline(STEALTH_LIMIT, color="#000000", linestyle=":", linewidth=0.9)
    axes.annotate("stealth limit", (STEALTH_LIMIT, 0.98), xycoords=("data", "axes fraction"), fontsize=7, rotation=90, va="top", ha="right")
    axes.set(xlabel="stealth gap: clean twin over attacked run, worst round of the phase (points)", ylabel="drop at the trigger (points)")
    if axes.get_xlim()[1] > 10 * STEALTH_LIMIT:  # where some runs are far beyond the limit, the others stay apart
        least = axes.dataLim.xmin
        axes.set_xscale("symlog", linthresh=2 * STEALTH_LIMIT)
        axes.set_xlim(left=min(least, 0.0) - 0.2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
    _finish(figure, path, len(labels))


def search_figure(path: Path, runs: Sequence[Run], limit: float) -> None:
    """Each setting of a search a point: the accuracy that it left, against the points that its phase cost, coloured by the order of the
    search. Args: path, without suffix; limit, in points."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    costs = [stealth_cost(run.summary) for run in runs]
    left = [left_after(run.summary) for run in runs]
    points = axes.scatter(costs, left, c=range(1, len(runs) + 1), cmap="cividis", s=24, linewidth=0)
    axes.axvline(limit, color="#000000", linestyle=":", linewidth=0.9, label="stealth limit")
    axes.set(xlabel="cost of the accumulative phase (points)", ylabel="test accuracy after the trigger (%)", ylim=(0, 102))
    figure.colorbar(points, ax=axes, label="setting")
    _finish(figure, path, 1)


def rounds_figure(path: Path, shown: RoundPanels) -> None:
    """Accuracy over rounds: one panel per column, one colour per row, the mean over seeds, and least to most shaded; at most four panels
    side by side. Args: path, without suffix.
    """
    rows = list(dict.fromkeys(row for panel in shown.panels.values() for row in panel.curves))
    down = -(-len(shown.panels) // 4)
    across = -(-len(shown.panels) // down)
    figure = Figure(figsize=(max(3.0 * across, 6.0), 1.1 + 2.5 * down), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    labelled: dict[str, Any] = {}
    for axes, (column, panel) in zip(grid, shown.panels.items(), strict=False):
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
        lowest = number + across >= len(shown.panels)
        axes.set_visible(number < len(shown.panels))
        axes.tick_params(labelbottom=lowest)
        axes.set(xlabel=shown.counted if number >= across * (down - 1) else "", ylabel="" if number % across else "test accuracy (%)")
    names = [*rows, *(label for label in labelled if label not in rows)]
    entries, title = [labelled[name] for name in names], shown.axis or None
    columns = legend_columns(names, figure.get_figwidth())
    figure.legend(entries, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8, title=title)
    figure.suptitle("mean over seeds, least to most shaded", fontsize=9)
    _save(figure, path)


def heat_figure(path: Path, matrix: Matrix) -> None:
    """A matrix as a heat map, the mean over seeds in each square: the longer of rows and columns goes down. Args: path, without suffix."""
    means, title = matrix.means()
    columns, names = list(means.columns), [textwrap.fill(row, LABEL) for row in means.index]
    widest = max(len(line) for name in names for line in name.splitlines())
    figure = Figure(figsize=(1.6 + 0.07 * widest + 1.2 * len(columns), 1.3 + 0.31 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    grid = means.to_numpy(dtype=float)
    image = axes.imshow(grid, cmap="cividis", vmin=0.0, vmax=100.0, aspect="auto")
    for y, line in enumerate(grid):
        for x, value in enumerate(line):
            text = "-" if np.isnan(value) else f"{value:.1f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="#FFFFFF" if value <= 55.0 else "#000000")
    axes.set_xticks(range(len(columns)), [textwrap.fill(column, 18, break_long_words=False) for column in columns], fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.set_title(textwrap.fill(title, 60), fontsize=9)
    axes.set_ylabel(matrix.axis if means.index.name == "row" else "", fontsize=8)
    figure.colorbar(image, ax=axes, label="%")
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


def _finish(figure: Figure, path: Path, labels: int) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    wide = any(len(text) > 40 for axes in figure.axes for text in axes.get_legend_handles_labels()[1])
    figure.legend(loc="outside lower center", ncols=1 if wide else min(labels, 3), frameon=False, fontsize=8)
    _save(figure, path)


def legend_columns(names: Sequence[str], inches: float) -> int:
    """How many columns of a legend in 8 point letters fit into a width, at most five; matplotlib cuts off what does not fit."""
    return max(1, min(len(names), 5, int(inches / (0.6 + 0.06 * max(map(len, names))))))


def _save(figure: Figure, path: Path) -> None:
    with writing(path.with_suffix(".png")):
        save(figure, path.with_suffix(".png"), dpi=160)
        save(figure, path.with_suffix(".pdf"), metadata={"CreationDate": None})  # the same records give the same bytes
