"""Accuracies that papers published, beside the runs of a study with the same labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.records.folder import read_rounds

if TYPE_CHECKING:
    from experiments.sweep.study import Run

NUMBERS = Path(__file__).parent / "published.json"
TOLD_APART = 0.5  # points: about the standard error of a difference of two accuracies on 10,000 examples


class Pair(NamedTuple):
    """A published accuracy (percent) and ours, a value a seed, of the setting with these labels; after the trigger, or after a round."""

    labels: Mapping[str, str]
    round: int | None
    published: float
    ours: Sequence[float]

    @property
    def at(self) -> Mapping[str, str]:
        """The labels, with the round among them if there is one."""
        return {**self.labels, "round": str(self.round)} if self.round else self.labels

    @property
    def mean(self) -> float:
        """Ours, over seeds."""
        return sum(self.ours) / len(self.ours)

    @property
    def setting(self) -> str:
        named = [value if axis in ("strategy", "attack") else f"{axis.rpartition('.')[2]} {value}" for axis, value in self.labels.items()]
        return " · ".join([*named, *([f"round {self.round}"] if self.round else [])])


class Agreement(NamedTuple):
    """Of how many neighbouring settings that a paper tells apart ours are in the same order, in the other, or equal."""

    same: int
    other: int
    equal: int

    def __str__(self) -> str:
        told = sum(self)
        share = f" ({100 * self.same / told:.0f} %)" if told else ""
        return f"same order in {self.same} of {told} neighbouring pairs{share}, equal in {self.equal}, the other in {self.other}"


@cache
def published_numbers() -> Mapping[str, Any]:
    """Every entry of published.json (a process-wide constant): its source, what was measured, and accuracies (percent) by the labels of
    a study's axes."""
    return json.loads(NUMBERS.read_text(encoding="utf-8"))


def beside(entry: str, runs: Sequence[Run]) -> list[Pair]:
    """The numbers of an entry of published.json with ours; those that no run belongs to are left out."""
    curves: dict[Path, dict[int, float]] = {}
    pairs: list[Pair] = []
    for number in published_numbers()[entry]["numbers"]:
        labels, round_ = number["at"], number.get("round")
        same = [run for run in runs if labels.items() <= run.cell.labels.items()]
        if round_ is None:
            ours = [run.summary["accuracy"]["after_trigger"] for run in same]
        else:
            for run in same:
                if run.folder not in curves:
                    lines = read_rounds(run.folder)["attacked"]
                    curves[run.folder] = {line["round"]: line["accuracy"] for line in lines if "accuracy" in line}
            ours = [curves[run.folder].get(round_) for run in same]
        if found := [value for value in ours if value is not None]:
            pairs.append(Pair(labels, round_, number["accuracy"], found))
    return pairs


def agreement(entry: str, pairs: Sequence[Pair]) -> Agreement:
    """Compare the order of settings that are one step apart on one of the entry's `chains` and alike in all else, where the published
    accuracies differ by more than `TOLD_APART`."""
    by_setting = {frozenset(pair.at.items()): pair for pair in pairs}
    same = other = equal = 0
    for pair in pairs:
        for axis, chains in published_numbers()[entry]["chains"].items():
            steps = [chain[chain.index(pair.at[axis]) + 1] for chain in chains if pair.at[axis] in chain[:-1]]
            for step in dict.fromkeys(steps):
                neighbour = by_setting.get(frozenset({**pair.at, axis: step}.items()))
                if neighbour is None or abs(theirs := neighbour.published - pair.published) <= TOLD_APART:
                    continue
                ours = (neighbour.mean - pair.mean) * theirs
                same, other, equal = same + (ours > 0), other + (ours < 0), equal + (ours == 0)
    return Agreement(same, other, equal)
