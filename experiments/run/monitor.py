"""The server's monitor: an alarm when accuracy on its own probe set falls (the papers' threat model)."""

from __future__ import annotations

from fl_sim.config import keys


class Monitor:
    """Raises an alarm in a round that is the `patience`-th in a row with probe accuracy `drop` points below its running best."""

    def __init__(self, settings: keys.Monitor, start_accuracy: float) -> None:
        self._settings, self._best, self._low = settings, start_accuracy, 0

    @property
    def state(self) -> tuple[float, int]:
        """The running best (percent), and rounds in a row below it: what a checkpoint keeps."""
        return self._best, self._low

    def resume(self, state: tuple[float, int]) -> None:
        """Go on from a `state`."""
        self._best, self._low = state

    @property
    def low(self) -> bool:
        """Whether the last accuracy was `drop` points below the running best."""
        return self._low > 0

    @property
    def watching(self) -> bool:
        """False with `monitor.action = "none"`: nobody needs the probe accuracy."""
        return self._settings.action != "none"

    def forget(self) -> None:
        """Start counting anew, after the model was rolled back."""
        self._low = 0

    def alarm(self, round_: int, accuracy: float) -> bool:
        """Take the probe accuracy (percent) after a round; true in the round in which the alarm is raised."""
        self._best = max(self._best, accuracy)
        self._low = self._low + 1 if accuracy <= self._best - self._settings.drop else 0
        return self.watching and self._low == self._settings.patience
