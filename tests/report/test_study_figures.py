"""That the figures of a study can be drawn, the same bytes again, with nothing cut off."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from experiments.report.figures.study_figures import heat_figure, ratio_figure, rounds_figure, stealth_figure
from experiments.report.views import Curve, Matrix, Panel, RoundPanels

CURVES = {
    "mean": pd.DataFrame(
        {"mean": [99.0, 25.0], "min": [99.0, 20.0], "max": [99.0, 30.0], "list": [[99.0], [20.0, 30.0]]}, index=[0.0, 0.1]
    ),
    "dgc": pd.DataFrame({"mean": [98.0], "min": [98.0], "max": [98.0], "list": [[98.0]]}, index=[0.0]),
}
POINTS = pd.DataFrame({"group": ["mean", "dgc", "mean"], "gap": [0.5, 1.0, 60.0], "drop": [60.0, 1.0, 2.0]})


def test_figures_are_png_and_pdf_and_the_same_bytes_again(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        ratio_figure(tmp_path / folder / "poison_ratio", CURVES, "attack.poison-ratio")
        stealth_figure(tmp_path / folder / "stealth", POINTS)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["poison_ratio.pdf", "poison_ratio.png", "stealth.pdf", "stealth.png"]
    for name in names:
        assert (tmp_path / "a" / name).stat().st_size > 5000
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("count", [1, 2, 5, 9])
@pytest.mark.parametrize("length", [4, 30, 70])
@pytest.mark.slow
def test_a_legend_is_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, length: int) -> None:
    drawn = list[Figure]()
    monkeypatch.setattr("experiments.report.figures.style.write", lambda figure, _: drawn.append(figure))
    curve = Curve([1, 2], [90.0, 80.0], [89.0, 79.0], [91.0, 81.0])
    curves = {
        f"{number} {'accumulative stealth-gamma inf discrepancy-weight 100 norm-bound 2.0 ' * 2}"[:length]: curve for number in range(count)
    }
    rounds_figure(tmp_path / "accuracy", RoundPanels({"dgc": Panel(curves, []), "mean": Panel(curves, [])}, "round", "attack"))
    (figure,) = drawn
    figure.savefig(tmp_path / "a.png")  # lays it out
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0.0
    assert box.x1 <= figure.bbox.x1


def test_a_square_without_a_value_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[Figure]()
    monkeypatch.setattr("experiments.report.figures.style.write", lambda figure, _: drawn.append(figure))
    places = pd.MultiIndex.from_tuples([("mean", "a"), ("dgc", "b"), ("dgc", "a")], names=["row", "column"])
    heat_figure(tmp_path / "matrix", Matrix(pd.Series([10.0, 90.0, float("nan")], index=places), "accuracy (%)", "strategy"))
    texts = {text.get_text(): text.get_color() for text in drawn[0].axes[0].texts}
    assert texts == {"10.0": "#FFFFFF", "90.0": "#000000", "-": "#000000"}, "white on dark, black on light and on nothing"
