"""What a study's runs were measured by beside the accuracy: one class, the attacker's success, the clients that a strategy left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from experiments.report.views import Matrix, matrix_of
from experiments.sweep.search import classes_left, worst_class_left
from experiments.sweep.study import Run


class Measure(NamedTuple):
    """A figure of a run, percent; None if the run was not measured by it. `what` in words."""

    what: str
    value: Callable[[Run], float | None]


def _worst_class(run: Run) -> float | None:
    return worst_class_left(run.summary)


def _attacked_class(run: Run) -> float | None:
    key = "attack.attacked" if run.config["attack.name"] == "moles" else "attack.class"
    attacked, classes = run.config[key], classes_left(run.summary)
    return classes[attacked] if 0 <= attacked < len(classes) else None


def _entry(section: str, name: str, scale: float = 1.0) -> Callable[[Run], float | None]:
    def value(run: Run) -> float | None:
        entries: Mapping[str, float | None] = run.summary.get(section) or {}
        entry = entries.get(name)
        return None if entry is None else scale * entry

    return value


WHEN = "after the trigger, or at the end of the attack"
MEASURES: Mapping[str, Measure] = {
    "attacked_class": Measure(f"accuracy of the attacked class {WHEN} (%)", _attacked_class),
    "success": Measure("attack success rate at the end of the attack (%)", _entry("attack_success_rate", "end_of_attack")),
    "success_final": Measure("attack success rate at the end of the run (%)", _entry("attack_success_rate", "final")),
    "true_positives": Measure("malicious clients that the strategy left out (%)", _entry("filtering", "true_positive_rate", 100.0)),
    "false_positives": Measure("honest clients that the strategy left out (%)", _entry("filtering", "false_positive_rate", 100.0)),
    "worst_class": Measure(f"accuracy of the worst class {WHEN} (%)", _worst_class),
}


def measured(runs: Sequence[Run]) -> dict[str, Matrix]:
    """A matrix (percent) for each of `MEASURES` that some run of a study has, by its name."""
    values = {name: pd.Series([measure.value(run) for run in runs], dtype=float) for name, measure in MEASURES.items()}
    return {name: matrix_of(runs, column, MEASURES[name].what) for name, column in values.items() if column.notna().any()}
