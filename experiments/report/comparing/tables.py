"""A comparison of two folders of runs as tables for the terminal, and as a file: a web page or CSV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from experiments.report.comparing.comparison import BEYOND, CHANCE, NUMBERS, ONE_SEED, SAME, Comparison
from fl_sim.atomic_files import write_whole
from fl_sim.config.resolve import ConfigError

PAGE_WIDTH = 160  # characters
SUFFIXES = (".html", ".csv")
HEADLINE, SPEED = "left", "ms_per_round"


def expect_suffix(path: Path) -> None:
    """Raise ConfigError for a file that is neither a web page nor CSV."""
    if path.suffix not in SUFFIXES:
        raise ConfigError([f"expected -o FILE to end in {' or '.join(SUFFIXES)}, got {str(path)!r}"])


def comparison_tables(comparison: Comparison) -> list[Table]:
    """The settings that differ (if any do), and the numbers: of every cell the accuracy that is left, of the other numbers those that
    differ beyond the spread, or of which no spread is known."""
    settings = Table(title=f"A: {comparison.a}\nB: {comparison.b}", title_justify="left", caption_justify="left")
    for column in ("setting", "A", "B"):
        settings.add_column(column, overflow="fold")
    for row in comparison.settings.itertuples(index=False):
        settings.add_row(*map(str, row))
    if comparison.settings.empty:
        settings.add_row("no setting and no version differs", "", "")
    numbers = Table(caption="\n".join(_caption(comparison)), caption_justify="left")
    for column in ("cell", "number", "A", "B", "B - A", "95 % interval", "difference"):
        numbers.add_column(column, justify="left" if column in ("cell", "number", "difference") else "right", overflow="fold")
    frame = comparison.frame()
    shown = frame[(frame["number"] == HEADLINE) | (frame["verdict"].isin([BEYOND, ONE_SEED]) & (frame["number"] != SPEED))]
    for row in shown.to_dict("records"):
        sides = [_side(row[side], row[f"{side}_std"], row[f"{side}_runs"]) for side in "ab"]
        interval = "-" if pd.isna(row["interval"]) else f"± {row['interval']:.2f}"
        words = {BEYOND: "beyond the spread", SAME: "none"}.get(row["verdict"], row["verdict"])
        numbers.add_row(row["cell"], NUMBERS[row["number"]].what, *sides, f"{row['difference']:+.2f}", interval, words)
    return [settings, numbers]


def _side(mean: float, deviation: float, runs: int) -> str:
    return f"{mean:.1f}" if runs == 1 else f"{mean:.1f} ± {deviation:.1f} ({runs})"


def _caption(comparison: Comparison) -> Sequence[str]:
    frame = comparison.frame()
    others = frame[frame["number"] != SPEED]
    tested = int((~others["verdict"].isin([SAME, ONE_SEED])).sum())
    lines = ["mean ± standard deviation (runs). Beyond: further from 0 than the 95 % interval of the difference over the seeds"]
    if tested:
        beyond = int((others["verdict"] == BEYOND).sum())
        lines.append(f"of {tested} numbers that are not the same {beyond} differ beyond it; about {CHANCE * tested:.1f} would by chance")
    if comparison.pairs:
        lines.append(f"{comparison.identical} of {comparison.pairs} pairs of runs with one seed are the same in every figure but the times")
    speed = frame[frame["number"] == SPEED]
    if len(speed):
        a, b, ratio = speed["a"].median(), speed["b"].median(), (speed["b"] / speed["a"]).median()
        verdicts = speed["verdict"].value_counts()
        spread = f"; beyond the spread in {verdicts.get(BEYOND, 0)} of {len(speed)} cells" if set(verdicts.index) != {ONE_SEED} else ""
        lines.append(f"a round of the attacked run, median over cells: A {a:.1f} ms, B {b:.1f} ms, B/A {ratio:.2f}{spread}")
    return lines


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write the tables as a web page (`.html`), or every number as CSV (`.csv`: `Comparison.frame`)."""
    expect_suffix(path)
    if path.suffix == ".csv":
        write_whole(path, comparison.frame().to_csv(index=False, lineterminator="\n"))
        return
    page = Console(record=True, file=io.StringIO(), width=PAGE_WIDTH, emoji=False, markup=False, highlight=False)
    for part in (*comparison_tables(comparison), *comparison.notes):
        page.print(part)
    write_whole(path, page.export_html(inline_styles=True))
