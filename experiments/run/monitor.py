"""The server's monitor: an alarm when the accuracy on its probe set falls (the papers' threat model), of all examples or of one class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fl_sim.config import keys


class MonitorState(NamedTuple):
    """For a checkpoint: the best accuracy so far (percent) and the number of consecutive low rounds; and the same of each class, empty
    without `monitor.class-drop`. None: no accuracy so far."""

    best: float
    low: int
    class_best: tuple[float | None, ...] = ()
    class_low: tuple[int, ...] = ()


class Monitor:
    """Raises an alarm in the `patience`-th consecutive round with a probe accuracy at least `drop` points below the best so far, or with
    the accuracy of a class on the probe at least `class-drop` points below the best of this class so far.
    """

    def __init__(self, settings: keys.Monitor, start_accuracy: float, start_by_class: Sequence[float | None] = ()) -> None:
        self._settings = settings
        self._state = MonitorState(start_accuracy, 0, tuple(start_by_class), (0,) * len(start_by_class))
        self.alarm_class: int | None = None  # the class that raised the last alarm; None: the accuracy on the whole probe did

    @property
    def state(self) -> MonitorState:
        return self._state

    def resume(self, state: Sequence[object]) -> None:
        """Continue from a `state`, also from one that a checkpoint holds as a plain tuple."""
        self._state = MonitorState(*state)  # pyright: ignore[reportArgumentType]

    @property
    def low(self) -> bool:
        """Whether one of the last accuracies was too far below its best so far."""
        return self._state.low > 0 or any(self._state.class_low)

    @property
    def active(self) -> bool:
        """Whether the probe accuracy is needed: not with `monitor.action = "none"`."""
        return self._settings.action != "none"

    def forget(self) -> None:
        """Set the numbers of consecutive low rounds to 0, after the model was rolled back."""
        self._state = self._state._replace(low=0, class_low=(0,) * len(self._state.class_low))

    def alarm(self, round_: int, accuracy: float, by_class: Sequence[float | None] = ()) -> bool:
        """Record the probe accuracy (percent) after a round, and that of each class. Returns whether it raises the alarm.

        If classes and the whole probe raise it in the same round, the whole probe counts; of several classes the one that fell most.
        """
        best = max(self._state.best, accuracy)
        low = self._state.low + 1 if accuracy <= best - self._settings.drop else 0
        bests = [
            max(old, now, key=lambda value: -1.0 if value is None else value)
            for old, now in zip(self._state.class_best, by_class, strict=True)
        ]
        falls = [top - now if top is not None and now is not None else 0.0 for top, now in zip(bests, by_class, strict=True)]
        counts = [count + 1 if fall >= self._settings.class_drop else 0 for count, fall in zip(self._state.class_low, falls, strict=True)]
        self._state = MonitorState(best, low, tuple(bests), tuple(counts))
        fell = [number for number, count in enumerate(counts) if count == self._settings.patience]
        self.alarm_class = max(fell, key=lambda number: falls[number]) if fell and low != self._settings.patience else None
        return self.active and (low == self._settings.patience or bool(fell))
