"""What the figures of a sweep show, and that they can be drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.cells import Cell
from experiments.study import Run
from experiments.study_figures import ratio_axis, ratio_curves, ratio_figure, stealth_figure, stealth_runs


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
