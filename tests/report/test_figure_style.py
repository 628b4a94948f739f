"""That figures survive a two-column page: their width, the size of their letters, nothing cut off or on top of each other."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments import cli
from experiments.records.reading import read_rounds
from experiments.report.figures.cleaning_figures import cleaning_figure, images_figure
from experiments.report.figures.run_figures import accuracy_figure, draw_figures
from experiments.report.figures.study_figures import heat_figure, published_figure, ratio_figure, rounds_figure, stealth_figure
from experiments.report.figures.style import WIDTHS, inches_of
from experiments.report.views import Curve, Matrix, Panel, RoundPanels
from experiments.sweep.published import Pair
from fl_sim.config.resolve import ConfigError
from tests.support.small_study import write_run

LONG = "flwr.DifferentialPrivacyServerSideFixedClipping noise_multiplier: 0.1, clipping_norm: 1.0 accumulative stealth-gamma inf"
NAMES = ["mean", "clip-after 10", LONG, "flwr.Krum num_malicious_nodes = 10"]

FLAGGED = {f"{name}{what}": 2 for name in ("", "poisoned_") for what in ("images", "changed", "dropped")}
CLEANED = [
    {"round": round_, "phase": phase, "cleaning": {**FLAGGED, "scores": [5, 1, 0], "poisoned_scores": [1, 2, 3], "threshold": 0.1}}
    for round_, phase in ((1, "accumulate"), (2, "accumulate"), (3, "trigger"))
]


def draw_all(folder: Path, width: float) -> None:
    """Figures of a study with long names, and those of a run."""
    curve = Curve([1, 2, 3], [90.0, 80.0, 20.0], [89.0, 79.0, 10.0], [91.0, 81.0, 30.0])
    panels = {column: Panel(dict.fromkeys(NAMES, curve), [("trigger", 2, 2)]) for column in (*NAMES, "none")}
    rounds_figure(folder / "rounds", RoundPanels(panels, "round, from that of the trigger", "strategy"), width)
    frame = pd.DataFrame({"mean": [99.0, 25.0], "min": [99.0, 20.0], "max": [99.0, 30.0], "list": [[99.0], [20.0, 30.0]]}, index=[0.0, 0.1])
    ratio_figure(folder / "ratio", dict.fromkeys(NAMES, frame), "attack.poison-ratio", width)
    stealth_figure(folder / "stealth", pd.DataFrame({"group": NAMES, "gap": [0.5, 1.0, 60.0, 3.0], "drop": [60.0, 1.0, 2.0, 9.0]}), width)
    places = pd.MultiIndex.from_product([[*NAMES, *map(str, range(9))], ["none", "trigger-only", "accumulative"]], names=["row", "column"])
    heat_figure(folder / "matrix", Matrix(pd.Series(100.0, index=places), "test accuracy after the trigger, or at the end (%)", "a"), width)
    published_figure(
        folder / "published", [Pair({"strategy": name}, None, 90.0, [80.0, 85.0]) for name in NAMES], f"A source: {LONG}", width
    )
    draw_figures(write_run(folder, {"name": "small", "strategy.name": "dgc", "attack.poison-ratio": 0.1}), width)
    cleaning_figure(folder / "cleaning", {"attacked": CLEANED}, LONG, [0.1, 0.2], width)
    images = [[[[number] * 8] * 8] for number in range(8)]  # (8, 1, 8, 8)
    images_figure(folder / "cleaned_images", {"before": images, "after": images}, "filter-discrepancy", width)


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_every_letter_can_be_read_and_is_on_the_page(width: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = dict[str, Figure]()

    def lay_out(figure: Figure, path: Path) -> None:
        figure.draw_without_rendering()
        figures[path.name] = figure

    monkeypatch.setattr("experiments.report.figures.style.write", lay_out)
    draw_all(tmp_path, width)
    assert len(figures) == 10
    for name, figure in figures.items():
        assert figure.get_figwidth() == width
        assert figure.get_figheight() < 11.0, "the height of a page"
        box = figure.get_tightbbox()  # of what is drawn, in inches
        assert min(box.x0, box.y0) >= -0.01, name
        assert box.x1 <= width + 0.01, name
        assert box.y1 <= figure.get_figheight() + 0.01, name
        assert min(float(text.get_fontsize()) for text in figure.findobj(Text)) >= 6.0, name
        for legend in figure.legends:
            shown = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible()]
            assert not any(legend.get_window_extent().overlaps(panel) for panel in shown if panel), name
        rows = [label.get_window_extent() for label in figure.axes[0].get_yticklabels() if label.get_text()]
        for below, above in pairwise(rows):
            assert not below.overlaps(above), name


def capture(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn from now on, not written."""
    drawn = list[Figure]()
    monkeypatch.setattr("experiments.report.figures.style.write", lambda figure, _: drawn.append(figure))
    return drawn


def test_no_curve_is_known_by_its_colour_alone_and_none_hides_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal curves lie on each other: the lowest is solid, those above have gaps; markers are hollow."""
    figures = capture(monkeypatch)
    curve = Curve([1, 2], [90.0, 80.0], [90.0, 80.0], [90.0, 80.0])
    rounds_figure(tmp_path / "rounds", RoundPanels({"dgc": Panel(dict.fromkeys("abcd", curve), [])}, "round", "attack"))
    frame = pd.DataFrame({"mean": [99.0, 25.0], "min": [99.0, 20.0], "max": [99.0, 30.0], "list": [[99.0], [20.0, 30.0]]}, index=[0.0, 0.1])
    ratio_figure(tmp_path / "ratio", dict.fromkeys("abcd", frame), "attack.poison-ratio")
    lines = read_rounds(write_run(tmp_path, {"name": "small", "strategy.name": "mean"}))["attacked"]
    accuracy_figure(tmp_path / "accuracy", dict.fromkeys(("attacked", "twin", "control"), lines), "small")
    for figure, count in zip(figures, (4, 4, 3), strict=True):
        curves = figure.axes[0].get_lines()
        assert len(curves) == count
        assert len({line.get_linestyle() for line in curves}) == len(curves)
        assert [line.get_linestyle() == "-" for line in curves] == [True] + [False] * (len(curves) - 1), "drawn first, below"
    assert {line.get_markerfacecolor() for line in figures[1].axes[0].get_lines()} == {"none"}


def test_a_heat_map_names_what_its_columns_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longer of rows and columns goes down; the axis keeps its name on either side."""
    figures = capture(monkeypatch)
    for rows, columns in (("ab", "xyz"), ("abc", "xy")):
        places = pd.MultiIndex.from_product([[*rows], [*columns]], names=["row", "column"])
        heat_figure(tmp_path / "matrix", Matrix(pd.Series(50.0, index=places), "accuracy (%)", "attack.poison-ratio"))
    assert [(figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) for figure in figures] == [
        ("attack.poison-ratio", ""),
        ("", "attack.poison-ratio"),
    ]


def test_a_cleaning_shows_shares_scores_and_the_auroc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each round 5 of 6 clean images are in the first bin and 1 in the second, of 6 poisoned ones 1, 2 and 3."""
    figures = capture(monkeypatch)
    cleaning_figure(tmp_path / "cleaning", {"attacked": CLEANED}, "small", [0.1, 0.2])
    shares, scores, histograms = figures[0].axes
    assert {tuple(line.get_ydata()) for line in shares.get_lines()} == {(2.0, 2.0, 2.0), (2.0, 2.0), (2.0,)}, "(2 changed + 2 dropped) of 2"
    assert {line.get_label(): list(line.get_ydata()) for line in scores.get_lines()} == {
        "clean": [0.1] * 3,
        "accumulative": [0.2] * 2,
        "trigger": [0.2],
        "threshold": [0.1] * 3,
    }
    area = f"{(1 * 2.5 + 2 * (5 + 0.5) + 3 * 6) / 36:.3f}"
    assert histograms.get_title() == f"AUROC: accumulative {area}, trigger {area}"


def test_images_of_a_cleaning_are_as_bright_as_they_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = capture(monkeypatch)
    images_figure(tmp_path / "images", {"before": [[[[0, 16]]]], "after": [[[[0, 8]]]]}, "jpeg")  # (1, 1, 1, 2), like digits: up to 16
    assert [axes.get_images()[0].norm.vmax for axes in figures[0].axes] == [16, 16]


def test_a_width_in_words_and_in_inches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [inches_of(width) for width in ("column", "page", "4.5", 3)] == [3.5, 7.16, 4.5, 3.0]
    with pytest.raises(ConfigError, match=r"expected a width of column, page or 2 to 20 inches, got '1'"):
        inches_of("1")
    folder = write_run(tmp_path, {"name": "small", "strategy.name": "mean"})
    assert cli.main(["report", str(folder), "--width", "wide"]) == 2
    assert "got 'wide'" in capsys.readouterr().err


def test_a_figure_is_a_vector_with_letters_of_the_reader(tmp_path: Path) -> None:
    draw_figures(write_run(tmp_path, {"name": "small", "strategy.name": "mean"}), 3.5)
    (pdf,) = tmp_path.glob("*/accuracy.pdf")
    content = pdf.read_bytes()
    width = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", content)
    assert width
    assert float(width[1]) == pytest.approx(3.5 * 72)
    assert b"/CIDFontType2" in content, "TrueType"
    assert b"/Type3" not in content
