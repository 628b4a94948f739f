"""Figures of what clients did to their images before they trained. Of each: path, without suffix; width, in inches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.records.cleaning import auroc, binned, clean_lines, flagged
from experiments.report.figures.curves import Lines, plot, values_of
from experiments.report.figures.style import PAGE, drawn, legend_above, title_of, wrapped

GROUPS = {  # of images: their name in a line, their phase, their colour
    "clean": ("", None, "#0072B2"),
    "accumulative": ("poisoned_", "accumulate", "#E69F00"),
    "trigger": ("poisoned_", "trigger", "#D55E00"),
}


def cleaning_figure(path: Path, tracks: Mapping[str, Lines], title: str, edges: Sequence[float], width: float = PAGE) -> None:
    """What the cleaning saw and did: the median score of clean images and of the attacker's over the rounds with the threshold (after Zhu
    et al. 2023, Figs. 2 and 4); histograms of the scores with the AUROC (after Pang et al. 2021, Fig. 2); and the shares of images that
    were changed or dropped. Clean images are the twin's, without a twin the attacked track's own (`clean_lines`).

    Args: edges, ascending, of the bins of scores; empty if the cleaning has no scores.
    """
    attacked, clean = tracks["attacked"], clean_lines(tracks["attacked"], tracks.get("twin", ()))
    panels = 3 if edges else 1
    with drawn(path, width, 0.6 + (0.9 + 0.12 * width) * panels) as figure:
        rows = figure.subplots(panels, 1, squeeze=False)[:, 0]
        for label, (name, phase, colour) in GROUPS.items():
            lines = [line for line in attacked if line["phase"] == phase] if phase else clean
            shown = [line for line in lines if line["cleaning"].get(f"{name}images")]
            if not shown:
                continue
            plot(rows[-1], [(line["round"], flagged([line], name) or 0.0) for line in shown], colour, label)
            if edges:
                plot(rows[0], [(line["round"], _median(line["cleaning"][f"{name}scores"], edges)) for line in shown], colour, label)
                _histogram(rows[1], binned(shown, f"{name}scores"), binned(clean, "scores") if name else [], colour, label)
        if edges:
            threshold = values_of(attacked, "cleaning", "threshold")
            plot(rows[0], threshold, "#000000", "threshold")
            rows[0].set(xlabel="round", ylabel="median score", yscale="log" if threshold[0][1] > 0.0 else "linear")
            rows[0].minorticks_off()
            bins = title_of("bin of the score: quantiles of clean images, and beyond", width - 0.6)
            rows[1].set(xlabel=bins, ylabel="share of images")
        rows[-1].set(xlabel="round", ylabel="changed or dropped", ylim=(-0.02, 1.02))
        for axes in rows:
            legend_above(axes)
        figure.suptitle(title_of(title, width))


def images_figure(path: Path, record: Mapping[str, Any], name: str, width: float = PAGE) -> None:
    """Test images before and after the cleaning `name`, of `cleaning.json`."""
    before, after = (np.array(record[part], np.uint8).transpose(0, 2, 3, 1) for part in ("before", "after"))
    with drawn(path, width, 0.2 + 2.0 * (width - 0.7) / len(before)) as figure:
        rows = figure.subplots(2, len(before), squeeze=False)
        for panels, images, label in zip(rows, (before, after), ("before", name), strict=True):
            for axes, image in zip(panels, images, strict=True):
                axes.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
                axes.set(xticks=[], yticks=[])
            panels[0].set_ylabel(wrapped(label, 10), rotation=0, ha="right", va="center")


def _median(counts: Sequence[int], edges: Sequence[float]) -> float:
    """The upper edge of the bin with the median, the last edge if there is none above."""
    place = int(np.searchsorted(np.cumsum(counts), sum(counts) / 2))
    return edges[min(place, len(edges) - 1)]


def _histogram(axes: Axes, counts: Sequence[int], clean: Sequence[int], colour: str, label: str) -> None:
    """Shares of images by bin; with the clean ones' counts also the AUROC against them."""
    value = auroc(clean, counts) if clean else None
    name = label if value is None else f"{label}, AUROC {value:.3f}"
    axes.stairs(np.array(counts) / max(sum(counts), 1), color=colour, label=name)
