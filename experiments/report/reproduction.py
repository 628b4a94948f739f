"""The papers' tables beside ours, from small records that are kept with the code.

`python -m experiments.report.reproduction keep DIR --data NAME` keeps a study's numbers in experiments/results/<study>.json;
`python -m experiments.report.reproduction` writes the tables and figures of docs/reproduction.md anew from these.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.report.figures.study_figures import published_figure, stealth_figure
from experiments.report.views import seeds_text
from experiments.sweep.numbers import published_numbers
from experiments.sweep.published import Pair, agreement, match_published, over_seeds
from experiments.sweep.study import complete_runs, read_study, result_keys
from fl_sim.atomic_files import write_whole
from fl_sim.config.resolve import ConfigError

RESULTS = Path(__file__).parent.parent / "results"
PAGE = Path(__file__).parent.parent.parent / "docs" / "reproduction.md"
COLUMNS = {
    "before the trigger": "accuracy.before_trigger",
    "after": "accuracy.after_trigger",
    "drop": "drop",
    "stealth gap": "stealth_gap",
    "gain over control": "gain",
    "at the end": "accuracy.final",
}
FIGURES = ("accuracy", "drop", "stealth_gap", "gain", "worst_loss_in_phase", "trigger_round")  # of a summary, in a record


def record_of(folder: Path, data: str) -> dict[str, Any]:
    """The record of a study: its base, where it ran and with what, each run's labels and accuracies (percent; differences in points),
    and the published numbers beside ours. Raises ConfigError without a complete run, and for damaged ones.

    Args: folder, the study's; data, the name of the data for a reader ("CIFAR-10 (JPEG copy)").
    """
    study = read_study(folder)
    runs, problems = complete_runs(folder, study)
    if problems or not runs:
        raise ConfigError(problems or [f"expected DIR to hold a complete run, got {str(folder)!r}"])
    machines = {json.dumps({key: run.meta[key] for key in ("device", "versions", "git_commit")}, sort_keys=True) for run in runs}
    pairs = match_published(study.published, runs) if study.published else []
    return {
        "study": study.name,
        "published": study.published,
        "data": data,
        "model": sorted({f"{run.config['model.name']}, {run.config['model.norm']} norm" for run in runs}),
        "machines": [json.loads(machine) for machine in sorted(machines)],
        "seeds": sorted({run.config["seed"] for run in runs}),
        "cells": len(study.cells),
        "seconds": round(sum(run.summary["seconds"]["total"] for run in runs)),
        "base": {key: value for key, value in result_keys(study.base).items() if key != "data.root"},
        "runs": [{"labels": run.cell.labels, **{name: run.summary[name] for name in FIGURES}} for run in runs],
        "pairs": [{"labels": pair.labels, "round": pair.round, "published": pair.published, "ours": pair.ours} for pair in pairs],
    }


def table_of(record: Mapping[str, Any]) -> str:
    """A record as Markdown: where it is from, and "published / ours", or before and after the trigger where nothing was published."""
    machines = dict.fromkeys(
        f"{machine['device']}, " + ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "flwr", "ray"))
        for machine in record["machines"]
    )
    what = f"{record['data']}, {' and '.join(record['model'])}"
    where = f"{what}; {' and '.join(machines)}; seeds {', '.join(map(str, record['seeds']))}"
    extent = f"{len(record['runs'])} of {record['cells']} cells in {record['seconds'] / 60:.0f} min of work"
    pairs = [Pair(**pair) for pair in record["pairs"]]
    ours = [run for run in record["runs"] if not any(pair.labels.items() <= run["labels"].items() for pair in pairs)]
    parts = [f"{where}; {extent}"]
    if pairs:
        parts = [f"{parts[0]}; **{agreement(record['published'], pairs)}**", _grid(record["published"], pairs)]
    if ours:
        parts.append(_runs_table(ours))
    return "\n\n".join(parts)


def _grid(entry: str, pairs: Sequence[Pair]) -> str:
    row_axes = published_numbers()[entry]["rows"]
    rows: dict[str, dict[str, Pair]] = {}
    for pair in pairs:
        row, column = (
            " · ".join(_named(axis, value) for axis, value in pair.at.items() if (axis in row_axes) == wanted) for wanted in (True, False)
        )
        rows.setdefault(row, {})[column] = pair
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["published / ours", *columns], ["---"] * (1 + len(columns))]
    for row, there in rows.items():
        cells = [f"{there[column].published:.1f} / **{over_seeds(there[column].ours)}**" if column in there else "-" for column in columns]
        lines.append([row, *cells])
    return _markdown(lines)


def _runs_table(runs: Sequence[Mapping[str, Any]]) -> str:
    frame = _frame(runs, "seed")
    figures = frame.reindex(columns=list(COLUMNS.values())).set_axis(list(COLUMNS), axis=1)
    texts = figures.groupby(frame["name"], sort=False).agg(seeds_text)
    texts = texts.loc[:, (texts != "-").any()]
    return _markdown([["", *texts.columns], ["---"] * (1 + len(texts.columns)), *texts.itertuples()])


def _named(axis: str, value: str) -> str:
    return value if axis in ("strategy", "attack") else f"{axis.rpartition('.')[2]} {value}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _frame(runs: Sequence[Mapping[str, Any]], *without: str) -> pd.DataFrame:
    """One row per run of a record: its figures (`accuracy.final`), and its `name`, its labels but those of the axes `without`."""
    names = [" · ".join(_named(axis, value) for axis, value in run["labels"].items() if axis not in without) for run in runs]
    figures = pd.json_normalize([{name: value for name, value in run.items() if name != "labels"} for run in runs])
    return figures.astype(float).assign(name=names)


def with_tables(page: str, records: Mapping[str, Mapping[str, Any]]) -> str:
    """A page with what stands between `<!-- NAME -->` and `<!-- end -->` replaced by the table of the record NAME.

    Raises KeyError for a name without a record.
    """
    return re.sub(
        r"(<!-- ([\w-]+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{table_of(records[match[2]])}\n{match[3]}",
        page,
        flags=re.DOTALL,
    )


def records() -> dict[str, dict[str, Any]]:
    """All records, by study."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.report.reproduction", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    keep = commands.add_parser("keep", help="keep a study's numbers")
    keep.add_argument("folder", type=Path, metavar="DIR")
    keep.add_argument("--data", required=True, metavar="NAME", help="the data's name for a reader")
    args = parser.parse_args(argv)
    if args.command == "keep":
        try:
            record = record_of(args.folder, args.data)
        except ConfigError as error:
            parser.error("; ".join(error.problems))
        RESULTS.mkdir(exist_ok=True)
        write_whole(RESULTS / f"{record['study']}.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
        return 0
    write_whole(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), records()))
    for name, record in records().items():
        figure = PAGE.parent / f"reproduction_{name}"
        if record["pairs"]:
            source = published_numbers()[record["published"]]["source"]
            published_figure(figure, [Pair(**pair) for pair in record["pairs"]], f"{source}; {record['data']}")
        else:
            points = _frame(record["runs"], "seed", "strategy")[["name", "stealth_gap", "drop"]].dropna()
            if not points.empty:
                stealth_figure(figure, points.set_axis(["group", "gap", "drop"], axis=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
