"""Which figures a run has, by what its lines hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from experiments.report.figures.curves import log_axis
from experiments.report.figures.run_figures import draw_figures, guard_scores, patterns_figure
from tests.support.small_study import write_run


@pytest.mark.parametrize(
    ("flat", "names"),
    [
        ({"attack.name": "none", "strategy.name": "mean"}, ["accuracy.png"]),
        ({"attack.poison-ratio": 0.1, "strategy.name": "mean"}, ["accuracy.png", "attack.png"]),
        ({"attack.poison-ratio": 0.1, "strategy.name": "dgc"}, ["accuracy.png", "attack.png", "guard.png"]),
    ],
)
def test_a_run_has_the_figures_of_what_was_measured(flat: dict[str, object], names: list[str], tmp_path: Path) -> None:
    folder = write_run(tmp_path, {"name": "small", **flat})
    assert [path.name for path in draw_figures(folder)] == names
    assert all((folder / name).stat().st_size > 5000 for name in names)


@pytest.mark.slow
def test_a_run_with_figures_by_class_has_two_figures_more(tmp_path: Path) -> None:
    folder = write_run(tmp_path, {"name": "small", "strategy.name": "mean"})
    lines = [json.loads(text) for text in (folder / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        line["by_class"] = [90.0, 20.0, None]
        if "before_trigger" in line:
            line |= {"before_trigger_confusion": [[9, 1, 0], [0, 5, 5], [0, 0, 0]], "after_trigger_confusion": [[1, 9, 0]] * 3}
    lines[-1]["whole_confusion"] = [[9, 1, 0], [8, 2, 0], [0, 0, 0]]
    lines[0]["start"] = {"by_class": [90.0, 80.0, None], "whole_confusion": [[9, 1, 0], [2, 8, 0], [0, 0, 0]]}
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = [path.name for path in draw_figures(folder)]
    assert names[:3] == ["accuracy.png", "classes.png", "confusion.png"]
    assert all((folder / name).stat().st_size > 5000 for name in names)


def test_a_guard_is_known_by_its_scores_and_not_by_its_name(tmp_path: Path) -> None:
    """Somebody's own strategy may score models too, with thresholds or without."""
    folder = write_run(tmp_path, {"name": "small", "strategy.name": "mean"})
    lines = [json.loads(text) for text in (folder / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        line["strategy"] |= {"rise": 0.1, "rise_threshold": 0.2, "fixed": 0.3}
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert guard_scores({"attacked": lines}) == ["rise"]
    assert folder / "guard.png" in draw_figures(folder)


def test_patterns_have_a_row_each(tmp_path: Path) -> None:
    patterns_figure(
        tmp_path / "patterns", {"plain": torch.rand(3, 1, 8, 8), "colour": torch.rand(3, 3, 8, 8), "flat": torch.zeros(3, 1, 8, 8)}
    )
    assert (tmp_path / "patterns.png").stat().st_size > 2000


@pytest.mark.parametrize(("values", "scale"), [([0.0, 0.0], "linear"), ([], "linear"), ([0.0, 2.0], "log")])
def test_an_axis_is_logarithmic_where_something_is_above_0(values: list[float], scale: str) -> None:
    axes = Figure().subplots()
    axes.plot(range(len(values)), values)
    log_axis(axes)
    assert axes.get_yscale() == scale
