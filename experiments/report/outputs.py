"""Everything that a study's records give: results.csv, the figures and report.html, written anew from them alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from experiments.report.figures.run_figures import draw_figures
from experiments.report.figures.study_figures import (
    heat_figure,
    published_figure,
    ratio_figure,
    rounds_figure,
    search_figure,
    stealth_figure,
)
from experiments.report.figures.style import PAGE
from experiments.report.frame import write_csv, write_parquet
from experiments.report.html_page import write_report
from experiments.report.latex import write_latex
from experiments.report.measures import measured
from experiments.report.tables import matrix_table, published_table, run_table, search_table
from experiments.report.views import (
    accuracy_matrix,
    ratio_axis,
    ratio_curves,
    round_panels,
    search_ranking,
    stealth_points,
    worst_cases,
)
from experiments.report.worst_case import map_matrices, write_map
from experiments.sweep.numbers import published_numbers
from experiments.sweep.published import Pair, match_published
from experiments.sweep.study import Run, Study, complete_runs
from fl_sim.atomic_files import writing
from fl_sim.config.resolve import ConfigError


def write_outputs(
    folder: Path, study: Study, runs: Sequence[Run] | None = None, *, parquet: bool = False, latex: bool = False, width: float = PAGE
) -> list[Path]:
    """Write all that the complete runs of a study (at least one) give into its folder; returns the paths, figures as PNG (each has its
    PDF beside it).

    A folder that is itself a run keeps its own figures: they are drawn anew, and the study's outputs go into `report/` below it.
    Args: runs, of `complete_runs` (default: read); parquet and latex, whether to write results.parquet and results.tex; width,
    of the figures in inches. Raises ConfigError
    without a complete run.
    """
    runs = complete_runs(folder, study).runs if runs is None else runs
    if not runs:
        raise ConfigError([f"expected {str(folder)!r} to hold a complete run, got {len(study.folders)} that are incomplete or damaged"])
    of_run: list[Path] = []
    if study.folders == (".",):
        of_run, folder = draw_figures(folder, width), folder / "report"
        with writing(folder):
            folder.mkdir(exist_ok=True)
    files: dict[str, Callable[[Path], None]] = {"results.csv": lambda path: write_csv(path, runs)}
    if parquet:
        files["results.parquet"] = lambda path: write_parquet(path, runs)
    if latex:
        files["results.tex"] = lambda path: write_latex(path, study, runs)
    pairs = _pairs(study, runs)
    if study.stealth_limit is not None and study.axes:
        files["map.csv"] = lambda path, limit=study.stealth_limit: write_map(path, runs, study.axes, limit)
    files |= {
        f"{name}.png": lambda path, draw=draw: draw(path.with_suffix("")) for name, draw in _figures(study, runs, pairs, width).items()
    }
    files["report.html"] = lambda path: write_report(path, study, runs, pairs)
    for name, write in files.items():
        write(folder / name)
    return [*of_run, *(folder / name for name in files)]


def study_tables(folder: Path, study: Study, runs: Sequence[Run] | None = None) -> list[Table]:
    """What a study's command prints. Args: as of `write_outputs`."""
    runs = complete_runs(folder, study).runs if runs is None else runs
    if study.folders == (".",):
        return [run_table(runs[0].summary)]
    if study.stealth_limit is not None:
        maps = map_matrices(runs, study.axes, study.stealth_limit) if study.axes else {}
        ranking = search_table(search_ranking(runs, study.stealth_limit), study.stealth_limit)
        return [*map(matrix_table, maps.values()), *([] if maps else [ranking])]
    pairs = _pairs(study, runs)
    others = [matrix_table(matrix) for name, matrix in measured(runs).items() if name != "worst_class"]  # every run has a worst class
    return [matrix_table(accuracy_matrix(runs)), *others, *([published_table(study.published, pairs)] if pairs else [])]


def _pairs(study: Study, runs: Sequence[Run]) -> list[Pair]:
    """The published numbers with ours; none for an entry that this version does not have."""
    return match_published(study.published, runs) if study.published in published_numbers() else []


def _figures(study: Study, runs: Sequence[Run], pairs: Sequence[Pair], width: float) -> dict[str, Callable[[Path], None]]:
    """What draws each figure, given a path without suffix."""
    figures: dict[str, Callable[[Path], None]] = {}
    limit = study.stealth_limit
    if limit is None:
        figures["accuracy"] = lambda path: rounds_figure(path, round_panels(runs), width)
        figures["matrix"] = lambda path: heat_figure(path, worst_cases(runs) or accuracy_matrix(runs), width)
        for name, matrix in measured(runs).items():
            figures[name] = lambda path, matrix=matrix: heat_figure(path, matrix, width)
        if axis := ratio_axis(runs):
            figures["poison_ratio"] = lambda path: ratio_figure(path, ratio_curves(runs, axis), axis, width)
    elif study.axes:
        for name, matrix in map_matrices(runs, study.axes, limit).items():
            figures[name] = lambda path, matrix=matrix: heat_figure(path, matrix, width)
    else:
        figures["search"] = lambda path: search_figure(path, runs, limit, width)
    if not (points := stealth_points(runs)).empty:
        figures["stealth"] = lambda path: stealth_figure(path, points, width)
    if pairs:
        figures["published"] = lambda path: published_figure(path, pairs, published_numbers()[study.published]["source"], width)
    return figures
