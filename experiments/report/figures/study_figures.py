"""Figures of a study that a paper shows, as PNG and PDF: accuracy against the poison ratio and over rounds, the drop against what it cost
in stealth, strategies by attacks, a search, and published numbers beside ours. Of each: path, without suffix; width, in inches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import ScalarFormatter

from experiments.report.figures.curves import few_ticks, finish_axes, shade_phase
from experiments.report.figures.style import (
    CELL,
    LETTER,
    MARKERS,
    PAGE,
    PALETTE,
    STYLES,
    drawn,
    entries_of,
    legend_below,
    title_of,
    wrapped,
)
from experiments.report.views import RATIOS, Matrix, RoundPanels
from experiments.sweep.published import Pair
from experiments.sweep.search import STEALTH_LIMIT, left_after, stealth_cost
from experiments.sweep.study import Run

HOLLOW: Any = {"markerfacecolor": "none"}  # one marker lets another through at the same place
PANEL = 1.7  # inches: the narrowest panel of accuracy over rounds


def ratio_figure(path: Path, curves: Mapping[str, pd.DataFrame], axis: str, width: float = PAGE) -> None:
    """A line for each of the curves: the mean over seeds, and least to most shaded; at the end of a run where no trigger fired.
    Args: curves, of `ratio_curves`."""
    with drawn(path, width, _height(width)) as figure:
        axes = figure.add_subplot()
        for number, (label, curve) in enumerate(curves.items()):
            colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
            style = STYLES[number % len(STYLES)]
            ratios = [100.0 * ratio for ratio in curve.index]
            axes.plot(ratios, curve["mean"], color=colour, marker=marker, linestyle=style, label=label, **HOLLOW)
            axes.fill_between(ratios, curve["min"], curve["max"], color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel=f"{RATIOS[axis]} (%)", ylabel="test accuracy (%)\nafter the trigger", ylim=(0, 102))
        few_ticks(axes)
        seeds = max((len(values) for curve in curves.values() for values in curve["list"]), default=0)
        over = "mean over seeds, least to most shaded" if seeds > 1 else "one seed"
        axes.set_title(title_of(over, width - 0.6))
        legend_below(figure, entries_of(figure))


def stealth_figure(path: Path, points: pd.DataFrame, width: float = PAGE) -> None:
    """Each run a point: how far the accuracy fell at the trigger, against how much of it the phase before the trigger cost.
    Args: points, of `stealth_points`."""
    with drawn(path, width, _height(width)) as figure:
        axes = figure.add_subplot()
        for number, label in enumerate(points["group"].unique()):
            colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
            group = points[points["group"] == label]
            axes.scatter(group["gap"], group["drop"], s=22, edgecolor=colour, facecolor="none", marker=marker, label=label)
        axes.axvline(STEALTH_LIMIT, color="#000000", linestyle=":", linewidth=0.9)
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "rotation": 90, "va": "top", "ha": "right"}
        axes.annotate("stealth limit", (STEALTH_LIMIT, 0.98), fontsize=7, **place)
        axes.set(xlabel="stealth gap: worst round of the phase (points)", ylabel="drop at the trigger (points)")
        if axes.get_xlim()[1] > 10 * STEALTH_LIMIT:  # where some runs are far beyond the limit, the others stay apart
            least = axes.dataLim.xmin
            axes.set_xscale("symlog", linthresh=2 * STEALTH_LIMIT)
            axes.set_xlim(left=min(least, 0.0) - 0.2)
            axes.xaxis.set_major_formatter(ScalarFormatter())
        else:
            few_ticks(axes)
        legend_below(figure, entries_of(figure))


def search_figure(path: Path, runs: Sequence[Run], limit: float, width: float = PAGE) -> None:
    """Each setting of a search a point: the accuracy that it left, against the points that its phase cost, coloured by the order of the
    search. Args: limit, in points."""
    with drawn(path, width, _height(width)) as figure:
        axes = figure.add_subplot()
        costs = [stealth_cost(run.summary) for run in runs]
        left = [left_after(run.summary) for run in runs]
        points = axes.scatter(costs, left, c=range(1, len(runs) + 1), s=22, linewidth=0)
        axes.axvline(limit, color="#000000", linestyle=":", linewidth=0.9, label="stealth limit")
        axes.set(xlabel="cost of the accumulative phase (points)", ylabel="accuracy after the trigger (%)", ylim=(0, 102))
        figure.colorbar(points, ax=axes, label="setting")
        legend_below(figure, entries_of(figure))


def rounds_figure(path: Path, shown: RoundPanels, width: float = PAGE) -> None:
    """Accuracy over rounds: one panel per column, one colour per row, the mean over seeds, and least to most shaded; as many panels side by
    side as are `PANEL` inches wide."""
    rows = list(dict.fromkeys(row for panel in shown.panels.values() for row in panel.curves))
    down = -(-len(shown.panels) // max(int(width / PANEL), 1))
    across = -(-len(shown.panels) // down)
    with drawn(path, width, 0.5 + (1.8 if across > 1 else 0.5 * width) * down) as figure:
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
        for axes, (column, panel) in zip(grid, shown.panels.items(), strict=False):
            for phase in panel.phases:
                shade_phase(axes, *phase)
            for row, curve in panel.curves.items():
                number = rows.index(row)
                colour, style = PALETTE[number % len(PALETTE)], STYLES[number % len(STYLES)]
                axes.plot(curve.rounds, curve.mean, color=colour, linestyle=style, label=row)
                axes.fill_between(curve.rounds, curve.least, curve.most, color=colour, alpha=0.15, linewidth=0)
            finish_axes(axes, title_of(column, (width - 0.5) / across))
        labelled = entries_of(figure)
        for number, axes in enumerate(grid):
            axes.set_visible(number < len(shown.panels))
            lowest = number + across >= len(shown.panels)
            axes.tick_params(labelbottom=lowest)
            counted = title_of(shown.counted, (width - 0.5) / across)
            axes.set(xlabel=counted if lowest else "", ylabel="" if number % across else "test accuracy (%)")
        names = [*rows, *(label for label in labelled if label not in rows)]
        legend_below(figure, {name: labelled[name] for name in names}, shown.axis)
        figure.suptitle(shown.over)


def heat_figure(path: Path, matrix: Matrix, width: float = PAGE) -> None:
    """A matrix as a heat map, the mean over seeds in each square: the longer of rows and columns goes down."""
    means, title = matrix.means()
    columns, names = list(means.columns), [wrapped(row, 0.4 * width / LETTER, 2) for row in means.index]
    side, high = (max(len(line) for name in names for line in name.splitlines()), max(1 + name.count("\n") for name in names))
    square = (width - 0.4 - LETTER * side) / len(columns)
    heads = [wrapped(column, square / LETTER) for column in columns]
    upright = max(len(line) for head in heads for line in head.splitlines()) * LETTER > square
    heads = [wrapped(column, 30, 2) for column in columns] if upright else heads
    below = LETTER * max(map(len, columns)) if upright else 0.12 * max(1 + head.count("\n") for head in heads)
    with drawn(path, width, 0.65 + min(below, 1.8) + (0.08 + 0.12 * high) * len(names)) as figure:
        axes = figure.add_subplot()
        grid = means.to_numpy(dtype=float)
        axes.imshow(grid, vmin=0.0, vmax=100.0, aspect="auto")
        for y, line in enumerate(grid):
            for x, value in enumerate(line):
                text = "-" if np.isnan(value) else f"{value:.1f}" if square >= CELL else f"{value:.0f}"
                colour = "#FFFFFF" if value <= 55.0 else "#000000"
                axes.text(x, y, text, ha="center", va="center", fontsize=7 if square >= CELL else 6, color=colour)
        axes.set_xticks(range(len(columns)), heads, rotation=90 if upright else 0)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set(**{"ylabel" if means.index.name == "row" else "xlabel": matrix.axis})
        figure.suptitle(title_of(title, width))


def published_figure(path: Path, pairs: Sequence[Pair], title: str, width: float = PAGE) -> None:
    """A line for each setting: the published accuracy (hollow) and ours (filled: the mean over seeds, least to most)."""
    settings = [wrapped(pair.setting, 0.5 * width / LETTER, 2) for pair in pairs]
    with drawn(path, width, 1.0 + 0.06 * len(pairs) + 0.13 * sum(1 + text.count("\n") for text in settings)) as figure:
        axes = figure.add_subplot()
        for y, pair in enumerate(pairs):
            axes.plot([pair.published, pair.mean], [y, y], color="#999999", linewidth=1.0, zorder=1)
            axes.plot([min(pair.ours), max(pair.ours)], [y, y], color=PALETTE[0], linewidth=2.4, zorder=2)
        rows = range(len(pairs))
        theirs = [pair.published for pair in pairs]
        axes.scatter(theirs, rows, s=24, facecolor="#FFFFFF", edgecolor=PALETTE[2], linewidth=1.2, zorder=3, label="published")
        axes.scatter([pair.mean for pair in pairs], rows, s=20, color=PALETTE[0], zorder=4, label="ours")
        axes.set_yticks(rows, settings)
        axes.invert_yaxis()
        axes.set(xlabel="test accuracy (%)", xlim=(0, 102))
        figure.suptitle(title_of(title, width))
        legend_below(figure, entries_of(figure))


def _height(width: float) -> float:
    """Of a figure with one panel, without its legend."""
    return 0.35 + 0.5 * width
