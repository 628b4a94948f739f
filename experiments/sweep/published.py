"""Accuracies that papers published, matched with the runs of a study that have the same labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.sweep.numbers import published_numbers
from experiments.sweep.study import Run

LEAST_DIFFERENCE = 0.5  # points: about the standard error of a difference of two accuracies on 10,000 examples


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
        return float(np.mean(self.ours))

    @property
    def setting(self) -> str:
        """The labels as one line of text; axes other than strategy and attack are named."""
        named = [value if axis in ("strategy", "attack") else f"{axis.rpartition('.')[2]} {value}" for axis, value in self.labels.items()]
        return " · ".join([*named, *([f"round {self.round}"] if self.round else [])])


class Agreement(NamedTuple):
    """Pairs of neighbouring settings whose published accuracies differ: in how many ours have the same order, the other, or are equal."""

    same: int
    other: int
    equal: int

    def __str__(self) -> str:
        pairs = sum(self)
        share = f" ({100 * self.same / pairs:.0f} %)" if pairs else ""
        return f"same order in {self.same} of {pairs} neighbouring pairs{share}, equal in {self.equal}, the other in {self.other}"


def match_published(entry: str, runs: Sequence[Run]) -> list[Pair]:
    """The numbers of an entry of published.json with ours; those that no run belongs to are left out."""
    pairs: list[Pair] = []
    for number in published_numbers()[entry]["numbers"]:
        labels, round_ = number["at"], number.get("round")
        runs_there = [run for run in runs if labels.items() <= run.cell.labels.items()]
        ours = [run.curve.get(round_) if round_ else run.summary["accuracy"]["after_trigger"] for run in runs_there]
        if measured := [value for value in ours if value is not None]:
            pairs.append(Pair(labels, round_, number["accuracy"], measured))
    return pairs


def agreement(entry: str, pairs: Sequence[Pair]) -> Agreement:
    """Compare the order of settings that are one step apart on one of the entry's `chains` and alike in all else, where the published
    accuracies differ by more than `LEAST_DIFFERENCE`."""
    by_setting = {frozenset(pair.at.items()): pair for pair in pairs}
    same = other = equal = 0
    for pair in pairs:
        for axis, chains in published_numbers()[entry]["chains"].items():
            steps = [chain[chain.index(pair.at[axis]) + 1] for chain in chains if pair.at[axis] in chain[:-1]]
            for step in dict.fromkeys(steps):
                neighbour = by_setting.get(frozenset({**pair.at, axis: step}.items()))
                if neighbour is None or abs(theirs := neighbour.published - pair.published) <= LEAST_DIFFERENCE:
                    continue
                ours = (neighbour.mean - pair.mean) * theirs
                same, other, equal = same + (ours > 0), other + (ours < 0), equal + (ours == 0)
    return Agreement(same, other, equal)


def over_seeds(values: Sequence[float]) -> str:
    """`mean (least to most)` of one or several accuracies."""
    if not values:
        return "-"
    mean = float(np.mean(values))
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})"
