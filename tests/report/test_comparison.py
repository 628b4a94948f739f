"""Two folders of runs side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import fl_sim
from experiments import cli
from experiments.report.comparing.comparison import BEYOND, ONE_SEED, SAME, WITHIN, compare_folders, difference
from fl_sim.config.resolve import ConfigError
from tests.support.small_study import RATIOS, SEEDS, STRATEGIES, write_run, write_study_records


def change_summary(folder: Path, **values: Any) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_same_seeds_are_compared_in_pairs() -> None:
    a, b = {1: 90.0, 2: 50.0, 3: 70.0}, {3: 71.2, 1: 91.0, 2: 50.9}
    steps = [1.0, 0.9, 1.2]
    least, most = stats.t.interval(0.95, 2, np.mean(steps), stats.sem(steps))
    result = difference(a, b)
    assert result.verdict == BEYOND, "40 points between seeds, and each seed has a point more"
    assert (result.difference - (result.interval or 0.0), result.difference + (result.interval or 0.0)) == pytest.approx((least, most))
    assert difference(a, {1: 91.0, 2: 49.0, 3: 70.5}).verdict == WITHIN
    assert difference(a, dict(a)).verdict == SAME


def test_other_seeds_are_compared_by_welch() -> None:
    a, b = {1: 90.0, 2: 91.0, 3: 92.5}, {4: 80.0, 5: 83.0}
    least, most = stats.ttest_ind(list(b.values()), list(a.values()), equal_var=False).confidence_interval(0.95)
    result = difference(a, b)
    assert result.interval == pytest.approx((most - least) / 2)
    assert result.difference == pytest.approx((most + least) / 2)


@pytest.mark.parametrize("b", [{1: 80.0}, {2: 80.0}, {2: 80.0, 3: 81.0}])
def test_one_seed_has_no_spread(b: Mapping[int, float]) -> None:
    assert difference({1: 90.0}, b)[1:] == (None, ONE_SEED)


def test_a_study_with_itself_is_the_same(tmp_path: Path) -> None:
    write_study_records(tmp_path)
    comparison = compare_folders(tmp_path, tmp_path)
    assert comparison.settings.empty
    assert set(comparison.frame()["verdict"]) == {SAME}
    assert comparison.identical == comparison.pairs == len(STRATEGIES) * len(RATIOS) * len(SEEDS)
    assert comparison.frame()["cell"].nunique() == len(STRATEGIES) * len(RATIOS)


def test_a_changed_setting_number_and_version(tmp_path: Path) -> None:
    for name, momentum in (("a", 0.9), ("b", 0.5)):
        for seed in SEEDS:
            for strategy in STRATEGIES:
                flat = {"name": "small", "strategy.name": strategy, "seed": seed, "server.momentum": momentum, "attack.poison-ratio": 0.1}
                place = write_run(tmp_path / name, flat)
                if name == "b":
                    meta = json.loads((place / "meta.json").read_text())
                    (place / "meta.json").write_text(json.dumps({**meta, "git_commit": "abc"}))
                    if strategy == "dgc":
                        change_summary(place, drop=60.0 + seed)
    comparison = fl_sim.compare(tmp_path / "a", str(tmp_path / "b"))
    differing = {row.key: (row.a, row.b) for row in comparison.settings.itertuples()}
    assert differing == {"server.momentum": ("0.9", "0.5"), "git_commit": ("", "abc")}
    frame = comparison.frame().set_index(["cell", "number"])
    assert frame.loc[("mean", "drop"), "verdict"] == SAME
    before = [98.5 - (99.0 - seed) for seed in SEEDS]
    assert frame.loc[("dgc", "drop"), "a"] == pytest.approx(np.mean(before))
    assert frame.loc[("dgc", "drop"), "difference"] == pytest.approx(61.5 - np.mean(before))
    assert frame.loc[("dgc", "drop"), "verdict"] == BEYOND
    assert comparison.identical == len(SEEDS), "those of mean"
    assert "ms_per_round" not in frame.index.get_level_values("number"), "these records have no times"


def test_one_run_with_one_run(tmp_path: Path) -> None:
    places = [write_run(tmp_path / name, {"strategy.name": name, "seed": seed}) for name, seed in (("mean", 1), ("dgc", 2))]
    for place, seconds in zip(places, (0.010, 0.015), strict=True):
        change_summary(place, seconds={**json.loads((place / "summary.json").read_text())["seconds"], "attacked_round": seconds})
    comparison = compare_folders(*places)
    keys = dict(zip(comparison.settings["key"], comparison.settings["a"], strict=True))
    assert keys["strategy.name"] == '"mean"'
    assert keys["seed"] == "1"
    speed = comparison.frame().set_index("number").loc["ms_per_round"]
    assert (speed["a"], speed["b"], speed["verdict"]) == pytest.approx((10.0, 15.0, ONE_SEED))


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    runs = write_study_records(tmp_path / "a")
    write_study_records(tmp_path / "b", seeds=(1,))
    (runs[0].folder / "summary.json").write_text("{")
    (runs[1].folder / "summary.json").unlink()
    notes = compare_folders(tmp_path / "a", tmp_path / "b").notes
    assert any(str(runs[0].folder) in note and "damaged" in note for note in notes)
    assert "A: 1 of 12 runs are not complete and left out" in notes
    assert any(note.startswith("1 cells are in B alone") for note in notes), "both runs of one cell of A are gone"
    for name in STRATEGIES:
        write_run(tmp_path / "c", {"name": "small", "model.name": "mlp", "strategy.name": name, "attack.poison-ratio": 0.3})
    with pytest.raises(ConfigError, match=r"attack.poison-ratio is 0.0, 0.1, 0.2 in A and 0.3 in B"):
        compare_folders(tmp_path / "b", tmp_path / "c")


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study_records(tmp_path / "a")
    for run in write_study_records(tmp_path / "b"):
        if run.config["strategy.name"] == "mean" and run.config["seed"] == 2:
            change_summary(run.folder, drop=1.0)
    folders = [str(tmp_path / name) for name in "ab"]
    assert cli.main(["compare", *folders, "-o", str(tmp_path / "c.html")]) == 0
    out = capsys.readouterr().out
    assert "no setting and no version differs" in out
    assert "9 of 12 pairs of runs with one seed are the same in every figure but the times" in out
    assert "no setting and no version differs" in (tmp_path / "c.html").read_text()
    assert cli.main(["compare", *folders, "-o", str(tmp_path / "c.csv")]) == 0
    assert (tmp_path / "c.csv").read_text().startswith("cell,number,a,a_std,a_runs,b,b_std,b_runs,difference,interval,verdict\n")
    assert cli.main(["compare", *folders, "-o", str(tmp_path / "c.pdf")]) == 2
    assert "expected -o FILE to end in .html or .csv" in capsys.readouterr().err
