"""The server's monitor: an alarm when the accuracy on its probe set falls (the papers' threat model)."""

from __future__ import annotations

from fl_sim.config import keys


class Monitor:
    """Raises an alarm in the `patience`-th consecutive round with a probe accuracy at least `drop` points below the best so far."""

    def __init__(self, settings: keys.Monitor, start_accuracy: float) -> None:
        self._settings, self._best, self._low = settings, start_accuracy, 0

    @property
    def state(self) -> tuple[float, int]:
        """The best accuracy so far (percent), and the number of consecutive low rounds: for a checkpoint."""
        return self._best, self._low

    def resume(self, state: tuple[float, int]) -> None:
        """Continue from a `state`."""
        self._best, self._low = state

    @property
    def low(self) -> bool:
        """Whether the last accuracy was at least `drop` points below the best so far."""
        return self._low > 0

    @property
    def active(self) -> bool:
        """Whether the probe accuracy is needed: not with `monitor.action = "none"`."""
        return self._settings.action != "none"

    def forget(self) -> None:
        """Set the number of consecutive low rounds to 0, after the model was rolled back."""
        self._low = 0

    def alarm(self, round_: int, accuracy: float) -> bool:
        """Record the probe accuracy (percent) after a round. Returns whether it raises the alarm."""
        self._best = max(self._best, accuracy)
        self._low = self._low + 1 if accuracy <= self._best - self._settings.drop else 0
        return self.active and self._low == self._settings.patience
