"""How long it still takes."""

from __future__ import annotations

from collections import deque

WINDOW = 60.0  # seconds, the least time over which the pace is measured


class Pace:
    """The pace of rounds over the last half of the time since the first one ended, but at least `WINDOW` seconds or the last two steps.

    So a burn-in between the cells of a sweep counts by its share, one before the first round not at all, and rounds that an interrupted
    run has from its records are out of it before long.
    """

    def __init__(self) -> None:
        self._steps = deque[tuple[float, int]]()  # when, rounds done
        self._first: float | None = None

    def seconds_left(self, done: int, total: int, now: float) -> float | None:
        """Seconds until all rounds are done: (total - done) * seconds per round. None until a round has ended after the first one.

        Args: done, so far; now, a clock in seconds that does not go back."""
        if done == 0:
            return None
        if self._first is None:
            self._first = now
        if not self._steps or done != self._steps[-1][1]:
            self._steps.append((now, done))
        window = max(WINDOW, (now - self._first) / 2.0)
        while len(self._steps) > 2 and self._steps[1][0] <= now - window:
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
