"""What the figures of a sweep show, and that they can be drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from experiments.report.study_figures import ratio_axis, ratio_curves, ratio_figure, rounds_figure, stealth_figure, stealth_runs
from experiments.report.views import Curve, Panel, RoundPanels
from experiments.sweep.spec import Cell
from experiments.sweep.study import Run


def cell(strategy: str, ratio: float, seed: int) -> Cell:
    flat = {"strategy.name": strategy, "attack.poison-ratio": ratio, "seed": seed}
    return Cell(flat, {"strategy": strategy, "attack.poison-ratio": str(ratio), "seed": str(seed)})


def summary(after: float | None, gap: float | None = 0.5, drop: float | None = 60.0) -> dict[str, Any]:
    return {"accuracy": {"after_trigger": after, "final": 97.0}, "stealth_gap": gap, "drop": drop}


RUNS = [
    Run(cell("mean", 0.1, 1), Path(), summary(20.0)),
    Run(cell("mean", 0.0, 1), Path(), summary(99.0, gap=None)),
    Run(cell("mean", 0.1, 2), Path(), summary(30.0, drop=None)),
    Run(cell("dgc", 0.0, 1), Path(), summary(98.0)),
    Run(cell("dgc", 0.1, 1), Path(), summary(None)),
]


def test_curves_hold_the_seeds_of_each_ratio() -> None:
    cells = [run.cell for run in RUNS]
    assert ratio_axis(cells) == "attack.poison-ratio"
    assert ratio_axis(cells[:1]) is None, "one ratio is no curve"
    assert ratio_axis([Cell({}, {"seed": "1"}), Cell({}, {"seed": "2"})]) is None
    curves = ratio_curves(RUNS, "attack.poison-ratio")
    assert curves == {"mean": {0.0: [99.0], 0.1: [20.0, 30.0]}, "dgc": {0.0: [98.0], 0.1: [97.0]}}, "the end where no trigger fired"
    assert list(curves["mean"]) == [0.0, 0.1], "ascending, whatever order the spec has"


def test_points_are_runs_that_have_both_numbers() -> None:
    assert stealth_runs(RUNS) == {"mean": RUNS[:1], "dgc": RUNS[3:]}
    ratios = [run._replace(cell=Cell({}, {"attack.poison-ratio": "0.1", "strategy.name": "mean"})) for run in RUNS[:1]]
    assert list(stealth_runs(ratios)) == ["mean"], "by strategy where there is one"


def test_figures_are_png_and_pdf_and_the_same_bytes_again(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        ratio_figure(tmp_path / folder / "poison_ratio", ratio_curves(RUNS, "attack.poison-ratio"), "attack.poison-ratio")
        stealth_figure(tmp_path / folder / "stealth", {name: [run.summary for run in runs] for name, runs in stealth_runs(RUNS).items()})
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["poison_ratio.pdf", "poison_ratio.png", "stealth.pdf", "stealth.png"]
    for name in names:
        assert (tmp_path / "a" / name).stat().st_size > 5000
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("count", [1, 2, 5, 9])
@pytest.mark.parametrize("length", [4, 30, 70])
def test_a_legend_is_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, length: int) -> None:
    drawn = list[Figure]()
    monkeypatch.setattr("experiments.report.study_figures._save", lambda figure, _: drawn.append(figure))
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
