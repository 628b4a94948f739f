"""The records of the papers' studies, and the page that is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.report.reproduction import PAGE, RESULTS, record_of, records, table_of, with_tables
from fl_sim.config.resolve import ConfigError
from tests.support.small_study import write_study_records


def test_the_record_of_a_study(tmp_path: Path) -> None:
    write_study_records(tmp_path)
    study = json.loads((tmp_path / "study.json").read_text())
    study["base"] |= {"data.root": "/a", "data.cache-dir": "/b", "output-dir": "/c"}
    (tmp_path / "study.json").write_text(json.dumps(study))
    record = record_of(tmp_path, "made up")
    assert record["base"] == {"name": "small", "model.name": "mlp"}, "no path of a machine"
    assert record == json.loads(json.dumps(record, allow_nan=False))
    assert len(record["runs"]) == record["cells"]
    assert record["machines"][0]["versions"]["torch"]
    assert "made up, mlp" in table_of(record)


def test_a_record_wants_whole_runs(tmp_path: Path) -> None:
    cut = write_study_records(tmp_path)[0].folder / "summary.json"
    cut.write_bytes(cut.read_bytes()[:-37])
    with pytest.raises(ConfigError, match=r"summary\.json is damaged"):
        record_of(tmp_path, "made up")


def test_a_table_has_published_numbers_and_ours() -> None:
    pairs = [
        {
            "labels": {"attack.lambda": "0.01", "attack": f"trigger {trigger}", "schedule.accumulate-rounds": rounds},
            "round": None,
            "published": value,
            "ours": ours,
        }
        for trigger, rounds, value, ours in (
            ("clean trigger-scale 1", "50", 85.0, [80.0, 82.0]),
            ("clean trigger-scale 1", "100", 83.0, [70.0]),
            ("reversed trigger-scale 0.01", "50", 78.0, [60.0]),
        )
    ]
    machine = {"device": "a machine", "versions": {"torch": "1", "flwr": "2", "ray": "3"}}
    record = {"study": "s", "published": "pang2021-table6", "data": "D", "model": ["cnn, group norm"], "machines": [machine], "seeds": [4]}
    unpublished = {"labels": {"attack.lambda": "9"}, "accuracy": {"before_trigger": None, "after_trigger": None, "final": 71.0}}
    runs = [{"labels": pairs[0]["labels"]}, {**unpublished, "drop": None, "stealth_gap": 1.0, "gain": None}]
    text = table_of({**record, "cells": 3, "seconds": 600, "runs": runs, "pairs": pairs})
    assert "D, cnn, group norm; a machine, torch 1, flwr 2, ray 3; seeds 4; 2 of 3 cells in 10 min of work" in text
    assert "same order in 2 of 2 neighbouring pairs (100 %)" in text
    assert "| accumulate-rounds 50 | 85.0 / **81.0 (80.0 to 82.0)** | 78.0 / **60.0** |" in text
    assert "| accumulate-rounds 100 | 83.0 / **70.0** | - |" in text
    assert text.endswith("\n\n|  | stealth gap | at the end |\n| --- | --- | --- |\n| lambda 9 | 1.0 | 71.0 |")
    page = "a\n<!-- s -->\nold\n<!-- end -->\nb\n"
    assert with_tables(page, {"s": {**record, "cells": 3, "seconds": 600, "runs": [], "pairs": pairs}}).startswith("a\n<!-- s -->\nD, cnn")
    with pytest.raises(KeyError):
        with_tables(page, {})


def test_the_page_is_what_the_records_give() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page, records()) == page, "run: python -m experiments.report.reproduction"
    assert records()
    assert {path.stem.removeprefix("reproduction_") for path in PAGE.parent.glob("reproduction_*.*")} == set(records())
    for name in records():
        assert f"<!-- {name} -->" in page
        assert f"reproduction_{name}.png" in page
        assert (PAGE.parent / f"reproduction_{name}.png").is_file()
    assert all(path.stat().st_size < 200_000 for path in RESULTS.glob("*.json"))
