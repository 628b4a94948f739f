"""Progress as lines that people can read and `fl-sim` can parse."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TextIO

PREFIX = "fl-sim |"
TRACKS = ("attacked", "twin", "control")  # whose rounds are counted; those of a burn-in and a calibration are not


class Event(NamedTuple):
    """One progress line: rounds done of all planned, whose run, and what happens in it."""

    done: int
    total: int
    run: str
    what: str


class ProgressLines:
    """Prints at most one line every `interval` seconds; safe to call from several threads."""

    def __init__(self, total: int, interval: float = 0.4, stream: TextIO | None = None) -> None:
        self._total, self._interval, self._stream = total, interval, stream
        self._done, self._last, self._lock = 0, 0.0, threading.Lock()

    def of_run(self, run: str) -> Callable[[str, int, str, float | None], None]:
        """The progress callback of one run."""

        def report(track: str, round_: int, phase: str, accuracy: float | None) -> None:
            with self._lock:
                self._done += track in TRACKS
                if time.monotonic() - self._last < self._interval:
                    return
                self._last = time.monotonic()
                figure = "" if accuracy is None else f", accuracy {accuracy:.1f} %"
                what = f"burn-in, {phase}" if track == "burn-in" else f"{track}, round {round_}, {phase}{figure}"
                print(f"{PREFIX} {self._done}/{self._total} | {run} | {what}", file=self._stream or sys.stdout, flush=True)

        return report

    def finished(self, run: str, planned: int, used: int, how: str = "complete") -> None:
        """A run ended after `used` of its `planned` rounds: count the rounds that it did not need as done."""
        with self._lock:
            self._done += planned - used
            print(f"{PREFIX} {self._done}/{self._total} | {run} | {how}", file=self._stream or sys.stdout, flush=True)


def parse(line: str) -> Event | None:
    """The event of a progress line, wherever in the line it starts; None for any other line."""
    _, found, rest = line.partition(PREFIX)
    parts = rest.strip().split(" | ")
    done, slash, total = parts[0].partition("/")
    if not found or len(parts) != 3 or not slash or not done.isdigit() or not total.isdigit():
        return None
    return Event(int(done), int(total), parts[1], parts[2])
