"""A study as a frame, and what is written of it: results.csv, results.parquet."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.report.frame import label_frame, study_frame, write_csv, write_parquet
from experiments.sweep.spec import Cell
from experiments.sweep.study import Run
from tests.support.small_study import write_study_records


def run(flat: dict[str, Any], labels: dict[str, str], **summary: Any) -> Run:
    return Run(Cell(flat, labels), Path(f"r-{summary.get('rounds', 0)}"), summary)


RUNS = [
    run(
        {"strategy.name": "mean", "seed": 1}, {"strategy": "mean", "seed": "1"}, accuracy={"after": 9.0}, triggers=[], alarm=None, rounds=3
    ),
    run(
        {"strategy.name": "clip-after", "strategy.bound": "inf", "seed": 1},
        {"strategy": "clip-after inf", "seed": "1"},
        accuracy={"after": None},
        triggers=[2, 3],
        alarm=2,
        rounds=4,
    ),
]


def test_one_row_per_run_with_labels_values_folder_and_every_figure() -> None:
    frame = study_frame(RUNS)
    columns = ["strategy", "strategy.name", "seed", "strategy.bound", "folder", "accuracy.after", "triggers", "alarm", "rounds"]
    assert sorted(frame.columns) == sorted(columns)
    assert list(frame["strategy"]) == ["mean", "clip-after inf"]
    assert list(frame["folder"]) == ["r-3", "r-4"]
    assert frame["accuracy.after"].tolist()[0] == 9.0
    assert math.isnan(frame["accuracy.after"][1])
    assert frame["strategy.bound"][1] == math.inf, "JSON has infinity as text"
    assert frame["alarm"].dtype == "Int64", "a whole number stays one where a run has none"
    assert frame["alarm"].tolist()[1] == 2
    assert frame["triggers"].tolist() == [[], [2, 3]]
    assert list(label_frame(RUNS).columns) == ["strategy"], "but the seed"


def test_an_axis_that_is_a_key_is_a_value(tmp_path: Path) -> None:
    frame = study_frame(write_study_records(tmp_path))
    assert frame["attack.poison-ratio"].dtype == float
    assert frame.groupby(["strategy", "attack.poison-ratio"])["accuracy.after_trigger"].mean()["mean", 0.1] == 38.5
    assert (frame["accuracy.after_trigger"] + frame["drop"] == 98.5).all()


def test_the_table_has_the_swept_keys_first_and_lists_as_json(tmp_path: Path) -> None:
    write_csv(tmp_path / "results.csv", RUNS)
    text = (tmp_path / "results.csv").read_text()
    assert text.splitlines() == [
        "strategy.name,seed,folder,accuracy.after,triggers,alarm,rounds,strategy.bound",
        "mean,1,r-3,9.0,[],,3,",
        'clip-after,1,r-4,,"[2, 3]",2,4,inf',
    ]


def test_parquet_holds_the_table_with_types(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra parquet)")
    runs = [*RUNS, run({"strategy.name": 3, "seed": 2}, {"strategy": "3", "seed": "2"}, accuracy={"after": 1}, rounds=5)]
    write_parquet(tmp_path / "results.parquet", runs)
    write_csv(tmp_path / "results.csv", runs)
    frame = pd.read_parquet(tmp_path / "results.parquet")
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(frame.columns) == list(rows[0])
    assert frame["accuracy.after"].tolist()[::2] == [9.0, 1.0]
    assert frame["triggers"][1].tolist() == [2, 3]
    assert list(frame["strategy.name"]) == ["mean", "clip-after", "3"], "mixed values are text"
    assert [json.loads(row["triggers"]) for row in rows[:2]] == [[], [2, 3]]


def test_a_run_of_its_own_has_no_axes() -> None:
    alone = [run({}, {}, rounds=3)]
    assert study_frame(alone).to_dict("list") == {"folder": ["r-3"], "rounds": [3]}
    assert label_frame(alone).shape == (1, 0)
