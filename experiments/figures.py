"""Figures of runs, colour-blind safe (Okabe and Ito 2008), from what the tracks measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.track import Track

COLOURS = {"attacked": "#D55E00", "twin": "#0072B2", "control": "#009E73"}
LABELS = {"attacked": "attacked", "twin": "clean twin", "control": "control: same trigger, no accumulation"}
PHASES = {"accumulate": ("#F0E442", "accumulative phase"), "trigger": ("#D55E00", "trigger"), "recover": ("#56B4E9", "recovery")}


def accuracy_figure(path: Path, tracks: Sequence[Track | None], title: str) -> None:
    """Test accuracy over rounds of a run's tracks, with the attacked run's phases shaded."""
    present = [track for track in tracks if track is not None]
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for name, (colour, label) in PHASES.items():
        rounds = [round_ for round_, phase in present[0].phases.items() if phase == name]
        for start, end in _spans(rounds):
            axes.axvspan(start - 0.5, end + 0.5, color=colour, alpha=0.13, linewidth=0, label=label)
    for track in reversed(present):
        curve(axes, track.evaluated, track.name)
    finish_axes(axes, title)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(list(unique.values()), list(unique), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=160)


def curve(axes: Axes, evaluated: Mapping[int, float], name: str) -> None:
    """One accuracy curve (percent by round) in the colour of its track."""
    rounds = sorted(evaluated)
    axes.plot(rounds, [evaluated[round_] for round_ in rounds], color=COLOURS[name], label=LABELS[name], linewidth=1.6)


def finish_axes(axes: Axes, title: str) -> None:
    """Labels and limits that all accuracy axes share."""
    axes.set(title=title, xlabel="round", ylabel="test accuracy (%)", ylim=(0, 102))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _spans(rounds: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive rounds as (first, last)."""
    spans: list[tuple[int, int]] = []
    for round_ in rounds:
        if spans and round_ == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], round_)
        else:
            spans.append((round_, round_))
    return spans


def matrix_figure(path: Path, curves: Mapping[str, Mapping[str, Mapping[int, float]]], table: Mapping[str, Mapping[str, Any]]) -> None:
    """Accuracy over rounds, a panel a strategy and a curve an attack; `table[strategy][attack]` is the accuracy after the trigger."""
    attacks = list(dict.fromkeys(attack for panel in curves.values() for attack in panel))
    palette = ["#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#000000"]
    figure = Figure(figsize=(3.0 * len(curves), 3.4), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (strategy, panel) in zip(panels, curves.items(), strict=True):
        for attack in attacks:
            evaluated = panel.get(attack, {})
            after = table[strategy].get(attack)
            label = attack if axes is panels[0] else None
            axes.plot(list(evaluated), list(evaluated.values()), color=palette[attacks.index(attack) % 6], label=label, linewidth=1.5)
            if after is not None:
                axes.annotate(
                    f"{after:.1f}",
                    (0.97, 0.04 + 0.08 * attacks.index(attack)),
                    xycoords="axes fraction",
                    ha="right",
                    color=palette[attacks.index(attack) % 6],
                    fontsize=9,
                )
        finish_axes(axes, strategy)
        axes.set_ylabel("test accuracy (%)" if axes is panels[0] else "")
    figure.legend(loc="outside lower center", ncols=len(attacks), frameon=False)
    figure.suptitle("numbers: accuracy after the trigger (%)", fontsize=9)
    figure.savefig(path, dpi=160)
