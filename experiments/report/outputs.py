"""Everything that a study's records give: results.csv, the figures and report.html, written anew from them alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from experiments.report.html_page import write_report
from experiments.report.study_figures import (
    heat_figure,
    published_figure,
    ratio_axis,
    ratio_curves,
    ratio_figure,
    rounds_figure,
    search_figure,
    stealth_figure,
    stealth_runs,
)
from experiments.report.tables import accuracy_matrix, matrix_table, published_table, search_table, worst_cases, write_results
from experiments.report.views import round_panels
from experiments.sweep.published import beside, published_numbers
from experiments.sweep.study import Study, complete_runs
from fl_sim.atomic_files import whole_file


def write_outputs(folder: Path, study: Study) -> list[Path]:
    """Write all that the complete runs of a study (at least one) give into its folder; returns the paths, figures as PNG (each has its
    PDF beside it)."""
    runs = complete_runs(folder, study)
    write_results(folder / "results.csv", runs)
    figures: dict[str, Callable[[Path], None]] = {}
    limit = study.stealth_limit
    if limit is None:
        matrix = accuracy_matrix(runs)
        figures["accuracy"] = lambda path: rounds_figure(path, round_panels(runs))
        figures["matrix"] = lambda path: heat_figure(path, worst_cases(runs) or matrix)
        if axis := ratio_axis([run.cell for run in runs]):
            figures["poison_ratio"] = lambda path: ratio_figure(path, ratio_curves(runs, axis), axis)
    else:
        figures["search"] = lambda path: search_figure(path, runs, limit)
    if groups := stealth_runs(runs):
        summaries = {label: [run.summary for run in found] for label, found in groups.items()}
        figures["stealth"] = lambda path: stealth_figure(path, summaries)
    pairs = beside(study.published, runs) if study.published else []
    if pairs:
        figures["published"] = lambda path: published_figure(path, pairs, published_numbers()[study.published]["source"])
    for name, draw in figures.items():
        draw(folder / name)
    write_report(folder / "report.html", study, runs, pairs)
    return [folder / "results.csv", *(folder / f"{name}.png" for name in figures), folder / "report.html"]


def study_tables(folder: Path, study: Study) -> list[Table]:
    """What a study's command prints."""
    runs = complete_runs(folder, study)
    if study.stealth_limit is not None:
        return [search_table(runs, study.stealth_limit)]
    pairs = beside(study.published, runs) if study.published else []
    return [matrix_table(runs), *([published_table(study.published, pairs)] if pairs else [])]


def write_parquet(table: Path) -> Path:
    """`results.parquet` beside `results.csv`, its columns typed by their values. Raises ImportError without pyarrow."""
    from pyarrow import csv, parquet  # an extra

    path = table.with_suffix(".parquet")
    rows = csv.read_csv(table)
    with whole_file(path) as part:
        parquet.write_table(rows, part)
    return path
