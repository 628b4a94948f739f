"""`python -m experiments.benchmarks.by_class.tables RUNS`: the tables of docs/results/dgc2.md, from the folders of its studies.

Prints Markdown: one row per attack, its values by seed. Writes `by_class.csv`, one row per run. For any study whose runs are
evaluated by class.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import pandas as pd

from experiments.benchmarks.images.tables import folders, studies_of
from experiments.records.reading import read_rounds
from experiments.sweep.study import Run
from fl_sim.atomic_files import write_whole
from fl_sim.config.resolve import NOT_HASHED

APART = (*NOT_HASHED, "attack.", "schedule.", "evaluate.", "twin", "control")  # keys in which a run may differ from the one beside it
RESTRICTS = ("returned", "silenced", "dropped")  # figures of dgc-2 above 0 in a round in which it restricted somebody

Row = dict[str, Any]


class Model(NamedTuple):
    """A model on the whole test set: accuracy of all and of each class (c,), in percent."""

    all: float
    classes: list[float]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = folders("by_class", "tables", "What an attack took of each class, from the folders of studies.", argv)
    rows = list(rows_of(studies_of(arguments.runs)))
    if not rows:
        print(f"no run below {arguments.runs} was evaluated by class", file=sys.stderr)
        return 1
    arguments.output.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    write_whole(arguments.output / "by_class.csv", frame.to_csv(index=False, lineterminator="\n", float_format="%.5g"))
    print(markdown(rows))
    return 0


def rows_of(studies: Mapping[str, Sequence[Run]]) -> Iterator[Row]:
    """One row per run: the last model of its attacked track, and beside it that of the run without an attacker with the same seed and the
    same keys but for `APART`, or else of its twin (empty without either, and of a run without an attacker)."""
    runs = [(name, run) for name, here in studies.items() for run in here]
    clean = {_beside(run): last_model(run, "attacked") for _, run in runs if _is_clean(run)}
    for name, run in runs:
        model = last_model(run, "attacked")
        if model is not None:
            yield _row(name, run, model, None if _is_clean(run) else clean.get(_beside(run)) or last_model(run, "twin"))


def _is_clean(run: Run) -> bool:
    return run.config["attack.name"] == "none"


def _beside(run: Run) -> str:
    return json.dumps({key: value for key, value in run.config.items() if not key.startswith(APART)}, sort_keys=True)


def last_model(run: Run, track: str) -> Model | None:
    """The last model of a track that was evaluated on the whole test set by class; None without one."""
    for line in reversed(read_rounds(run.folder).get(track, [])):
        if confusion := line.get("whole_confusion"):
            right = [row[place] for place, row in enumerate(confusion)]
            return Model(
                100.0 * sum(right) / sum(map(sum, confusion)),
                [100.0 * own / max(sum(row), 1) for own, row in zip(right, confusion, strict=True)],
            )
    return None


def _row(study: str, run: Run, model: Model, beside: Model | None) -> Row:
    config, filtering = run.config, run.summary["filtering"] or {}
    own = ":" in config["attack.name"]  # an attack from a file has a target of its own
    target = -1 if own or _is_clean(run) else config["attack.class"]
    row: Row = {
        "study": study,
        "attack": config["attack.objective"] if config["attack.name"] == "accumulative" else config["attack.name"].rpartition(":")[2],
        "malicious": 100.0 * run.summary["poison_ratio"]["configured"],
        "class": target if target >= 0 else None,
        "strategy": config["strategy.name"],
        "seed": config["seed"],
        "rounds": run.summary["rounds"],
        "all": model.all,
        "worst": min(model.classes),
        "attacked": model.classes[target] if target >= 0 else None,
    }
    if beside is not None:
        lost = [was - now for was, now in zip(beside.classes, model.classes, strict=True)]
        row |= {
            "clean_all": beside.all,
            "clean_worst": min(beside.classes),
            "clean_attacked": beside.classes[target] if target >= 0 else None,
            "most_lost": max(lost),
            "most_lost_class": lost.index(max(lost)),
        }
    figures = [line.get("strategy") or {} for line in read_rounds(run.folder)["attacked"]]
    row |= {
        "restricted": sum(any(here.get(name, 0.0) > 0.0 for name in RESTRICTS) or here.get("tightness", 1.0) < 1.0 for here in figures),
        "returns": int(sum(here.get("returned", 0.0) for here in figures)),
        "left_out_malicious": filtering.get("true_positive_rate"),
        "left_out_honest": filtering.get("false_positive_rate"),
    }
    return row | {f"class_{place}": value for place, value in enumerate(model.classes)}


def groups_of(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows that differ in the seed only, in its order: by study, percent of malicious clients, attack and attacked class."""

    def kind(row: Row) -> tuple[Any, ...]:
        return (row["study"], row["strategy"], row["malicious"], row["attack"], -1 if row["class"] is None else row["class"])

    return [list(here) for _, here in groupby(sorted(rows, key=lambda row: (*kind(row), row["seed"])), key=kind)]


def markdown(rows: Sequence[Row]) -> str:
    """A table with one row per group of `groups_of`, values by seed, of the clean run beside it in brackets."""
    lines = [
        "| study | attack | malicious (%) | class | all | this class | worst class | most that any class lost | restricted rounds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for here in groups_of(rows):
        lost = "; ".join(f"{row['most_lost']:.1f} of {row['most_lost_class']}" if "most_lost" in row else "-" for row in here)
        study, attack, malicious, target = (here[0][name] for name in ("study", "attack", "malicious", "class"))
        cells = [study, attack, f"{malicious:g}", "-" if target is None else str(target)]
        cells += [_values(here, name) for name in ("all", "attacked", "worst")]
        cells += [lost if any("most_lost" in row for row in here) else "-", ", ".join(str(row["restricted"]) for row in here)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _values(rows: Sequence[Row], name: str) -> str:
    if all(row[name] is None for row in rows):
        return "-"
    return "; ".join(
        "-" if row[name] is None else f"{row[name]:.1f}" + (f" ({row[f'clean_{name}']:.1f})" if f"clean_{name}" in row else "")
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
