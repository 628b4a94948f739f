"""The history of a run, read from the lines of `rounds.jsonl`, which are its only copy.

A line is one round of one track (docs/records.md). The first line of a track also has `start`, the line of the compared round
`before_trigger` and `after_trigger`, the last line in which the coalition may act `end_of_attack`, and the last line `whole_accuracy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

TrackName = Literal["attacked", "twin", "control", "honest-trigger"]
TRACKS: tuple[TrackName, ...] = ("attacked", "twin", "control", "honest-trigger")  # in the order in which they are played
Line = Mapping[str, Any]


def accuracy_by_class(confusion: list[list[int]]) -> list[float | None]:
    """The recall of each class, percent, from a confusion matrix with one row per true class; None for a class without an example."""
    return [round(100.0 * row[i] / sum(row), 4) if sum(row) else None for i, row in enumerate(confusion)]


@dataclass(frozen=True)
class TrackHistory:
    """The lines of one track, in order of rounds. Accuracies are in percent: `evaluated` on `evaluate.examples` test examples, the others
    on the whole test set; None if not measured."""

    lines: tuple[Line, ...] = ()

    @property
    def rounds(self) -> int:
        return len(self.lines)

    @property
    def is_complete(self) -> bool:
        """Whether the track was played to its end."""
        return bool(self.lines) and "whole_accuracy" in self.lines[-1]

    @cached_property
    def fired(self) -> tuple[int, ...]:
        """The rounds in which a trigger fired."""
        return tuple(line["round"] for line in self.lines if line.get("attack", {}).get("fired"))

    @cached_property
    def missed(self) -> dict[int, str]:
        """The rounds in which a trigger that was due was given up, and why."""
        return {line["round"]: line["missed_trigger"] for line in self.lines if "missed_trigger" in line}

    @property
    def spent(self) -> tuple[int, ...]:
        """The rounds in which a trigger fired or was given up."""
        return tuple(sorted({*self.fired, *self.missed}))

    @cached_property
    def evaluated(self) -> dict[int, float]:
        """Accuracy by round."""
        return {line["round"]: line["accuracy"] for line in self.lines if "accuracy" in line}

    @property
    def start(self) -> Mapping[str, Any]:
        """What was measured before round 1."""
        return self.lines[0].get("start", {}) if self.lines else {}

    @property
    def before_trigger(self) -> float | None:
        return next((line["before_trigger"] for line in self.lines if "before_trigger" in line), None)

    @property
    def after_trigger(self) -> float | None:
        """After the first trigger."""
        return next((line["after_trigger"] for line in self.lines if "after_trigger" in line), None)

    @property
    def after_last_trigger(self) -> float | None:
        return next((line["after_trigger"] for line in reversed(self.lines) if "after_trigger" in line), None)

    @property
    def end_of_attack(self) -> float | None:
        """After the last round in which the coalition may have acted."""
        return next((line["end_of_attack"] for line in reversed(self.lines) if "end_of_attack" in line), None)

    def confusion(self, place: str) -> list[list[int]] | None:
        """The confusion matrix at a place: `start`, `before_trigger`, `after_trigger` (the first of each), `end_of_attack`, or `final`."""
        if place == "start":
            return self.start.get("whole_confusion")
        if place == "final":
            return self.lines[-1].get("whole_confusion") if self.lines else None
        return next((line[f"{place}_confusion"] for line in self.lines if f"{place}_confusion" in line), None)

    @property
    def final(self) -> float | None:
        return self.lines[-1].get("whole_accuracy") if self.lines else None

    def in_phase(self, *phases: str) -> list[Line]:
        """The lines of some phases."""
        return [line for line in self.lines if line["phase"] in phases]

    def count(self, section: str, name: str) -> int:
        """The number of rounds in which a figure of a section was not 0."""
        return sum(bool(line.get(section, {}).get(name)) for line in self.lines)


def history_of(lines: Iterable[Line]) -> dict[str, TrackHistory]:
    """The tracks of a run's lines, by name."""
    tracks: dict[str, list[Line]] = {}
    for line in lines:
        tracks.setdefault(line["track"], []).append(line)
    return {name: TrackHistory(tuple(track)) for name, track in tracks.items()}
