"""The map of docs/worst_case.md: names of its attacks, the least of each case, and its committed table."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pandas as pd
import pytest

import experiments
from experiments.benchmarks import worst_case

DOCS = Path(__file__).parents[2] / "docs"


def test_each_attack_of_the_search_has_its_own_name_on_the_page() -> None:
    search = tomllib.loads((Path(experiments.__file__).parent / "searches" / "worst_case_map.toml").read_text())
    space = search["space"]["attack"]
    settings = [{"name": attack} if isinstance(attack, str) else attack for attack in space]
    names = [worst_case.attack_name({f"attack.{key}": value for key, value in attack.items()}) for attack in settings]
    assert sorted(names) == sorted(["exact", "rehearsed", "short", "provoked", "all classes", "default", "ALIE", "none"])
    page = (DOCS / "worst_case.md").read_text()
    assert all(f"| {name} |" in page for name in names if name != "none")


def table() -> pd.DataFrame:
    cells = [
        ("a", 1, 5, "exact", 80.0, 7.0),
        ("a", 1, 5, "ALIE", 60.0, 9.0),
        ("a", 1, 5, "none", 85.0, 50.0),
        ("b", 10, 5, "ALIE", 81.0, 3.0),
    ]
    return pd.DataFrame([(*cell[:4], 85.0, *cell[4:]) for cell in cells], columns=[*worst_case.KEYS, "before_trigger", *worst_case.LEFT])


def test_the_least_of_a_case_is_that_of_its_attacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert worst_case.least(table(), "accuracy").iloc[0].to_list() == [60.0, "ALIE", 85.0]
    assert worst_case.order(table()) == ["a", "b"]
    path = tmp_path / "table.csv"
    table().to_csv(path, index=False)
    assert worst_case.main(["--table", str(path), "-o", str(tmp_path)]) == 0
    assert "| `a` | 60.0 ALIE, 7.0 exact |" in capsys.readouterr().out
    assert (tmp_path / "worst_case_map.png").stat().st_size > 1000
    assert not (tmp_path / "worst_case.png").exists(), "there is no run with ten members and one image"
    worst_case.draw_case(tmp_path / "case", table(), 1, 5)
    assert (tmp_path / "case.png").stat().st_size > 1000
    again = pd.read_csv(path)
    assert again.sort_values(worst_case.KEYS).to_csv() == again.to_csv()
    assert len(again) == len(table())


def test_the_committed_table_has_each_run_once_and_sixteen_strategies_in_each_case() -> None:
    known = pd.read_csv(DOCS / "results" / "worst_case.csv")
    assert not known.duplicated(worst_case.KEYS).any()
    for left in worst_case.LEFT:
        values = known[left].dropna()  # of the runs with ten members and one image only the least are left
        assert values.between(0.0, 100.0).all()
        cases = worst_case.least(known, left)[left].dropna().groupby(["images", "m"]).size()
        assert len(cases) == 12
        assert (cases >= 15).all(), "rlr is no defence with one member"
