"""Accuracy of the global model, on the server's own data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from experiments.run.attack_success import SuccessRates
from experiments.run.history import accuracy_by_class
from fl_sim.config.keys import Config
from fl_sim.data.batches import Batch
from fl_sim.data.federation import Federation
from fl_sim.model.burn_in import StartModel
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from fl_sim.rng.streams import torch_stream
from strategies.catalogue import smoothing_noise
from strategies.robust.noise.smoothing import smoothed_test


class Score(NamedTuple):
    """A model on e examples of c classes: accuracy (percent), mean cross-entropy (nats), and the confusion matrix, int64 (c, c): entry
    (i, j) counts the examples of class i for which the model says class j."""

    accuracy: float
    loss: float
    confusion: Tensor

    @property
    def by_class(self) -> list[float | None]:
        """Accuracy of each class (its recall), percent; None for a class without an example."""
        return accuracy_by_class(self.confusion.tolist())


class Evaluator:
    """Scores of a model theta (d,) on the test set, on a part of it, and on the server's probe set."""

    def __init__(self, config: Config, federation: Federation, start: StartModel) -> None:
        self.model, self._device = FlatModel(new_module(config, federation), start.buffers), federation.device
        self._classes = federation.dataset.num_classes
        self._test, self._probe = federation.test(), federation.probe()
        count = config.evaluate.examples
        self.partial = bool(count) and count < len(self._test.labels)
        self._part = federation.test(count) if self.partial else self._test
        self.success = SuccessRates(config, federation, self._test, self._part)
        self._smoothing, self._seed = smoothing_noise(config), config.seed

    def part(self, theta: Tensor) -> Score:
        """On `evaluate.examples` test examples."""
        return self._score(theta, self._part)

    def whole(self, theta: Tensor) -> Score:
        """On the whole test set."""
        return self._score(theta, self._test)

    def smoothed(self, theta: Tensor) -> dict[str, dict[str, float]]:
        """The strategy's smoothed test on `evaluate.examples` test examples, and the success rate of the attack in it, as an entry of a
        line; empty for a strategy without such a test."""
        if self._smoothing is None:
            return {}
        shares = smoothed_test(self.model, theta, self._part, self._smoothing, torch_stream(self._seed, "smoothed"))._asdict()
        if images := self.success.images:
            shares["attack_success_rate"] = smoothed_test(
                self.model, theta, images, self._smoothing, torch_stream(self._seed, "smoothed")
            ).accuracy
        return {"smoothed": shares}

    def probe(self, theta: Tensor) -> Score:
        """On the server's probe set."""
        return self._score(theta, self._probe)

    def on_device(self, theta: Tensor) -> Tensor:
        """A model (d,) where models are run."""
        return theta.to(self._device)

    def _score(self, theta: Tensor, examples: Batch) -> Score:
        losses, predictions = self.model.predictions(self.on_device(theta), *examples)
        cells = torch.bincount(examples.labels * self._classes + predictions, minlength=self._classes**2)
        confusion = cells.view(self._classes, self._classes).cpu()
        accuracy = 100.0 * int(confusion.trace()) / len(examples.labels)
        return Score(accuracy, float(losses.mean(dtype=torch.float64)), confusion)
