"""Figures of one run, from its records alone. Of each: path, without suffix; width, in inches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from experiments.records.reading import DamagedError, read_cleaning, read_config, read_rounds
from experiments.report.figures.cleaning_figures import cleaning_figure, images_figure
from experiments.report.figures.curves import (
    COLOURS,
    LABELS,
    PHASES,
    Lines,
    curve,
    few_ticks,
    finish_axes,
    log_axis,
    mark_triggers,
    plot,
    shade_phase,
    spans,
    values_of,
)
from experiments.report.figures.style import PAGE, PALETTE, STYLES, drawn, entries_of, legend_above, legend_below, title_of, wrapped
from experiments.run.history import TrackHistory
from fl_sim.config.keys import Config
from fl_sim.config.resolve import config_of
from fl_sim.data.sampling import malicious_clients

CANDIDATES: Any = {  # of DGC, by track
    "twin": {"s": 9, "color": COLOURS["twin"], "linewidth": 0},
    "attacked": {"s": 11, "edgecolor": COLOURS["attacked"], "facecolor": "none", "marker": "^", "linewidth": 0.8},
}
COLOURED = 5  # classes that have a colour in `classes.png`
GREY: Any = {"color": "#BBBBBB", "linewidth": 0.7}  # the other classes
TICKED = 20  # classes up to which a confusion matrix has a tick for each

SCORES = {
    "history": "discrepancy, lagged model",
    "fixed": "discrepancy, burnt-in model",
    "rise": "rise of the probe loss",
    "fragility": "rise of loss by a rehearsed trigger",
}


def draw_figures(folder: Path, width: float = PAGE) -> list[Path]:
    """Draw a run's figures into its folder, each as PNG and PDF: `accuracy`; `classes` and `confusion` where the lines have figures by
    class; `success` where they have attack success rates; `attack` where there was a coalition; `cleaning` and `cleaned_images` where
    clients cleaned their images; `guard` where the strategy scored candidate models against thresholds. Returns the paths of the PNGs.
    Raises DamagedError."""
    config, tracks, cleaning = config_of(read_config(folder)), read_rounds(folder), read_cleaning(folder)
    try:
        figures = _figures(config, tracks, cleaning, width)
        for name, draw in figures.items():
            draw(folder / name)
    except (TypeError, ValueError, LookupError, AttributeError) as error:  # what a line holds is not what a round has
        raise DamagedError(f"{folder / 'rounds.jsonl'} is damaged, or of another version ({type(error).__name__}: {error})") from error
    return [folder / f"{name}.png" for name in figures]


def _figures(config: Config, tracks: Mapping[str, Lines], cleaning: Mapping[str, Any], width: float) -> dict[str, Callable[[Path], None]]:
    """What draws each of a run's figures, given its path without suffix."""
    title = f"{config.name}: {config.attack.name} against {config.strategy.name}"
    figures: dict[str, Callable[[Path], None]] = {"accuracy": lambda path: accuracy_figure(path, tracks, title, width)}
    if tracks["attacked"][0].get("start", {}).get("by_class"):
        figures["classes"] = lambda path: classes_figure(path, tracks["attacked"], title, width)
        figures["confusion"] = lambda path: confusion_figure(path, tracks["attacked"], title, width)
    if "attack_success_rate" in tracks["attacked"][0].get("start", {}):
        figures["success"] = lambda path: success_figure(path, tracks, title, width)
    if malicious_clients(config):
        figures["attack"] = lambda path: attack_figure(path, tracks, title, config.attack.stealth_gamma, width)
    if cleaning and "cleaning" in tracks["attacked"][0]:
        figures["cleaning"] = lambda path: cleaning_figure(path, tracks, title, cleaning.get("edges", []), width)
        figures["cleaned_images"] = lambda path: images_figure(path, cleaning, config.cleaning.name, width)
    if scores := guard_scores(tracks):
        figures["guard"] = lambda path: guard_figure(path, tracks, title, scores, width)
    return figures


def guard_scores(tracks: Mapping[str, Lines]) -> list[str]:
    """The scores of `SCORES` that the attacked run's lines have, with thresholds."""
    lines = tracks["attacked"]
    return [name for name in SCORES if values_of(lines, "strategy", name) and values_of(lines, "strategy", f"{name}_threshold")]


def accuracy_figure(path: Path, tracks: Mapping[str, Lines], title: str, width: float = PAGE) -> None:
    """Test accuracy over rounds of a run's tracks, with the attacked run's phases shaded."""
    with drawn(path, width, 0.3 + 0.45 * width) as figure:
        axes = figure.add_subplot()
        for name in tracks:  # the attacked track is below, whole; the dashes of the others let it through
            curve(axes, tracks[name], name)
        for name in PHASES:
            rounds = [line["round"] for line in tracks["attacked"] if line["phase"] == name]
            for start, end in spans(rounds):
                shade_phase(axes, name, start, end)
        finish_axes(axes, title_of(title, width - 0.6))
        legend_below(figure, entries_of(figure))


def classes_figure(path: Path, lines: Lines, title: str, width: float = PAGE) -> None:
    """Test accuracy of each class over the rounds of the attacked track, from the burnt-in model on. The classes that lost most by the end
    have a colour, the others are grey.

    Args: lines, the first of which has `start.by_class`.
    """
    rounds, rows = [0], [lines[0]["start"]["by_class"]]
    for line in lines:
        if "by_class" in line:
            rounds.append(line["round"])
            rows.append(line["by_class"])
    values = np.array(rows, dtype=float)  # (evaluations, c), NaN for a class without an example
    order = np.argsort(np.nan_to_num(values[-1] - values[0], nan=np.inf), kind="stable")
    with drawn(path, width, 0.3 + 0.45 * width) as figure:
        axes = figure.add_subplot()
        for place, number in sorted(enumerate(order), key=lambda entry: entry[0] < COLOURED):  # the grey ones below
            shown = place < COLOURED
            label = f"class {number}" if shown else None
            axes.plot(rounds, values[:, number], label=label, **(_look(place) if shown else GREY))
        mark_triggers(axes, lines)
        finish_axes(axes, title_of(title, width - 0.6))
        axes.set(xlabel="round (dotted: trigger)", ylabel="accuracy of a class (%)")
        legend_below(figure, entries_of(figure), "lost most")


def _look(place: int) -> dict[str, Any]:
    return {"color": PALETTE[place], "linestyle": STYLES[place % len(STYLES)]}


def confusion_figure(path: Path, lines: Lines, title: str, width: float = PAGE) -> None:
    """Confusion matrices of the attacked track on the whole test set, each row in percent of its class: before and after the first trigger
    where one fired, else before round 1; and at the end."""
    history = TrackHistory(tuple(lines))
    places = ("before_trigger", "after_trigger", "final") if history.confusion("after_trigger") else ("start", "final")
    with drawn(path, width, 0.75 + 0.85 * width / len(places)) as figure:
        axes_row = figure.subplots(1, len(places), squeeze=False, sharey=True)[0]
        for axes, place in zip(axes_row, places, strict=True):
            counts = np.array(history.confusion(place), dtype=float)
            shares = 100.0 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
            image = axes.imshow(shares, vmin=0, vmax=100)
            axes.set_title(wrapped(place.replace("_", " the ").replace("start", "before round 1"), 12))
            axes.grid(visible=False)
            if len(counts) <= TICKED:
                step = int(np.ceil(0.14 * len(counts) * len(places) / (0.8 * width)))  # labels that do not touch
                axes.set_xticks(range(0, len(counts), step))
                axes.set_yticks(range(0, len(counts), step))
        axes_row[0].set_ylabel("class")
        axes_row[len(places) // 2].set_xlabel("predicted class")
        bar: dict[str, Any] = {"label": "% of the class", "fraction": 0.04, "pad": 0.02}
        figure.colorbar(image, ax=list(axes_row), **bar)  # pyright: ignore[reportPossiblyUnboundVariable]
        figure.suptitle(title_of(title, width))


def success_figure(path: Path, tracks: Mapping[str, Lines], title: str, width: float = PAGE) -> None:
    """Test accuracy and attack success rate over the rounds in one panel, with and without the attack, from the burnt-in model on; the
    rounds in which the coalition acted are shaded."""
    with drawn(path, width, 0.3 + 0.45 * width) as figure:
        axes = figure.add_subplot()
        for start, end in spans([line["round"] for line in tracks["attacked"] if "attack" in line]):
            axes.axvspan(start - 0.5, end + 0.5, color=PHASES["accumulate"][0], alpha=0.2, linewidth=0, label="attack")
        for name in [name for name in ("twin", "attacked") if name in tracks]:
            first = tracks[name][0]["start"]
            for key, style, label in (("accuracy", "-", "accuracy"), ("attack_success_rate", "--", "attack success")):
                series = [(0, first[key]), *values_of(tracks[name], key)]
                axes.plot(*zip(*series, strict=True), color=COLOURS[name], linestyle=style, label=f"{LABELS[name]}: {label}")
        finish_axes(axes, title_of(title, width - 0.6))
        axes.set_ylabel("test images (%)")
        legend_below(figure, entries_of(figure))


def patterns_figure(path: Path, images: Mapping[str, Tensor]) -> None:
    """Images as they are and with triggers: one row per entry, from a label to images (k, C, H, W), k the same for all."""
    count = len(next(iter(images.values())))
    with drawn(path, 0.8 * count + 1.3, 0.8 * len(images) + 0.1) as figure:
        for axes_row, (label, row) in zip(figure.subplots(len(images), count, squeeze=False), images.items(), strict=True):
            for axes, image in zip(axes_row, row, strict=True):
                lowest, highest = float(row.min()), float(row.max())
                pixels = (image.permute(1, 2, 0) - lowest) / max(highest - lowest, 1e-9)
                axes.imshow(pixels.squeeze(-1).numpy(force=True), cmap="gray", vmin=0.0, vmax=1.0)
                axes.set_xticks([])
                axes.set_yticks([])
            axes_row[0].set_ylabel(label, rotation=0, ha="right", va="center")


def attack_figure(path: Path, tracks: Mapping[str, Lines], title: str, gamma: float, width: float = PAGE) -> None:
    """What the attack did over the rounds: its scale, the norms of honest, malicious and combined updates, the coalition's own
    validation loss, and the accuracy with and without it. A panel that an attack has no figures for is left out.

    Args: gamma, `attack.stealth-gamma`, drawn above the loss at the start where it is finite.
    """
    lines = tracks["attacked"]
    panels: list[tuple[str, Callable[[Axes], None]]] = [
        ("norm\n(gradient units)", lambda axes: _norms(axes, lines)),
        ("accuracy (%)", lambda axes: _with_and_without(axes, tracks)),
    ]
    if values_of(lines, "attack", "own_loss"):
        panels.insert(1, ("coalition's\nvalidation loss", lambda axes: _own_loss(axes, lines, gamma)))
    if any(value > 0.0 for _, value in values_of(lines, "attack", "scale")):
        panels.insert(0, ("scale\nof the push", lambda axes: plot(axes, values_of(lines, "attack", "scale"), "#000000", "scale")))
    with drawn(path, width, 0.6 + (0.8 + 0.12 * width) * len(panels)) as figure:
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (label, draw) in zip(rows, panels, strict=True):
            draw(axes)
            mark_triggers(axes, lines)
            axes.set_ylabel(label)
            legend_above(axes)
        rows[-1].set_xlabel("round (dotted: trigger)")
        few_ticks(rows[-1], whole=True)
        figure.align_ylabels(rows)
        figure.suptitle(title_of(title, width))


def guard_figure(path: Path, tracks: Mapping[str, Lines], title: str, scores: Sequence[str], width: float = PAGE) -> None:
    """What DGC measured: each score of the attacked run's and of the clean twin's candidate models over the rounds, with the threshold,
    and the attacked run's running means with theirs.

    After Zhu et al. 2023, Figs. 2 and 4: theirs are clean and poisoned samples, ours clean and poisoned candidate models.

    Args: scores, of `guard_scores`, at least one.
    """
    with drawn(path, width, 0.5 + (0.5 + 0.2 * width) * len(scores)) as figure:
        rows = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(rows, scores, strict=True):
            _guard_panel(axes, tracks, name)
            axes.set_ylabel(wrapped(SCORES[name], 20))
        rows[-1].set_xlabel("round")
        few_ticks(rows[-1], whole=True)
        figure.align_ylabels(rows)
        legend_below(figure, entries_of(figure))
        figure.suptitle(title_of(title, width))


def _guard_panel(axes: Axes, tracks: Mapping[str, Lines], name: str) -> None:
    threshold = values_of(tracks["attacked"], "strategy", f"{name}_threshold")
    floor = max(1e-9, 1e-3 * min(value for _, value in threshold))  # 0 has no place on a logarithmic axis
    plot(axes, threshold, "#000000", "threshold")
    for track in ("twin", "attacked"):
        series = [(round_, max(value, floor)) for round_, value in values_of(tracks.get(track, []), "strategy", name)]
        axes.scatter(*zip(*series, strict=True), label=f"{LABELS[track]} candidate", **CANDIDATES[track]) if series else None
    for what, colour, dashes in (("refused", "#D55E00", ":"), ("drifted", "#CC79A7", "-.")):
        alarmed = [round_ for round_, value in values_of(tracks["attacked"], "strategy", what) if value]
        for round_ in alarmed:
            axes.axvline(round_, color=colour, linewidth=0.8, linestyle=dashes, label=what if round_ == alarmed[0] else None)
    if levels := values_of(tracks["attacked"], "strategy", f"{name}_level"):
        plot(axes, levels, "#E69F00", "attacked, running mean", "-.")
        plot(axes, values_of(tracks["attacked"], "strategy", f"{name}_level_threshold"), "#999999", "threshold of the mean", "--")
    log_axis(axes)


def _norms(axes: Axes, lines: Lines) -> None:
    plot(axes, values_of(lines, "honest_norm"), "#0072B2", "honest mean", "--")
    plot(axes, values_of(lines, "attack", "malicious_norm"), "#D55E00", "malicious update")
    plot(axes, values_of(lines, "strategy", "combined_norm"), "#000000", "combined", ":")
    log_axis(axes)


def _own_loss(axes: Axes, lines: Lines, gamma: float) -> None:
    losses = values_of(lines, "attack", "own_loss")
    plot(axes, losses, "#CC79A7", "own loss")
    if gamma < float("inf"):
        axes.axhline(losses[0][1] + gamma, color="#000000", linewidth=0.8, linestyle="--", label="start + gamma")


def _with_and_without(axes: Axes, tracks: Mapping[str, Lines]) -> None:
    for name in tracks:
        if name not in ("control", "honest-trigger"):
            curve(axes, tracks[name], name)
    axes.set_ylim(top=min(axes.get_ylim()[1], 101.0))
