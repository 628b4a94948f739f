"""Figures of one run, safe for colour-blind readers (Okabe and Ito 2008), from its records alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from experiments.records.cleaning import auroc, binned, clean_lines, flagged
from experiments.records.reading import DamagedError, read_cleaning, read_config, read_rounds
from experiments.run.history import TrackHistory
from fl_sim.atomic_files import writing
from fl_sim.config.keys import Config
from fl_sim.config.resolve import config_of
from fl_sim.data.sampling import malicious_clients

COLOURED = 5  # classes that have a colour in `classes.png`
TICKED = 20  # classes up to which a confusion matrix has a tick for each

Lines = Sequence[Mapping[str, Any]]  # the rounds of one track, as in rounds.jsonl

COLOURS = {"attacked": "#D55E00", "twin": "#0072B2", "control": "#009E73", "honest-trigger": "#CC79A7"}
PALETTE = ["#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#F0E442", "#999999"]
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

SCORES = {
    "history": "discrepancy, lagged model",
    "fixed": "discrepancy, burnt-in model",
    "rise": "rise of the probe loss",
    "fragility": "rise of loss by a rehearsed trigger",
}


def draw_figures(folder: Path) -> list[Path]:
    """Draw a run's figures into its folder: `accuracy.png`; `classes.png` and `confusion.png` where the lines have figures by class;
    `success.png` where they have attack success rates; `attack.png` where there was a coalition; `cleaning.png` and `cleaned_images.png`
    where clients cleaned their images; `guard.png` where the strategy scored
    candidate models against thresholds. Returns their paths. Raises DamagedError."""
    config, tracks, cleaning = config_of(read_config(folder)), read_rounds(folder), read_cleaning(folder)
    try:
        figures = _figures(config, tracks, cleaning)
        for name, draw in figures.items():
            with writing(folder / name):
                draw(folder / name)
    except (TypeError, ValueError, LookupError, AttributeError) as error:  # what a line holds is not what a round has
        raise DamagedError(f"{folder / 'rounds.jsonl'} is damaged, or of another version ({type(error).__name__}: {error})") from error
    return [folder / name for name in figures]


def _figures(config: Config, tracks: Mapping[str, Lines], cleaning: Mapping[str, Any]) -> dict[str, Callable[[Path], None]]:
    """What draws each of a run's figures, given its path."""
    title = f"{config.name}: {config.attack.name} against {config.strategy.name}"
    figures: dict[str, Callable[[Path], None]] = {"accuracy.png": lambda path: accuracy_figure(path, tracks, title)}
    if tracks["attacked"][0].get("start", {}).get("by_class"):
        figures["classes.png"] = lambda path: classes_figure(path, tracks["attacked"], title)
        figures["confusion.png"] = lambda path: confusion_figure(path, tracks["attacked"], title)
    if "attack_success_rate" in tracks["attacked"][0].get("start", {}):
        figures["success.png"] = lambda path: success_figure(path, tracks, title)
    if malicious_clients(config):
        figures["attack.png"] = lambda path: attack_figure(path, tracks, title, config.attack.stealth_gamma)
    if cleaning and "cleaning" in tracks["attacked"][0]:
        figures["cleaning.png"] = lambda path: cleaning_figure(path, tracks, title, cleaning.get("edges", []))
        figures["cleaned_images.png"] = lambda path: images_figure(path, cleaning, config.cleaning.name)
    if scores := guard_scores(tracks):
        figures["guard.png"] = lambda path: guard_figure(path, tracks, title, scores)
    return figures


def save(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure. A dollar in a label is a dollar, not the begin of mathematics (as in the labels of a logarithmic axis)."""
    for text in figure.findobj(Text):
        if "$" in text.get_text() and "mathdefault" not in text.get_text():
            text.set_parse_math(False)
    figure.savefig(path, **options)


def guard_scores(tracks: Mapping[str, Lines]) -> list[str]:
    """The scores of `SCORES` that the attacked run's lines have, with thresholds."""
    lines = tracks["attacked"]
    return [name for name in SCORES if _series(lines, "strategy", name) and _series(lines, "strategy", f"{name}_threshold")]


def accuracy_figure(path: Path, tracks: Mapping[str, Lines], title: str) -> None:
    """Test accuracy over rounds of a run's tracks, with the attacked run's phases shaded."""
    figure, (axes,) = _panels(1, 4.0, right=0.2, bottom=1.1)
    for name in PHASES:
        rounds = [line["round"] for line in tracks["attacked"] if line["phase"] == name]
        for start, end in _spans(rounds):
            shade_phase(axes, name, start, end)
    for name in reversed(list(tracks)):
        curve(axes, tracks[name], name)
    finish_axes(axes, title)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(list(unique.values()), list(unique), loc="lower center", ncols=3, frameon=False, fontsize=8)
    save(figure, path, dpi=160)


def classes_figure(path: Path, lines: Lines, title: str) -> None:
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
    figure, (axes,) = _panels(1, 4.0)
    for place, number in reversed(list(enumerate(order))):
        shown = place < COLOURED
        label = f"class {number}" if shown else None
        axes.plot(rounds, values[:, number], color=PALETTE[place] if shown else "#BBBBBB", linewidth=1.4 if shown else 0.7, label=label)
    for line in lines:
        if line.get("attack", {}).get("fired"):
            axes.axvline(line["round"], color="#D55E00", linewidth=0.8, linestyle=":")
    finish_axes(axes, title)
    axes.set(xlabel="round (dotted: trigger)", ylabel="test accuracy of a class (%)")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), title="lost most")
    save(figure, path, dpi=160)


def confusion_figure(path: Path, lines: Lines, title: str) -> None:
    """Confusion matrices of the attacked track on the whole test set, each row in percent of its class: before and after the first trigger
    where one fired, else before round 1; and at the end."""
    history = TrackHistory(tuple(lines))
    places = ("before_trigger", "after_trigger", "final") if history.confusion("after_trigger") else ("start", "final")
    figure = Figure(figsize=(2.6 * len(places) + 0.9, 3.1))
    axes_row = figure.subplots(1, len(places), squeeze=False)[0]
    figure.subplots_adjust(left=0.5 / figure.get_figwidth(), right=1 - 0.9 / figure.get_figwidth(), top=0.8, bottom=0.14, wspace=0.12)
    for axes, place in zip(axes_row, places, strict=True):
        counts = np.array(history.confusion(place), dtype=float)
        shares = 100.0 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
        image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100)
        axes.set_title(place.replace("_", " the ").replace("start", "before round 1"), fontsize=8)
        axes.set_xlabel("predicted class", fontsize=8)
        if len(counts) <= TICKED:
            axes.set_xticks(range(len(counts)))
            axes.set_yticks(range(len(counts)))
        axes.tick_params(labelsize=6)
    axes_row[0].set_ylabel("class", fontsize=8)
    bar = figure.add_axes((1 - 0.75 / figure.get_figwidth(), 0.14, 0.12 / figure.get_figwidth(), 0.66))
    figure.colorbar(image, cax=bar).set_label("% of the class", fontsize=8)  # pyright: ignore[reportPossiblyUnboundVariable]
    bar.tick_params(labelsize=6)
    figure.suptitle(title, fontsize=10)
    save(figure, path, dpi=160)


def success_figure(path: Path, tracks: Mapping[str, Lines], title: str) -> None:
    """Test accuracy and attack success rate over the rounds in one panel, with and without the attack, from the burnt-in model on; the
    rounds in which the coalition acted are shaded."""
    figure, (axes,) = _panels(1, 4.0)
    for start, end in _spans([line["round"] for line in tracks["attacked"] if "attack" in line]):
        axes.axvspan(start - 0.5, end + 0.5, color=PHASES["accumulate"][0], alpha=0.2, linewidth=0, label="attack")
    for name in [name for name in ("twin", "attacked") if name in tracks]:
        first = tracks[name][0]["start"]
        for key, style, label in (("accuracy", "-", "accuracy"), ("attack_success_rate", "--", "attack success")):
            series = [(0, first[key]), *_series(tracks[name], key)]
            axes.plot(*zip(*series, strict=True), color=COLOURS[name], linestyle=style, linewidth=1.4, label=f"{LABELS[name]}: {label}")
    finish_axes(axes, title)
    axes.set_ylabel("test images (%)")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(list(unique.values()), list(unique), frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path, dpi=160)


def patterns_figure(path: Path, images: Mapping[str, Tensor]) -> None:
    """Images as they are and with triggers: one row per entry, from a label to images (k, C, H, W), k the same for all."""
    count = len(next(iter(images.values())))
    figure = Figure(figsize=(0.8 * count + 1.3, 0.8 * len(images) + 0.1))
    rows = figure.subplots(len(images), count, squeeze=False)
    figure.subplots_adjust(left=1.25 / figure.get_figwidth(), right=0.99, top=0.98, bottom=0.02, wspace=0.06, hspace=0.06)
    for axes_row, (label, row) in zip(rows, images.items(), strict=True):
        for axes, image in zip(axes_row, row, strict=True):
            lowest, highest = float(row.min()), float(row.max())
            pixels = (image.permute(1, 2, 0) - lowest) / max(highest - lowest, 1e-9)
            axes.imshow(pixels.squeeze(-1).numpy(force=True), cmap="gray", vmin=0.0, vmax=1.0)
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    save(figure, path, dpi=120)


def attack_figure(path: Path, tracks: Mapping[str, Lines], title: str, gamma: float) -> None:
    """What the attack did over the rounds: its scale, the norms of honest, malicious and combined updates, the coalition's own
    validation loss, and the accuracy with and without it. A panel that an attack has no figures for is left out.

    Args: gamma, `attack.stealth-gamma`, drawn above the loss at the start where it is finite.
    """
    lines = tracks["attacked"]
    panels: list[tuple[str, Callable[[Axes], None]]] = [
        ("norm (gradient units)", lambda axes: _norms(axes, lines)),
        ("test accuracy (%)", lambda axes: _with_and_without(axes, tracks)),
    ]
    if _series(lines, "attack", "own_loss"):
        panels.insert(1, ("coalition's validation loss", lambda axes: _own_loss(axes, lines, gamma)))
    if any(value > 0.0 for _, value in _series(lines, "attack", "scale")):
        panels.insert(0, ("scale of the push", lambda axes: _plot(axes, _series(lines, "attack", "scale"), "#000000", "scale")))
    figure, rows = _panels(len(panels), 1.0 + 1.7 * len(panels))
    for axes, (label, draw) in zip(rows, panels, strict=True):
        draw(axes)
        for line in lines:
            if line.get("attack", {}).get("fired"):
                axes.axvline(line["round"], color="#D55E00", linewidth=0.8, linestyle=":")
        axes.set_ylabel(label, fontsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(axes.get_lines()) > 1:
            axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    rows[-1].set_xlabel("round (dotted: trigger)")
    rows[0].set_title(title, fontsize=10)
    save(figure, path, dpi=160)


def guard_figure(path: Path, tracks: Mapping[str, Lines], title: str, scores: Sequence[str]) -> None:
    """What DGC measured: each score of the attacked run's and of the clean twin's candidate models over the rounds, with the threshold,
    and the attacked run's running means with theirs.

    After Zhu et al. 2023, Figs. 2 and 4: theirs are clean and poisoned samples, ours clean and poisoned candidate models.

    Args: scores, of `guard_scores`, at least one.
    """
    figure, rows = _panels(len(scores), 1.0 + 2.1 * len(scores))
    for axes, name in zip(rows, scores, strict=True):
        threshold = _series(tracks["attacked"], "strategy", f"{name}_threshold")
        floor = max(1e-9, 1e-3 * min(value for _, value in threshold))  # 0 has no place on a logarithmic axis
        _plot(axes, threshold, "#000000", "threshold")
        for track in ("twin", "attacked"):
            series = [(round_, max(value, floor)) for round_, value in _series(tracks.get(track, []), "strategy", name)]
            axes.scatter(*zip(*series, strict=True), s=7, color=COLOURS[track], label=f"{LABELS[track]} candidate") if series else None
        for what, colour in (("refused", "#D55E00"), ("drifted", "#CC79A7")):
            alarmed = [round_ for round_, value in _series(tracks["attacked"], "strategy", what) if value]
            for round_ in alarmed:
                axes.axvline(round_, color=colour, linewidth=0.6, alpha=0.5, label=what if round_ == alarmed[0] else None)
        if levels := _series(tracks["attacked"], "strategy", f"{name}_level"):
            _plot(axes, levels, "#E69F00", "attacked, running mean")
            _plot(axes, _series(tracks["attacked"], "strategy", f"{name}_level_threshold"), "#999999", "its threshold")
        log_axis(axes)
        axes.set_ylabel(SCORES[name], fontsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    rows[0].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    rows[-1].set_xlabel("round")
    rows[0].set_title(title, fontsize=10)
    save(figure, path, dpi=160)


def cleaning_figure(path: Path, tracks: Mapping[str, Lines], title: str, edges: Sequence[float]) -> None:
    """What the cleaning saw and did: the median score of clean images and of the attacker's over the rounds with the threshold (after Zhu
    et al. 2023, Figs. 2 and 4); histograms of the scores with the AUROC (after Pang et al. 2021, Fig. 2); and the shares of images that
    were changed or dropped. Clean images are the twin's, without a twin the attacked track's own (`clean_lines`).

    Args: edges, ascending, of the bins of scores; empty if the cleaning has no scores.
    """
    attacked, clean = tracks["attacked"], clean_lines(tracks["attacked"], tracks.get("twin", ()))
    groups = [("clean", "", "#0072B2", clean)]
    for phase, label, colour in (("accumulate", "accumulative", "#E69F00"), ("trigger", "trigger", "#D55E00")):
        groups.append((label, "poisoned_", colour, [line for line in attacked if line["phase"] == phase]))
    figure, rows = _panels(3 if edges else 1, 7.0 if edges else 2.6, sharex=False)
    for label, name, colour, lines in groups:
        shown = [line for line in lines if line["cleaning"].get(f"{name}images")]
        if not shown:
            continue
        _plot(rows[-1], [(line["round"], flagged([line], name) or 0.0) for line in shown], colour, label)
        if edges:
            _plot(rows[0], [(line["round"], _median(line["cleaning"][f"{name}scores"], edges)) for line in shown], colour, label)
            _histogram(rows[1], binned(shown, f"{name}scores"), binned(clean, "scores") if name else [], colour, label)
    if edges:
        _plot(rows[0], _series(attacked, "cleaning", "threshold"), "#000000", "threshold")
        rows[0].set_ylabel("median score", fontsize=8)
        rows[0].set_yscale("log" if _series(attacked, "cleaning", "threshold")[0][1] > 0.0 else "linear")
        rows[1].set_xlabel("bin of the score: quantiles of clean images, and beyond", fontsize=8)
        rows[1].set_ylabel("share of images", fontsize=8)
    rows[-1].set_xlabel("round", fontsize=8)
    rows[-1].set_ylabel("changed or dropped", fontsize=8)
    rows[-1].set_ylim(-0.02, 1.02)
    rows[0].set_title(title, fontsize=10)
    for axes in rows:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.subplots_adjust(hspace=0.4)
    save(figure, path, dpi=160)


def _median(counts: Sequence[int], edges: Sequence[float]) -> float:
    """The upper edge of the bin with the median, the last edge if there is none above."""
    place = int(np.searchsorted(np.cumsum(counts), sum(counts) / 2))
    return edges[min(place, len(edges) - 1)]


def _histogram(axes: Axes, counts: Sequence[int], clean: Sequence[int], colour: str, label: str) -> None:
    """Shares of images by bin; with the clean ones' counts also the AUROC against them."""
    value = auroc(clean, counts) if clean else None
    name = label if value is None else f"{label}\nAUROC {value:.3f}"
    axes.stairs(np.array(counts) / max(sum(counts), 1), color=colour, label=name)


def images_figure(path: Path, record: Mapping[str, Any], name: str) -> None:
    """Test images before and after the cleaning `name`, of `cleaning.json`."""
    before, after = (np.array(record[part], np.uint8).transpose(0, 2, 3, 1) for part in ("before", "after"))
    figure = Figure(figsize=(0.9 * len(before), 2.2))
    rows = figure.subplots(2, len(before), squeeze=False)
    for axes, images, label in zip(rows, (before, after), ("before", name), strict=True):
        for panel, image in zip(axes, images, strict=True):
            panel.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
            panel.set(xticks=[], yticks=[])
        axes[0].set_ylabel(label, fontsize=8)
    save(figure, path, dpi=160)


def _panels(count: int, height: float, *, right: float = 1.6, bottom: float = 0.5, sharex: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of panels below one another, 7.2 inches wide. Its margins (inches) are fixed: computing them takes matplotlib longer than
    drawing.
    """
    figure, width = Figure(figsize=(7.2, height)), 7.2
    rows = figure.subplots(count, 1, sharex=sharex, squeeze=False)[:, 0]
    figure.subplots_adjust(left=0.75 / width, right=1 - right / width, top=1 - 0.4 / height, bottom=bottom / height, hspace=0.12)
    return figure, list(rows)


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis with ticks at powers of ten only: drawing minor ticks would take most of a figure's time. The axis stays as it
    is if nothing that was drawn is above 0."""
    if not any(value > 0 for line in axes.get_lines() for value in np.asarray(line.get_ydata(), float).tolist()):
        return
    axes.set_yscale("log")
    axes.minorticks_off()


def _norms(axes: Axes, lines: Lines) -> None:
    _plot(axes, _series(lines, "honest_norm"), "#0072B2", "honest mean")
    _plot(axes, _series(lines, "attack", "malicious_norm"), "#D55E00", "malicious update")
    _plot(axes, _series(lines, "strategy", "combined_norm"), "#000000", "combined")
    log_axis(axes)


def _own_loss(axes: Axes, lines: Lines, gamma: float) -> None:
    losses = _series(lines, "attack", "own_loss")
    _plot(axes, losses, "#CC79A7", "own loss")
    if gamma < float("inf"):
        axes.axhline(losses[0][1] + gamma, color="#000000", linewidth=0.8, linestyle="--", label="start + gamma")


def _with_and_without(axes: Axes, tracks: Mapping[str, Lines]) -> None:
    for name in tracks:
        if name not in ("control", "honest-trigger"):
            curve(axes, tracks[name], name)


def _series(lines: Lines, *keys: str) -> list[tuple[int, float]]:
    """(round, value) of the rounds that have a value."""
    series: list[tuple[int, float]] = []
    for line in lines:
        value: Any = line
        for key in keys:
            value = value.get(key) if value is not None else None
        if value is not None:
            series.append((line["round"], value))
    return series


def _plot(axes: Axes, series: Sequence[tuple[int, float]], colour: str, label: str) -> None:
    marker = "." if len(series) == 1 else None  # a line of one point draws nothing
    axes.plot([round_ for round_, _ in series], [value for _, value in series], color=colour, label=label, linewidth=1.2, marker=marker)


def curve(axes: Axes, lines: Lines, name: str) -> None:
    """The accuracy curve (percent by round) of a track in its colour."""
    series = _series(lines, "accuracy")
    axes.plot([round_ for round_, _ in series], [value for _, value in series], color=COLOURS[name], label=LABELS[name], linewidth=1.6)


def shade_phase(axes: Axes, name: str, start: int, end: int) -> None:
    """Shade the rounds from start to end in the colour of their phase."""
    colour, label = PHASES[name]
    axes.axvspan(start - 0.5, end + 0.5, color=colour, alpha=0.13, linewidth=0, label=label)


def finish_axes(axes: Axes, title: str) -> None:
    """Labels and limits that all accuracy axes share."""
    axes.set(xlabel="round", ylabel="test accuracy (%)", ylim=(0, 102))
    axes.set_title(title)
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
