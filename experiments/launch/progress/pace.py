"""How long it still takes."""

from __future__ import annotations

from collections import deque

WINDOW = 60.0  # seconds over which the pace is measured: rounds that an interrupted run has from its records are soon out of it


class Pace:
    """The pace of rounds over the last `WINDOW` seconds, or over the last two steps where these took longer."""

    def __init__(self) -> None:
        self._steps = deque[tuple[float, int]]()  # when, rounds done

    def seconds_left(self, done: int, total: int, now: float) -> float | None:
        """Seconds until all rounds are done: (total - done) * seconds per round. None as long as no round has ended.

        Args: done, so far; now, a clock in seconds that does not go back."""
        if not self._steps or done != self._steps[-1][1]:
            self._steps.append((now, done))
        while len(self._steps) > 2 and self._steps[1][0] <= now - WINDOW:
            self._steps.popleft()
        (began, before), (_, after) = self._steps[0], self._steps[-1]
        return (total - done) * (now - began) / (after - before) if after > before else None


def duration(seconds: float | None) -> str:
    """A time in words: `40 s`, `12 min`, `3.5 h`; `-` for none."""
    if seconds is None:
        return "-"
    if seconds < 60.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 6000.0 else f"{seconds / 3600.0:.1f} h"
