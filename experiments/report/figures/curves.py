"""Curves, phases and axes that several figures draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

Lines = Sequence[Mapping[str, Any]]  # the rounds of one track, as in rounds.jsonl

COLOURS = {"attacked": "#D55E00", "twin": "#0072B2", "control": "#009E73", "honest-trigger": "#CC79A7"}
DASHES = {"attacked": "-", "twin": "--", "control": "-.", "honest-trigger": ":"}  # for print without colours, and where curves coincide
LABELS = {
    "attacked": "attacked",
    "twin": "clean twin",
    "control": "control: same trigger, no accumulation",
    "honest-trigger": "same accumulation, no trigger",
}
PHASES = {
    "accumulate": ("#F0E442", "accumulative phase"),
    "trigger": ("#D55E00", "trigger"),
    "between": ("#F0E442", "between triggers"),
    "pause": ("#999999", "attack paused"),
    "recover": ("#56B4E9", "recovery"),
}
SHADES = {"accumulate": 0.25, "trigger": 0.6}  # opacity; a trigger is one round wide
SHADE = 0.2


def mark_triggers(axes: Axes, lines: Lines) -> None:
    """A dotted line at each round in which a trigger fired."""
    for line in lines:
        if line.get("attack", {}).get("fired"):
            axes.axvline(line["round"], color="#D55E00", linewidth=0.8, linestyle=":")


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis with ticks at powers of ten only: drawing minor ticks would take most of a figure's time. The axis stays as it
    is if nothing that was drawn is above 0."""
    if not any(value > 0 for line in axes.get_lines() for value in np.asarray(line.get_ydata(), float).tolist()):
        return
    axes.set_yscale("log")
    axes.minorticks_off()


def values_of(lines: Lines, *keys: str) -> list[tuple[int, float]]:
    """(round, value) of the rounds that have a value."""
    series: list[tuple[int, float]] = []
    for line in lines:
        value: Any = line
        for key in keys:
            value = value.get(key) if value is not None else None
        if value is not None:
            series.append((line["round"], value))
    return series


def plot(axes: Axes, series: Sequence[tuple[int, float]], colour: str, label: str, style: str = "-") -> None:
    """A line of the (round, value) of a series."""
    marker = "." if len(series) == 1 else None  # a line of one point draws nothing
    axes.plot([round_ for round_, _ in series], [value for _, value in series], color=colour, label=label, marker=marker, linestyle=style)


def curve(axes: Axes, lines: Lines, name: str) -> None:
    """The accuracy curve (percent by round) of a track in its colour."""
    plot(axes, values_of(lines, "accuracy"), COLOURS[name], LABELS[name], DASHES[name])


def shade_phase(axes: Axes, name: str, start: int, end: int) -> None:
    """Shade the rounds from start to end in the colour of their phase."""
    colour, label = PHASES[name]
    axes.axvspan(start - 0.5, end + 0.5, color=colour, alpha=SHADES.get(name, SHADE), linewidth=0, label=label)


def finish_axes(axes: Axes, title: str) -> None:
    """Labels and limits that all accuracy axes share."""
    axes.set(xlabel="round", ylabel="test accuracy (%)", ylim=(0, 102))
    axes.set_title(title)
    few_ticks(axes, whole=True)


def few_ticks(axes: Axes, *, whole: bool = False) -> None:
    """Ticks at multiples of 1, 2 or 5 (times a power of ten), with room between their labels in a narrow column."""
    axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10], integer=whole)


def spans(rounds: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive rounds as (first, last)."""
    spans: list[tuple[int, int]] = []
    for round_ in rounds:
        if spans and round_ == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], round_)
        else:
            spans.append((round_, round_))
    return spans
