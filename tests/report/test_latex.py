"""The table for a paper."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.report.latex import escaped, write_latex
from experiments.sweep.spec import Cell
from experiments.sweep.study import Run, Study
from tests.support.small_study import write_study_records


def run(after: float | None, gap: float = 0.0, **labels: str) -> Run:
    return Run(Cell({}, labels), Path(), {"accuracy": {"after_trigger": after, "final": 1.0}, "stealth_gap": gap})


def table_of(folder: Path, runs: list[Run], name: str = "my_study", limit: float | None = None) -> str:
    write_latex(folder / "results.tex", Study(name, {}, (), (), stealth_limit=limit), runs)
    return (folder / "results.tex").read_text()


def test_mean_and_deviation_over_the_seeds_rows_by_the_first_axis(tmp_path: Path) -> None:
    text = table_of(tmp_path, write_study_records(tmp_path))
    assert re.search(r"\\toprule\nattack\.poison-ratio & 0 & 0\.1 & 0\.2 \\\\\nstrategy &  &  &  \\\\\n\\midrule\n", text)
    assert "mean & $97.5 \\pm 0.7$ & $38.5 \\pm 0.7$ & $28.5 \\pm 0.7$ \\\\\n" in text, "39 and 38: a deviation of 0.707"
    assert text.endswith("\\bottomrule\n\\end{tabular}\n\\end{table}\n")
    assert "\\begin{tabular}{lrrr}" in text
    caption = "my\\_study: test accuracy after the trigger (\\%), mean $\\pm$ standard deviation over 2 seeds."
    assert f"\\caption{{{caption}}}\n\\label{{tab:my-study}}" in text


def test_one_seed_has_no_deviation_and_what_was_not_run_is_a_dash(tmp_path: Path) -> None:
    runs = [
        run(10.0, strategy="mean", attack="z", seed="1"),
        run(None, strategy="mean", attack="a", seed="1"),
        run(30.25, strategy="dgc", attack="z", seed="1"),
    ]
    text = table_of(tmp_path, runs)
    assert "mean & $10.0$ & -- \\\\\ndgc & $30.2$ & -- \\\\" in text
    assert "(\\%), one seed.}" in text


def test_two_more_axes_are_two_rows_of_headings(tmp_path: Path) -> None:
    runs = [run(float(i), strategy=s, attack=a, rho=r) for i, (s, a, r) in enumerate((s, a, r) for s in "xy" for a in "bc" for r in "21")]
    text = table_of(tmp_path, runs)
    assert "attack & \\multicolumn{2}{c}{b} & \\multicolumn{2}{c}{c} \\\\\nrho & 2 & 1 & 2 & 1 \\\\" in text, "in the study's order"
    assert "x & $0.0$ & $1.0$ & $2.0$ & $3.0$ \\\\\ny & $4.0$ & $5.0$ & $6.0$ & $7.0$ \\\\" in text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a_b 5 % c & d # $1 {x}", r"a\_b 5 \% c \& d \# \$1 \{x\}"),
        ("C:\\x ~ ^ · <", r"C:\textbackslash{}x \textasciitilde{} \textasciicircum{} $\cdot$ \textless{}"),
        ("clip-after 0.1", "clip-after 0.1"),
    ],
)
def test_special_characters_stand_for_themselves(text: str, written: str) -> None:
    assert escaped(text) == written


def test_labels_and_axes_are_escaped(tmp_path: Path) -> None:
    text = table_of(tmp_path, [run(1.0, **{"strategy": "own.py:my_rule & 5 %", "attack.my_axis": "#1"})])
    assert "own.py:my\\_rule \\& 5 \\%" in text
    assert "attack.my\\_axis & \\#1 \\\\" in text


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path: Path) -> None:
    text = table_of(tmp_path, [run(1.0, seed="1"), run(3.0, seed="2")])
    assert "all seeds & $2.0 \\pm 1.4$ \\\\" in text


def test_of_a_search_the_settings_that_left_least(tmp_path: Path) -> None:
    runs = [run(float(left), gap=5.0 if left == 3 else 1.0, **{"attack.rho": f"{left}_"}) for left in (20, 3, *range(30, 42))]
    text = table_of(tmp_path, runs, "worst", limit=2.0)
    rows = text.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    assert len(rows) == 10
    assert rows[0] == "1 & $20.0$ & $1.0$ & 20\\_ \\\\", "3 % are left by what was over the limit"
    assert "the 10 of 14 settings" in text
