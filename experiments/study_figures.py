"""Figures of a sweep that a paper shows: accuracy against the poison ratio, and the drop against what it cost in stealth. PNG and PDF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.cells import Cell
from experiments.figures import PALETTE
from experiments.search import STEALTH_LIMIT, left_after, stealth_cost

RATIOS = ("attack.poison-ratio", "attack.malicious-fraction")
MARKERS = "osD^vP*X"  # beside the colours, for print without them; one fewer, so that 72 curves differ

Measured = Sequence[tuple[Cell, Mapping[str, Any]]]  # cells with their summaries


def ratio_axis(cells: Sequence[Cell]) -> str | None:
    """The axis that is a poison ratio, if there is one of several values."""
    found = [axis for axis in RATIOS if len({cell.labels.get(axis) for cell in cells}) > 1]
    return found[0] if found else None


def ratio_curves(measured: Measured, axis: str) -> dict[str, dict[float, list[float]]]:
    """Accuracy (percent) after the trigger, or at the end of a run in which none fired: a value a seed, by the labels of the other axes and
    by ratio, ascending."""
    curves: dict[str, dict[float, list[float]]] = {}
    for cell, summary in sorted(measured, key=lambda pair: float(pair[0].flat[axis])):
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
    axes.set(xlabel=f"{share} (%)", ylabel="test accuracy after the trigger, or at the end (%)", ylim=(0, 102))
    seeds = max((len(found) for values in curves.values() for found in values.values()), default=0)
    axes.set_title("mean over seeds, least to most shaded" if seeds > 1 else "one seed", fontsize=9)
    _finish(figure, path, len(curves))


def stealth_points(measured: Measured) -> dict[str, list[tuple[float, float]]]:
    """(stealth gap, drop) in points of every run that has both, by the label of the first axis that is not the seed."""
    points: dict[str, list[tuple[float, float]]] = {}
    for cell, summary in measured:
        if summary["stealth_gap"] is not None and summary["drop"] is not None:
            label = next((label for axis, label in cell.labels.items() if axis != "seed"), "runs")
            points.setdefault(label, []).append((summary["stealth_gap"], summary["drop"]))
    return points


def stealth_figure(path: Path, points: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Each run a point: how far the accuracy fell at the trigger, against how far the phase before had betrayed the attack.
    Args: path, without suffix."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for number, (label, runs) in enumerate(points.items()):
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        axes.scatter(*zip(*runs, strict=True), s=26, color=colour, marker=marker, label=label, alpha=0.8, linewidth=0)
    axes.axvline(STEALTH_LIMIT, color="#000000", linestyle=":", linewidth=0.9)
    axes.annotate("stealth limit", (STEALTH_LIMIT, 0.98), xycoords=("data", "axes fraction"), fontsize=7, rotation=90, va="top", ha="right")
    axes.set(xlabel="stealth gap: clean twin over attacked run, worst round of the phase (points)", ylabel="drop at the trigger (points)")
    _finish(figure, path, len(points))


def search_figure(path: Path, measured: Measured, limit: float) -> None:
    """Each setting of a search a point: the accuracy that it left, against the points that its phase cost; and in which order they came.
    Args: path, without suffix; limit, in points."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    lost = [stealth_cost(summary) for _, summary in measured]
    left = [left_after(summary) for _, summary in measured]
    points = axes.scatter(lost, left, c=range(1, len(measured) + 1), cmap="cividis", s=24, linewidth=0)
    axes.axvline(limit, color="#000000", linestyle=":", linewidth=0.9, label="stealth limit")
    axes.set(xlabel="cost of the accumulative phase (points)", ylabel="test accuracy after the trigger (%)", ylim=(0, 102))
    figure.colorbar(points, ax=axes, label="setting")
    _finish(figure, path, 1)


def _finish(figure: Figure, path: Path, labels: int) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(labels, 3), frameon=False, fontsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=160)
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})  # the same records give the same bytes
