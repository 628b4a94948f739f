"""Accuracy of the global model, on the server's own data."""

from __future__ import annotations

from torch import Tensor

from fl_sim.config.keys import Config
from fl_sim.data.federation import Federation
from fl_sim.model.burn_in import StartModel
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module


class Evaluator:
    """Accuracy (percent) and loss of a model theta (d,) on the test set, on a part of it, and on the server's probe set."""

    def __init__(self, config: Config, federation: Federation, start: StartModel) -> None:
        self.model, self._device = FlatModel(new_module(config, federation), start.buffers), federation.device
        self._test, self._probe = federation.test(), federation.probe()
        count = config.evaluate.examples
        self.partial = bool(count) and count < len(self._test.labels)
        self._part = federation.test(count) if self.partial else self._test

    def part(self, theta: Tensor) -> tuple[float, float]:
        """Accuracy and loss on `evaluate.examples` test examples."""
        return self.model.score(theta.to(self._device), *self._part)

    def whole(self, theta: Tensor) -> float:
        """Accuracy on the whole test set."""
        return self.model.score(theta.to(self._device), *self._test)[0]

    def probe(self, theta: Tensor) -> float:
        """Accuracy on the server's probe set."""
        return self.model.score(theta.to(self._device), *self._probe)[0]
