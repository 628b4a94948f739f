"""`results.tex`: a study's table for a paper, in LaTeX's booktabs style."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.report.views import ACCURACY, TWIN, accuracies, clean_twins, label_frame, search_ranking
from experiments.report.worst_case import map_matrices
from experiments.sweep.study import Run, Study
from fl_sim.atomic_files import write_whole

SHOWN = 10  # settings of a search
SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "_%&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"}
    | {"·": r"$\cdot$", "±": r"$\pm$", "λ": r"$\lambda$"}
)


def write_latex(path: Path, study: Study, runs: Sequence[Run]) -> None:
    """Write a study's table (a `table` environment; the document needs `\\usepackage{booktabs}`): accuracy, mean ± standard deviation over
    the seeds, rows by the first axis, columns by the others. Of a search: the settings that left the least, or
    its map."""
    if study.stealth_limit is None:
        table, caption = _accuracy_table(runs)
    elif study.axes:
        table, caption = _map_table(runs, study.axes, study.stealth_limit)
    else:
        table, caption = _search_table(runs, study.stealth_limit)
    text = table.to_latex(
        escape=False,  # labels and caption are escaped here; the numbers are mathematics
        na_rep="--",
        column_format="l" + "r" * len(table.columns),
        multicolumn_format="c",
        caption=escaped(f"{study.name}: {caption}."),
        label="tab:" + re.sub(r"[^A-Za-z0-9]+", "-", study.name),
        position="tbp",
    )
    write_whole(path, "% \\usepackage{booktabs}\n" + text)


def escaped(text: str) -> str:
    """Text in which LaTeX's special characters stand for themselves."""
    return text.translate(SPECIAL)


def _accuracy_table(runs: Sequence[Run]) -> tuple[pd.DataFrame, str]:
    values, what = accuracies(runs)
    labels = label_frame(runs).map(escaped).rename(columns=escaped)
    if labels.columns.empty:
        labels["run"] = "all seeds"
    axis, *others = labels.columns
    texts = values.groupby([labels[name] for name in labels], sort=False).agg(_mean_and_deviation)
    seeds = int(values.groupby([labels[name] for name in labels]).count().max())
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    if not others:
        table = texts.to_frame(ACCURACY)
        if (twins := clean_twins(runs)) is not None:
            table[TWIN] = twins.groupby([labels[name] for name in labels], sort=False).agg(_mean_and_deviation)
        return table, f"{what}, {over}"
    columns = labels[others].drop_duplicates()
    order = pd.MultiIndex.from_frame(columns) if len(others) > 1 else pd.Index(columns[others[0]])
    return texts.unstack(others).reindex(index=labels[axis].unique(), columns=order).rename_axis(index=axis), f"{what}, {over}"


def _search_table(runs: Sequence[Run], limit: float) -> tuple[pd.DataFrame, str]:
    ranking = search_ranking(runs, limit).drop(columns="over").head(SHOWN)
    numbers = ranking[["left", "cost"]].map("${:.1f}$".format).set_axis(["left (\\%)", "cost (points)"], axis=1)
    settings = ranking.drop(columns=["left", "cost"]).map(escaped).rename(columns=escaped)
    table = pd.concat([numbers, settings], axis=1).set_axis(pd.RangeIndex(1, len(ranking) + 1), axis=0)
    what = f"the {len(table)} of {len(runs)} settings that left the least test accuracy after the trigger"
    return table, f"{what}; those whose phase cost more than {limit:g} points come last"


def _map_table(runs: Sequence[Run], axes: Sequence[str], limit: float) -> tuple[pd.DataFrame, str]:
    matrix = map_matrices(runs, axes, limit)["map"]
    table = matrix.grid(_mean_and_deviation).rename(index=escaped, columns=escaped)
    return table.rename_axis(index=escaped(matrix.axis), columns=None), matrix.what.replace(" (%)", ", percent")


def _mean_and_deviation(values: pd.Series) -> str:
    """`mean ± standard deviation` (of a sample, n - 1), or the one value."""
    present = values.dropna()
    if present.empty:
        return "--"
    return f"${present.mean():.1f}$" if len(present) == 1 else f"${present.mean():.1f} \\pm {present.std():.1f}$"
