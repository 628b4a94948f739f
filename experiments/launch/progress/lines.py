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


class Rounds(NamedTuple):
    """Rounds done, and in total."""

    done: int
    total: int


class Event(NamedTuple):
    """One progress line: the rounds of all runs, the name of a run, its own rounds, and what it is doing."""

    whole: Rounds
    run: str
    own: Rounds
    what: str


class ProgressLines:
    """Prints at most one line per run and `interval` seconds. It may be called from several threads."""

    def __init__(self, total: int, interval: float = 0.4, stream: TextIO | None = None) -> None:
        self._total, self._interval, self._stream = total, interval, stream
        self._done, self._lock = 0, threading.Lock()
        self._played: dict[str, set[tuple[str, int]]] = {}  # of the runs that have not ended

    def of_run(self, run: str, planned: int) -> Callable[[str, int, str, float | None], None]:
        """The progress callback of one run of `planned` rounds. A round that is played twice, after a worker died, counts once."""
        played, last = self._played.setdefault(run, set()), float("-inf")

        def on_step(track: str, round_: int, phase: str, accuracy: float | None) -> None:
            nonlocal last
            with self._lock:
                if track in TRACKS and (track, round_) not in played:
                    played.add((track, round_))
                    self._done += 1
                if time.monotonic() - last < self._interval:
                    return
                last = time.monotonic()
                figure = "" if accuracy is None else f", accuracy {accuracy:.1f} %"
                what = f"burn-in, {phase}" if track == "burn-in" else f"{track}, round {round_}, {phase}{figure}"
                self._print(run, Rounds(len(played), planned), what)

        return on_step

    def finish(self, run: str, planned: int, how: str = "complete") -> None:
        """A run ended: those of its planned rounds that it did not play count as done too."""
        with self._lock:
            self._done += planned - len(self._played.pop(run, ()))
            self._print(run, Rounds(planned, planned), how)

    def _print(self, run: str, own: Rounds, what: str) -> None:
        parts = (f"{self._done}/{self._total}", run, f"{own.done}/{own.total}", what)
        print(PREFIX, " | ".join(parts), file=self._stream or sys.stdout, flush=True)


def parse(line: str) -> Event | None:
    """The event of a progress line, which may have text before it; None for any other line."""
    _, prefix, rest = line.partition(PREFIX)
    parts = rest.strip().split(" | ", 3)
    if not prefix or len(parts) != 4:
        return None
    whole, own = _rounds(parts[0]), _rounds(parts[2])
    return Event(whole, parts[1], own, parts[3]) if whole and own else None


def _rounds(text: str) -> Rounds | None:
    done, slash, total = text.partition("/")
    return Rounds(int(done), int(total)) if slash and done.isdigit() and total.isdigit() else None
