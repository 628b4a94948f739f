"""Figures of what clients did to their images before they trained. Of each: path, without suffix; width, in inches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.records.cleaning import auroc, binned, clean_lines, flagged
from experiments.report.figures.curves import Lines, few_ticks, log_axis, plot, values_of
from experiments.report.figures.style import PAGE, drawn, entries_of, legend_below, title_of, wrapped

TWO_DECADES = 100.0  # from here on a logarithmic axis has two ticks or more
GROUPS = {  # of images: their name in a line, their phase, their colour and dashes
    "clean": ("", None, "#0072B2", "-"),
    "accumulative": ("poisoned_", "accumulate", "#E69F00", "--"),
    "trigger": ("poisoned_", "trigger", "#D55E00", ":"),
}


def cleaning_figure(path: Path, tracks: Mapping[str, Lines], title: str, edges: Sequence[float], width: float = PAGE) -> None:
    """What the cleaning saw and did: the shares of images that were changed or dropped; the median score of clean images and of the
    attacker's over the rounds with the threshold (after Zhu et al. 2023, Figs. 2 and 4); and histograms of the scores with the AUROC
    (after Pang et al. 2021, Fig. 2). Clean images are the twin's, without a twin the attacked track's own (`clean_lines`).

    Args: edges, ascending, of the bins of scores; empty if the cleaning has no scores.
    """
    attacked, clean = tracks["attacked"], clean_lines(tracks["attacked"], tracks.get("twin", ()))
    groups = {label: _lines_of(label, attacked, clean) for label in GROUPS}
    panels = 3 if edges else 1
    with drawn(path, width, 0.4 + (0.7 + 0.14 * width) * panels) as figure:
        rows = figure.subplots(panels, 1, squeeze=False)[:, 0]
        for label, lines in groups.items():
            name, _, colour, style = GROUPS[label]
            plot(rows[0], [(line["round"], flagged([line], name) or 0.0) for line in lines], colour, label, style)
        rows[0].set(xlabel="round", ylabel="changed or\ndropped", ylim=(-0.02, 1.02))
        few_ticks(rows[0], whole=True)
        if edges:
            _scores(rows[1], groups, attacked, edges)
            rows[1].sharex(rows[0])
            _histograms(rows[2], groups, width)
        figure.align_ylabels(rows)
        legend_below(figure, entries_of(figure))
        figure.suptitle(title_of(title, width))


def images_figure(path: Path, record: Mapping[str, Any], name: str, width: float = PAGE) -> None:
    """Test images before and after the cleaning `name`, of `cleaning.json`."""
    before, after = (np.array(record[part], np.uint8).transpose(0, 2, 3, 1) for part in ("before", "after"))
    brightest = int(before.max()) or 255  # digits has pixels up to 16
    with drawn(path, width, 0.15 + 2.0 * (width - 0.75) / len(before)) as figure:
        figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
        rows = figure.subplots(2, len(before), squeeze=False)
        for panels, images, label in zip(rows, (before, after), ("before", name), strict=True):
            for axes, image in zip(panels, images, strict=True):
                axes.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=brightest)
                axes.set(xticks=[], yticks=[])
            panels[0].set_ylabel(wrapped(label, 10), rotation=0, ha="right", va="center")


def _lines_of(label: str, attacked: Lines, clean: Lines) -> Lines:
    """The lines with images of a group of `GROUPS`."""
    name, phase, _, _ = GROUPS[label]
    lines = [line for line in attacked if line["phase"] == phase] if phase else clean
    return [line for line in lines if line["cleaning"].get(f"{name}images")]


def _scores(axes: Axes, groups: Mapping[str, Lines], attacked: Lines, edges: Sequence[float]) -> None:
    """The median score of each group over the rounds, and the threshold."""
    for label, lines in groups.items():
        name, _, colour, style = GROUPS[label]
        plot(axes, [(line["round"], _median(line["cleaning"][f"{name}scores"], edges)) for line in lines], colour, label, style)
    plot(axes, values_of(attacked, "cleaning", "threshold"), "#000000", "threshold", "-.")
    axes.set(xlabel="round", ylabel="median score")
    least, most = axes.dataLim.intervaly
    if least > 0.0 and most > TWO_DECADES * least:
        log_axis(axes)


def _histograms(axes: Axes, groups: Mapping[str, Lines], width: float) -> None:
    """Shares of images by bin of the score, and the AUROC of the poisoned ones against the clean ones."""
    counts = {label: binned(lines, f"{GROUPS[label][0]}scores") for label, lines in groups.items() if lines}
    areas = []
    for label, ours in counts.items():
        _, _, colour, style = GROUPS[label]
        axes.stairs(np.array(ours) / max(sum(ours), 1), color=colour, linestyle=style, linewidth=1.2)
        if label != "clean" and (area := auroc(counts.get("clean", [0] * len(ours)), ours)) is not None:
            areas.append(f"{label} {area:.3f}")
    axes.set(xlabel=title_of("bin of the score: quantiles of clean images, and beyond", width - 0.6), ylabel="share of\nimages")
    axes.set_title(title_of(f"AUROC: {', '.join(areas)}" if areas else "", width - 0.6))


def _median(counts: Sequence[int], edges: Sequence[float]) -> float:
    """The upper edge of the bin with the median, the last edge if there is none above."""
    place = int(np.searchsorted(np.cumsum(counts), sum(counts) / 2))
    return edges[min(place, len(edges) - 1)]
