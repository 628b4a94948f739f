"""The figures of a study as interactive charts of the report: plotly's figures, without colours of a page that may be light or dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from experiments.report.figures.curves import PHASES
from experiments.report.views import RATIOS, Curve, Matrix, Panel, RoundPanels, ratio_axis, ratio_curves, stealth_points
from experiments.sweep.published import Pair
from experiments.sweep.search import left_after, stealth_cost
from experiments.sweep.study import Run

# Okabe and Ito's colours that can be seen on white and on black; the dashes tell apart what shares a colour
COLOURS = ["#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#999999"]
DASHES = ["solid", "dash", "dot", "dashdot", "longdash"]
SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x"]
POINTS = 160  # of a curve at most: a page must open at once
PERCENT = [0, 102]


@dataclass(frozen=True)
class Chart:
    """A titled chart of the report, with a figure for each of the choices that it offers (one: no choice)."""

    title: str
    caption: str
    figures: Mapping[str, go.Figure]

    def to_json(self) -> dict[str, Any]:
        """The figures as plotly.js takes them: data and layout."""
        return {choice: figure.to_plotly_json() for choice, figure in self.figures.items()}


def ratio_chart(runs: Sequence[Run]) -> list[Chart]:
    """Accuracy against the poison ratio, bars from least to most over the seeds; no chart for a study without such an axis."""
    axis = ratio_axis(runs)
    if axis is None:
        return []
    figure = _figure(f"{RATIOS[axis]} (%)", "test accuracy (%)", y_range=PERCENT)
    for number, (name, curve) in enumerate(ratio_curves(runs, axis).items()):
        bars = {
            "array": _rounded(curve["max"] - curve["mean"]),
            "arrayminus": _rounded(curve["mean"] - curve["min"]),
            "thickness": 1,
            "width": 3,
        }
        seeds = [", ".join(f"{value:.1f}" for value in values) for values in curve["list"]]
        hover = "%{x:.3g} % malicious: %{y:.1f} %<br>seeds: %{text}"
        ratios = [100.0 * ratio for ratio in curve.index]
        trace = _scatter(number, name, ratios, curve["mean"], mode="lines+markers", error_y=bars, text=seeds, hovertemplate=hover)
        figure.add_trace(trace)
    caption = "After the trigger, or at the end of a run in which none fired: mean over seeds, bars from least to most."
    return [Chart("Accuracy against the poison ratio", caption, {"": figure})]


def rounds_chart(shown: RoundPanels) -> Chart:
    """Accuracy over rounds with the phases; a figure for each column of the study."""
    figures: dict[str, go.Figure] = {}
    for column, panel in shown.panels.items():
        figure = _figure(shown.counted, "test accuracy (%)", y_range=PERCENT)
        for number, (row, curve) in enumerate(panel.curves.items()):
            points = _points(curve, panel)
            rounds, mean, least, most = ([values[i] for i in points] for values in curve)
            line = _scatter(number, row, rounds, mean, mode="lines", legendgroup=row, hovertemplate="round %{x}: %{y:.1f} %")
            if least != most:
                band = go.Scatter(
                    x=rounds + rounds[::-1],
                    y=_rounded([*most, *least[::-1]]),
                    fill="toself",
                    fillcolor=COLOURS[number % len(COLOURS)],
                    opacity=0.15,
                    line={"width": 0},
                    mode="lines",
                    legendgroup=row,
                    showlegend=False,
                    hoverinfo="skip",
                )
                figure.add_trace(band)
            figure.add_trace(line)
        figure.layout.shapes = [_shade(*phase) for phase in panel.phases]
        figure.layout.legend.title.text = shown.axis
        figures[column] = figure
    caption = f"{shown.over.capitalize()}. Background: accumulative phase, triggers, recovery."
    return Chart("Accuracy over rounds", caption, figures)


def heat_chart(matrix: Matrix) -> Chart:
    """A matrix of a study, percent: of accuracies, of worst cases, of another measure."""
    means, title = matrix.means()
    grid = [[None if np.isnan(value) else round(value, 2) for value in row] for row in means.to_numpy(dtype=float).tolist()]
    figure = _figure("", "", height=160 + 26 * len(means))
    heat = go.Heatmap(
        x=list(means.columns), y=list(means.index), z=grid, zmin=0, zmax=100, colorscale="Cividis", xgap=2, ygap=2,
        texttemplate="%{z:.1f}", hovertemplate="%{y}<br>%{x}: %{z:.1f} %<extra></extra>", colorbar={"title": {"text": "%"}},
    )  # fmt: skip
    figure.add_trace(heat)
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    figure.update_xaxes(showgrid=False, type="category")
    return Chart(f"{title[0].upper()}{title[1:]}", "Every setting at a glance.", {"": figure})


def stealth_chart(runs: Sequence[Run], limit: float) -> list[Chart]:
    """Each run a point: the drop at the trigger against the stealth gap of the phase before; no chart where no run has both."""
    points = stealth_points(runs)
    if points.empty:
        return []
    figure = _figure("stealth gap: worst round of the phase (points)", "drop at the trigger (points)", shapes=[_limit(limit)])
    hover = "%{text}<br>gap %{x:.2f}, drop %{y:.1f} points<extra></extra>"
    for number, name in enumerate(points["group"].unique()):
        group = points[points["group"] == name]
        texts = [_labels(runs[place]) for place in group.index]
        figure.add_trace(_scatter(number, name, group["gap"], group["drop"], mode="markers", text=texts, hovertemplate=hover))
    caption = f"Each run a point. Right of the dotted line ({limit:g} points) the phase before the trigger would have been noticed."
    return [Chart("Drop against stealth", caption, {"": figure})]


def search_chart(runs: Sequence[Run], limit: float) -> Chart:
    """Each setting of a search a point."""
    labels = "cost of the accumulative phase (points)", "test accuracy after the trigger (%)"
    figure = _figure(*labels, y_range=PERCENT, shapes=[_limit(limit)])
    costs, left = [stealth_cost(run.summary) for run in runs], [left_after(run.summary) for run in runs]
    hover = "%{text}<br>cost %{x:.2f} points, left %{y:.1f} %<extra></extra>"
    points = _scatter(0, "settings", costs, left, mode="markers", text=list(map(_labels, runs)), hovertemplate=hover)
    order = list(range(1, len(runs) + 1))
    points.marker = {"size": 9, "color": order, "colorscale": "Cividis", "colorbar": {"title": {"text": "setting"}}}
    figure.add_trace(points)
    caption = f"Each setting a point, by the order in which the search tried it. Stealth limit: {limit:g} points."
    return Chart("The attack's settings", caption, {"": figure})


def published_chart(pairs: Sequence[Pair], source: str) -> Chart:
    """Published accuracies and ours, one line for each setting."""
    settings, ours = [pair.setting for pair in pairs], [pair.mean for pair in pairs]
    bars = {
        "array": _rounded([max(pair.ours) - pair.mean for pair in pairs]),
        "arrayminus": _rounded([pair.mean - min(pair.ours) for pair in pairs]),
    }
    figure = _figure("test accuracy (%)", "", height=180 + 20 * len(pairs))
    style: dict[str, Any] = {"mode": "markers", "hovertemplate": "%{y}: %{x:.1f} %"}
    figure.add_trace(_scatter(2, "published", [pair.published for pair in pairs], settings, symbol="circle-open", **style))
    figure.add_trace(_scatter(0, "ours", ours, settings, error_x=bars, **style))
    figure.update_xaxes(range=PERCENT)
    figure.update_yaxes(autorange="reversed", type="category")
    return Chart("Published numbers beside ours", f"{source}. Ours: mean over seeds, bars from least to most.", {"": figure})


def _scatter(number: int, name: str, x: Iterable[Any], y: Iterable[Any], symbol: str = "", **more: Any) -> go.Scatter:
    colour = COLOURS[number % len(COLOURS)]
    style = {"color": colour, "width": 2, "dash": DASHES[number // len(COLOURS) % len(DASHES)]}
    marker = {"symbol": symbol or SYMBOLS[number % len(SYMBOLS)], "size": 8, "color": colour}
    return go.Scatter(name=name, x=_rounded(x), y=_rounded(y), line=style, marker=marker, **more)


def _figure(
    x: str, y: str, *, height: int = 420, y_range: Sequence[float] | None = None, shapes: Sequence[Mapping[str, Any]] = ()
) -> go.Figure:
    """An empty figure with axis titles, and without plotly's template: the page has colours of its own."""
    layout = {
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 20, "b": 60},
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True, "range": y_range},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.2},
        "shapes": list(shapes),
    }
    figure = go.Figure(layout=layout)
    figure.layout.template = None
    return figure


def _shade(phase: str, first: int, last: int) -> dict[str, Any]:
    place = {"type": "rect", "xref": "x", "yref": "paper", "x0": first - 0.5, "x1": last + 0.5, "y0": 0, "y1": 1}
    return place | {"fillcolor": PHASES[phase][0], "opacity": 0.13, "line": {"width": 0}, "layer": "below"}


def _limit(points: float) -> dict[str, Any]:
    place = {"type": "line", "xref": "x", "yref": "paper", "x0": points, "x1": points, "y0": 0, "y1": 1}
    return place | {"line": {"dash": "dot", "width": 1, "color": "#999999"}}


def _points(curve: Curve, panel: Panel) -> list[int]:
    """Which points of a curve are drawn: evenly spread, the last, and all around the triggers."""
    step = -(-len(curve.rounds) // POINTS)
    triggers = [(first, last) for name, first, last in panel.phases if name == "trigger"]
    last = len(curve.rounds) - 1
    return [i for i, round_ in enumerate(curve.rounds) if not i % step or i == last or any(a - 3 <= round_ <= b + 10 for a, b in triggers)]


def _rounded(values: Iterable[Any]) -> list[Any]:
    """A plain list: of arrays, plotly would write base64."""
    plain = values.tolist() if isinstance(values, pd.Series) else values
    return [round(value, 2) if isinstance(value, float) else value for value in plain]


def _labels(run: Run) -> str:
    return "<br>".join(f"{axis} = {label}" for axis, label in run.cell.labels.items())
