"""Progress as lines of text, for people to read and for `fl-sim` to parse."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TextIO

PREFIX = "fl-sim |"
TRACKS = (
    "attacked",
    "twin",
    "control",
    "honest-trigger",
)  # their rounds are counted; epochs of a burn-in and rounds of a calibration are not


class CellsFailedError(RuntimeError):
    """Cells of a sweep or a search failed; the message names each. The others have ended."""


class Event(NamedTuple):
    """One progress line: rounds done, rounds in total, the name of the run, and what it is doing."""

    done: int
    total: int
    run: str
    what: str


class ProgressLines:
    """Prints at most one line per `interval` seconds. It may be called from several threads."""

    def __init__(self, total: int, interval: float = 0.4, stream: TextIO | None = None) -> None:
        self._total, self._interval, self._stream = total, interval, stream
        self._done, self._last, self._lock = 0, 0.0, threading.Lock()

    def of_run(self, run: str) -> Callable[[str, int, str, float | None], None]:
        """The progress callback of one run."""

        def on_step(track: str, round_: int, phase: str, accuracy: float | None) -> None:
            with self._lock:
                self._done += track in TRACKS
                if time.monotonic() - self._last < self._interval:
                    return
                self._last = time.monotonic()
                figure = "" if accuracy is None else f", accuracy {accuracy:.1f} %"
                what = f"burn-in, {phase}" if track == "burn-in" else f"{track}, round {round_}, {phase}{figure}"
                print(f"{PREFIX} {self._done}/{self._total} | {run} | {what}", file=self._stream or sys.stdout, flush=True)

        return on_step

    def finish(self, run: str, planned_rounds: int, played_rounds: int, how: str = "complete") -> None:
        """A run ended after `played_rounds` of its `planned_rounds`: the other rounds count as done too."""
        with self._lock:
            self._done += planned_rounds - played_rounds
            print(f"{PREFIX} {self._done}/{self._total} | {run} | {how}", file=self._stream or sys.stdout, flush=True)


def parse(line: str) -> Event | None:
    """The event of a progress line, which may have text before it; None for any other line."""
    _, prefix, rest = line.partition(PREFIX)
    parts = rest.strip().split(" | ")
    done, slash, total = parts[0].partition("/")
    if not prefix or len(parts) != 3 or not slash or not done.isdigit() or not total.isdigit():
        return None
    return Event(int(done), int(total), parts[1], parts[2])
