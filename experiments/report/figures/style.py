"""The one style of all figures: sizes for a two-column page, colours for colour-blind readers, and how a figure is written."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from fl_sim.atomic_files import writing
from fl_sim.config.resolve import ConfigError

WIDTHS: Mapping[str, float] = {"column": 3.5, "page": 7.16}  # inches: one column, and both, of an A4 or letter page
PAGE = WIDTHS["page"]
NARROWEST, WIDEST = 2.0, 20.0
LETTER = 0.056  # inches: a letter in 7 points, a little more than the mean
LEGEND_LINE = 0.15  # inches
CELL = 0.34  # inches: the narrowest square of a matrix that holds a number with a decimal

# Okabe and Ito 2008. Yellow is last, because a line of it can hardly be seen on white
PALETTE = ["#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#999999", "#F0E442"]
STYLES = ["-", "--", ":", "-."]
MARKERS = "osD^vP*X"  # for print without colours; one fewer than colours, so that 72 curves differ

SETTINGS: Any = {  # of matplotlib
    "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "figure.titlesize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.title_fontsize": 7, "legend.frameon": False, "legend.handlelength": 1.6, "legend.columnspacing": 1.2,
    "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "grid.linewidth": 0.6, "lines.linewidth": 1.3, "lines.markersize": 4, "image.cmap": "cividis",
    "figure.constrained_layout.w_pad": 0.07,  # inches: tick labels may grow after the layout
    "pdf.fonttype": 42,  # TrueType: publishers refuse type 3
    "savefig.dpi": 160,
}  # fmt: skip


@contextmanager
def drawn(path: Path, width: float, height: float) -> Generator[Figure]:
    """A new figure in the style of all, `width` by `height` inches; written as PNG and PDF at the end.

    Args: path, without suffix. Raises CannotWriteError."""
    with rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        write(figure, path)


def write(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and PDF. A dollar in a label is a dollar, not the begin of mathematics (as in the labels of a logarithmic
    axis)."""
    for text in figure.findobj(Text):
        if "$" in text.get_text() and "mathdefault" not in text.get_text():
            text.set_parse_math(False)
    with writing(path.with_suffix(".png")):
        figure.savefig(path.with_suffix(".png"))
        figure.set_layout_engine("none")  # it is laid out now
        figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})  # the same records give the same bytes


def legend_below(figure: Figure, entries: Mapping[str, Any], title: str = "") -> None:
    """A legend below all panels, in as many columns as fit and with long labels in several lines; the figure becomes higher by it."""
    width = figure.get_figwidth()
    names = [wrapped(label, (width - 0.6) / LETTER) for label in entries]
    columns = legend_columns(names, width)
    figure.legend(list(entries.values()), names, loc="outside lower center", ncols=columns, title=title or None)
    lines = -(-sum(1 + name.count("\n") for name in names) // columns) + bool(title)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * lines)


def legend_above(axes: Axes) -> None:
    """A legend between a panel and what is above it, if the panel has several lines."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = legend_columns(labels, axes.figure.get_figwidth() - 0.5)  # pyright: ignore[reportAttributeAccessIssue] - no subfigures
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.1, ncols=columns)


def legend_columns(names: Sequence[str], inches: float) -> int:
    """How many columns of a legend fit into a width, at most five; matplotlib cuts off what does not fit."""
    longest = max(len(line) for name in names for line in name.splitlines())
    return max(1, min(len(names), 5, int(inches / (0.42 + LETTER * longest))))


def entries_of(figure: Figure) -> dict[str, Any]:
    """What legends of a figure's panels would show, each label once."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for entry, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, entry)
    return entries


def wrapped(text: str, letters: float, lines: int | None = None) -> str:
    """A text in lines of at most so many letters; what is beyond `lines` lines is cut off."""
    return textwrap.fill(text, max(int(letters), 8), break_on_hyphens=False, max_lines=lines, placeholder=" …")


def title_of(text: str, inches: float) -> str:
    """A title in lines that fit into a width."""
    return wrapped(text, inches / 0.066)


def inches_of(width: str | float) -> float:
    """The inches of a width: of `column` (3.5), `page` (7.16) or a number. Raises ConfigError."""
    if isinstance(width, str) and width in WIDTHS:
        return WIDTHS[width]
    is_number = not isinstance(width, str) or re.fullmatch(r"\d+(\.\d+)?", width)
    if is_number and NARROWEST <= float(width) <= WIDEST:
        return float(width)
    raise ConfigError([f"expected a width of {', '.join(WIDTHS)} or {NARROWEST:g} to {WIDEST:g} inches, got {width!r}"])
