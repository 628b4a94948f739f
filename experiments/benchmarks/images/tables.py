"""`python -m experiments.benchmarks.images.tables RUNS`: the tables of docs/results/images.md, from the folders of their studies.

Prints Markdown: means, least and most over the seeds. Writes `images.csv` and `moles.csv`, one row per run, if there are such studies.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pandas as pd

from experiments.records.reading import read_rounds
from experiments.sweep.study import Run, complete_runs, read_study
from fl_sim.atomic_files import write_whole

LAST = 10  # rounds of the phase over which the accuracies of moles are averaged
NEAR = 5.0  # points below the clean run: recovered
AXES = (
    *("study", "strategy", "attack", "attack.surface", "attack.poison-ratio", "attack.choice", "server.learning-rate"),
    *("attack.epsilon", "attack.image-fraction", "cleaning", "cleaning.name"),
)
MOVED = ("images", "cleaning", "detectors", "purifiers")  # studies of moved images begin with these words
CLEAN = "clean"  # the scale of a study of moles without an attacker

Row = dict[str, Any]
Lines = Sequence[Mapping[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = folders("images", "tables", "The tables of docs/results/images.md, from the folders of their studies.", argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    studies = studies_of(arguments.runs)
    moles = {name: runs for name, runs in studies.items() if name.startswith("moles")}
    others = [image_row(name, run) for name, runs in studies.items() if name.startswith(MOVED) for run in runs]
    for name, rows in (("images", others), ("moles", mole_rows(moles))):
        if not rows:
            continue
        frame = pd.DataFrame(rows)
        write_whole(arguments.output / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n", float_format="%.5g"))
        print(f"\n## {name}\n\n{markdown(frame)}")
    return 0


def folders(package: str, module: str, description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command that reads studies: `runs`, the folder with their folders, and `output`."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.benchmarks.{package}.{module}", description=description)
    parser.add_argument("runs", type=Path, help="the folder with the studies' folders")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs") / package)
    return parser.parse_args(argv)


def studies_of(runs: Path) -> dict[str, list[Run]]:
    """The complete runs of each study below a folder, by its name."""
    places = [path.parent for path in sorted(runs.glob("*/study.json"))]
    return {place.name: list(complete_runs(place, read_study(place)).runs) for place in places}


def image_row(study: str, run: Run) -> Row:
    """One run with moved images. Accuracies in percent on the whole test set: before the first trigger, after it, after the last one; of
    the control, the honest-trigger track and the clean twin. `acted`: rounds; `attacked_ms`, `clean_ms`: medians of a round."""
    tracks, summary = read_rounds(run.folder), run.summary
    row = _labels(study, run) | {"burn_in": summary["accuracy"]["burn_in"]}
    for name, lines in (("", tracks["attacked"]), ("control_", tracks.get("control", [])), ("honest_", tracks.get("honest-trigger", []))):
        row[f"{name}before"], row[f"{name}after"] = _first(lines, "before_trigger"), _first(lines, "after_trigger")
        row[f"{name}end"] = _first(lines[::-1], "after_trigger")
    row["twin_after"] = _first(tracks.get("twin", []), "after_trigger")
    classes = summary["accuracy_by_class"]["end_of_attack"] or summary["accuracy_by_class"]["final"]
    row["worst_class_end"] = min(classes)
    row["acted"] = (summary["coalition"] or {}).get("acted")
    row |= {f"cleaning_{name}": value for name, value in (summary["cleaning"] or {}).items()}
    phase = [line for line in tracks["attacked"] if line["phase"] == "accumulate"]
    row["attacked_ms"] = 1000.0 * median(line["seconds"]["train"] for line in phase)
    row["clean_ms"] = 1000.0 * median(line["seconds"]["train"] for line in tracks["twin"]) if "twin" in tracks else None
    return row


def mole_rows(studies: Mapping[str, Sequence[Run]]) -> list[Row]:
    """One row per run with moles: accuracies (percent) of the attacked class, the confounding one, the others and all, over the last rounds
    of the phase, beside the same of the run without an attacker (same study, rule and seed) or, without one, of the burnt-in model;
    `recovered`, rounds after the phase until the attacked class is near it again; alarms of the monitor in the phase."""
    clean = {
        (name.removesuffix(f"-{CLEAN}"), run.cell.labels["strategy"], run.config["seed"]): _accuracies(run)
        for name, runs in studies.items()
        if name.endswith(f"-{CLEAN}")
        for run in runs
    }
    rows: list[Row] = []
    for name, runs in studies.items():
        for run in runs:
            lines = read_rounds(run.folder)["attacked"]
            key = next(
                (key for key in clean if name.startswith(key[0]) and key[1:] == (run.cell.labels.get("strategy"), run.config["seed"])), None
            )
            beside = clean[key] if key else _start(lines)
            a, c = run.config["attack.attacked"], run.config["attack.confounding"]
            row = _labels(name, run)
            for kind, (by_class, total) in (("", _accuracies(run)), ("clean_", beside)):
                rest = [value for place, value in enumerate(by_class) if place not in (a, c)]
                row |= {f"{kind}{place}": value for place, value in (("total", total), ("worst", min(by_class)), ("rest", fmean(rest)))}
                row |= {f"{kind}attacked": by_class[a], f"{kind}confounding": by_class[c]} if a >= 0 else {}
            phase, after = (
                [line for line in lines if line["phase"] == "accumulate"],
                [line for line in lines if line["phase"] == "recover" and "by_class" in line],
            )
            if a >= 0 and after:
                near = [line["round"] - len(phase) for line in after if line["by_class"][a] >= beside[0][a] - NEAR]
                row["recovered"] = min(near, default=None)
            alarms = [line.get("alarm_class", -1) for line in phase if line.get("alarm")]
            row |= {"alarm": -1 in alarms, "alarm_attacked": a in alarms and a >= 0, "alarm_other": any(x >= 0 and x != a for x in alarms)}
            rows.append(row)
    return rows


def _accuracies(run: Run) -> tuple[list[float], float]:
    """By class and in all, the means over the evaluated ones of the last rounds of the phase."""
    lines = [line for line in read_rounds(run.folder)["attacked"] if line["phase"] == "accumulate"]
    last = [line for line in lines if line["round"] > len(lines) - LAST and "by_class" in line]
    if len(lines) < LAST:  # a run of a few steps: what they left
        last = last[-1:]
    return [fmean(values) for values in zip(*(line["by_class"] for line in last), strict=True)], fmean(line["accuracy"] for line in last)


def _start(lines: Lines) -> tuple[list[float], float]:
    return list(lines[0]["start"]["by_class"]), lines[0]["start"]["accuracy"]


def _first(lines: Lines, name: str) -> float | None:
    return next((line[name] for line in lines if name in line), None)


def _labels(study: str, run: Run) -> Row:
    return {"study": study, **run.cell.labels}


def spread(values: pd.Series) -> str:
    """Mean (least to most) of what was measured; of truth values how many."""
    known = values.dropna()
    if known.empty:
        return "-" if values.dtype != bool else "0"
    if known.map(lambda value: isinstance(value, bool)).all():
        return f"{int(known.sum())} of {len(values)}"
    known = known.astype(float)
    missing = f" ({len(values) - len(known)} never)" if len(known) < len(values) else ""
    return f"{known.mean():.1f} ({known.min():.1f} to {known.max():.1f}){missing}"


def markdown(frame: pd.DataFrame) -> str:
    """A table with one row per combination of the axes, and of each figure the spread over the seeds."""
    axes = [axis for axis in AXES if axis in frame.columns]
    parts: list[str] = []
    for study, group in frame.groupby("study", sort=False):
        here = [axis for axis in axes if axis != "study" and group[axis].notna().any()]
        figures = [name for name in group.columns if name not in (*AXES, "seed") and group[name].notna().any()]
        cells = (
            group.groupby(here, sort=False, dropna=False)[figures].agg(spread).reset_index()
            if here
            else group[figures].agg(spread).to_frame().T
        )
        lines = [" | ".join(cells.columns), " | ".join(["---"] * len(cells.columns))]
        lines += [" | ".join(map(str, values)) for values in cells.itertuples(index=False)]
        parts.append(f"### {study}\n\n" + "\n".join(f"| {line} |" for line in lines))
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
