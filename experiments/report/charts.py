"""The figures of a study as interactive charts of the report: plotly's JSON, without colours of a page that may be light or dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.report.run_figures import PHASES
from experiments.report.study_figures import RATIOS, heat_values, stealth_runs
from experiments.report.tables import Matrix
from experiments.report.views import Curve, Panel, RoundPanels
from experiments.sweep.published import Pair
from experiments.sweep.search import left_after, stealth_cost
from experiments.sweep.study import Run

# Okabe and Ito's colours that can be seen on white and on black; the dashes tell apart what shares a colour
COLOURS = ["#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#999999"]
DASHES = ["solid", "dash", "dot", "dashdot", "longdash"]
SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x"]
POINTS = 160  # of a curve: a page is to open at once

Figure = dict[str, Any]  # {"data": [..], "layout": {..}}, as plotly.js takes it


@dataclass(frozen=True)
class Chart:
    """A titled chart of the report, with a figure for each of the choices that it offers (one: no choice)."""

    title: str
    caption: str
    figures: Mapping[str, Figure]


def ratio_chart(curves: Mapping[str, Mapping[float, Sequence[float]]], axis: str) -> Chart:
    """Accuracy against the poison ratio; bars from least to most over seeds."""
    share = "poison ratio" if axis == RATIOS[0] else "malicious clients of all"
    data: list[Figure] = []
    for number, (name, values) in enumerate(curves.items()):
        means = [sum(found) / len(found) for found in values.values()]
        bars = {
            "array": _rounded([max(found) - mean for found, mean in zip(values.values(), means, strict=True)]),
            "arrayminus": _rounded([mean - min(found) for found, mean in zip(values.values(), means, strict=True)]),
            "thickness": 1,
            "width": 3,
        }
        hover = "%{x:.3g} % malicious: %{y:.1f} %<br>seeds: %{text}"
        seeds = [", ".join(f"{value:.1f}" for value in found) for found in values.values()]
        ratios = _rounded([100.0 * ratio for ratio in values])
        data.append(_line(number, name, ratios, means) | {"mode": "lines+markers", "error_y": bars, "text": seeds, "hovertemplate": hover})
    caption = "After the trigger, or at the end of a run in which none fired: mean over seeds, bars from least to most."
    return Chart("Accuracy against the poison ratio", caption, {"": _figure(data, f"{share} (%)", "test accuracy (%)", y=[0, 102])})


def rounds_chart(found: RoundPanels) -> Chart:
    """Accuracy over rounds with the phases; a figure for each column of the study."""
    figures: dict[str, Figure] = {}
    for column, panel in found.panels.items():
        data: list[Figure] = []
        for number, (row, curve) in enumerate(panel.curves.items()):
            kept = _kept(curve, panel)
            rounds = [curve.rounds[i] for i in kept]
            least, most = [curve.least[i] for i in kept], [curve.most[i] for i in kept]
            line = _line(number, row, rounds, [curve.mean[i] for i in kept])
            if least != most:
                shade = {"fill": "toself", "fillcolor": line["line"]["color"], "opacity": 0.15, "line": {"width": 0}, "mode": "lines"}
                band = {"x": rounds + rounds[::-1], "y": _rounded([*most, *least[::-1]])}
                data.append(band | shade | {"type": "scatter", "legendgroup": row, "showlegend": False, "hoverinfo": "skip"})
            data.append(line | {"mode": "lines", "legendgroup": row, "hovertemplate": "round %{x}: %{y:.1f} %"})
        shapes = [_shape(*phase) for phase in panel.phases]
        figures[column] = _figure(data, found.counted, "test accuracy (%)", y=[0, 102], shapes=shapes)
        figures[column]["layout"]["legend"]["title"] = {"text": found.axis}
    caption = "Mean over seeds, least to most shaded. Background: accumulative phase, triggers, recovery."
    return Chart("Accuracy over rounds", caption, figures)


def heat_chart(matrix: Matrix) -> Chart:
    """The study's matrix of accuracies, or of worst cases."""
    means, title = heat_values(matrix)
    columns = list(dict.fromkeys(column for row in means.values() for column in row))
    grid = [[round(row[column], 2) if column in row else None for column in columns] for row in means.values()]
    heat = {
        "type": "heatmap", "x": columns, "y": list(means), "z": grid, "zmin": 0, "zmax": 100, "colorscale": "Cividis", "xgap": 2, "ygap": 2,
        "texttemplate": "%{z:.1f}", "hovertemplate": "%{y}<br>%{x}: %{z:.1f} %<extra></extra>", "colorbar": {"title": {"text": "%"}},
    }  # fmt: skip
    figure = _figure([heat], "", "")
    figure["layout"] |= {"height": 160 + 26 * len(means)}
    figure["layout"]["yaxis"] |= {"autorange": "reversed", "showgrid": False, "type": "category"}
    figure["layout"]["xaxis"] |= {"showgrid": False, "type": "category"}
    return Chart("Every setting at a glance", f"{title[0].upper()}{title[1:]}.", {"": figure})


def stealth_chart(runs: Sequence[Run], limit: float) -> Chart:
    """Each run a point: the drop at the trigger against the stealth gap of the phase before."""
    hover = "%{text}<br>gap %{x:.2f}, drop %{y:.1f} points<extra></extra>"
    data = [
        _line(number, name, [run.summary["stealth_gap"] for run in found], [run.summary["drop"] for run in found])
        | {"mode": "markers", "text": [_named(run) for run in found], "hovertemplate": hover}
        for number, (name, found) in enumerate(stealth_runs(runs).items())
    ]
    figure = _figure(data, "stealth gap: worst round of the phase (points)", "drop at the trigger (points)", shapes=[_limit(limit)])
    caption = f"Each run a point. Right of the dotted line ({limit:g} points) the phase before the trigger would have been noticed."
    return Chart("Drop against stealth", caption, {"": figure} if data else {})


def search_chart(runs: Sequence[Run], limit: float) -> Chart:
    """Each setting of a search a point."""
    hover = "%{text}<br>cost %{x:.2f} points, left %{y:.1f} %<extra></extra>"
    points = _line(0, "settings", [stealth_cost(run.summary) for run in runs], [left_after(run.summary) for run in runs])
    points |= {"mode": "markers", "text": [_named(run) for run in runs], "hovertemplate": hover}
    order: Figure = {"color": list(range(1, len(runs) + 1)), "colorscale": "Cividis", "colorbar": {"title": {"text": "setting"}}}
    points["marker"] = {"size": 9} | order
    labels = "cost of the accumulative phase (points)", "test accuracy after the trigger (%)"
    figure = _figure([points], *labels, y=[0, 102], shapes=[_limit(limit)])
    caption = f"Each setting a point, by the order in which the search tried it. Stealth limit: {limit:g} points."
    return Chart("The attack's settings", caption, {"": figure})


def published_chart(pairs: Sequence[Pair], source: str) -> Chart:
    """Published accuracies and ours, a line for each setting."""
    settings, theirs = [pair.setting for pair in pairs], [pair.published for pair in pairs]
    ours = [pair.mean for pair in pairs]
    bars = {
        "array": _rounded([max(pair.ours) - mean for pair, mean in zip(pairs, ours, strict=True)]),
        "arrayminus": _rounded([mean - min(pair.ours) for pair, mean in zip(pairs, ours, strict=True)]),
    }
    hover = "%{y}: %{x:.1f} %"
    data = [
        _line(2, "published", theirs, settings, "circle-open") | {"mode": "markers", "hovertemplate": hover},
        _line(0, "ours", ours, settings) | {"mode": "markers", "error_x": bars, "hovertemplate": hover},
    ]
    figure = _figure(data, "test accuracy (%)", "")
    figure["layout"] |= {"height": 180 + 20 * len(pairs)}
    figure["layout"]["xaxis"] |= {"range": [0, 102]}
    figure["layout"]["yaxis"] |= {"autorange": "reversed", "type": "category"}
    return Chart("Published numbers beside ours", f"{source}. Ours: mean over seeds, bars from least to most.", {"": figure})


def _line(number: int, name: str, x: Sequence[Any], y: Sequence[Any], symbol: str = "") -> Figure:
    colour = COLOURS[number % len(COLOURS)]
    style = {"color": colour, "width": 2, "dash": DASHES[number // len(COLOURS) % len(DASHES)]}
    marker = {"symbol": symbol or SYMBOLS[number % len(SYMBOLS)], "size": 8, "color": colour}
    return {"type": "scatter", "name": name, "x": _rounded(x), "y": _rounded(y), "line": style, "marker": marker}


def _figure(data: list[Figure], x: str, y_label: str, y: Sequence[float] | None = None, shapes: Sequence[Figure] = ()) -> Figure:
    vertical: Figure = {"title": {"text": y_label}, "automargin": True} | ({"range": list(y)} if y else {})
    layout = {
        "height": 420,
        "margin": {"l": 60, "r": 20, "t": 20, "b": 60},
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": vertical,
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.2},
        "shapes": list(shapes),
    }
    return {"data": data, "layout": layout}


def _shape(phase: str, first: int, last: int) -> Figure:
    place = {"type": "rect", "xref": "x", "yref": "paper", "x0": first - 0.5, "x1": last + 0.5, "y0": 0, "y1": 1}
    return place | {"fillcolor": PHASES[phase][0], "opacity": 0.13, "line": {"width": 0}, "layer": "below"}


def _limit(points: float) -> Figure:
    place = {"type": "line", "xref": "x", "yref": "paper", "x0": points, "x1": points, "y0": 0, "y1": 1}
    return place | {"line": {"dash": "dot", "width": 1, "color": "#999999"}}


def _kept(curve: Curve, panel: Panel) -> list[int]:
    """Which points of a curve are drawn: evenly spread, the last, and all around the triggers."""
    step = -(-len(curve.rounds) // POINTS)
    fired = [(first, last) for name, first, last in panel.phases if name == "trigger"]
    last = len(curve.rounds) - 1
    return [i for i, round_ in enumerate(curve.rounds) if not i % step or i == last or any(a - 3 <= round_ <= b + 10 for a, b in fired)]


def _rounded(values: Sequence[Any]) -> list[Any]:
    return [round(value, 2) if isinstance(value, float) else value for value in values]


def _named(run: Run) -> str:
    return "<br>".join(f"{axis} = {label}" for axis, label in run.cell.labels.items())
