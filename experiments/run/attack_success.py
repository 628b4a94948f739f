"""The attack success rate: how often the model does with the test images of a targeted attack what the attacker wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clients.backdoors.edge_images import edge_images
from clients.catalogue import attacks
from clients.knowledge import pixel_range
from clients.success import SuccessView, success_test_of
from experiments.run.history import TrackHistory
from fl_sim.config.keys import Config
from fl_sim.config.options import parse_options
from fl_sim.data.batches import Batch
from fl_sim.data.federation import Federation
from fl_sim.model.flat_model import FlatModel

NAME, WHOLE = "attack_success_rate", "whole_attack_success_rate"  # on `evaluate.examples` test images, on all
ACTING = ("accumulate", "trigger", "between")  # phases in which the coalition may act


def success_images(config: Config, federation: Federation, test: Batch) -> Batch | None:
    """Images (v, C, H, W) made from test examples, and the class (v,) that counts as success; None for an attack without a success test.

    Raises ValueError if the success test cannot be made, or returns something else.
    """
    name = config.attack.name
    success_test = success_test_of(attacks.find(name))
    if success_test is None:
        return None
    dataset, device = federation.dataset, federation.device
    view = SuccessView(
        test=test,
        settings=config.attack,
        num_classes=dataset.num_classes,
        pixels=pixel_range(dataset, device),
        edge_images=lambda: edge_images(config, dataset, "test", device),
    )
    batch: Any = success_test(view, **parse_options(config.attack.options))
    if batch is None:
        return None
    inputs, labels = batch
    if tuple(inputs.shape) != (len(labels), *dataset.image_shape):
        shape = (len(labels), *dataset.image_shape)
        raise ValueError(f"expected the success test of {name} to return images of shape {shape}, one per label, got {tuple(inputs.shape)}")
    return Batch(inputs, labels)


def success_problem(config: Config, federation: Federation) -> str:
    """Why the success of the attack cannot be measured, as a sentence; empty if it can, or if the attack names no success test."""
    if attacks.problem(config.attack.name):
        return ""
    try:
        success_images(config, federation, federation.test())
    except Exception as error:  # it may be anybody's function
        return f"the success of attack.name = {config.attack.name!r} cannot be measured: {error}"
    return ""


class SuccessRates:
    """Attack success rates of models theta (d,), percent; None without a success test or without a test image for it."""

    def __init__(self, config: Config, federation: Federation, test: Batch, part: Batch) -> None:
        self._whole = success_images(config, federation, test)
        self._part = success_images(config, federation, part) if part is not test else self._whole
        self._device = federation.device

    @property
    def measured(self) -> bool:
        """Whether there is anything to measure."""
        return self._whole is not None and len(self._whole.labels) > 0

    @property
    def images(self) -> Batch | None:
        """The images made from `evaluate.examples` test examples; None if there is none."""
        return self._part if self._part is not None and len(self._part.labels) else None

    def part(self, model: FlatModel, theta: Tensor) -> dict[str, float]:
        """The rate on `evaluate.examples` test images, as an entry of a line; empty if there is none."""
        return self._entry(NAME, model, theta, self._part)

    def whole(self, model: FlatModel, theta: Tensor) -> dict[str, float]:
        """The rate on the whole test set, as an entry of a line."""
        return self._entry(WHOLE, model, theta, self._whole)

    def _entry(self, name: str, model: FlatModel, theta: Tensor, images: Batch | None) -> dict[str, float]:
        if images is None or not len(images.labels):
            return {}
        _, predictions = model.predictions(theta.to(self._device), *images)
        return {name: 100.0 * int(torch.eq(predictions, images.labels).sum()) / len(images.labels)}


def rates_of(track: TrackHistory) -> Mapping[str, float | None] | None:
    """A track's rates before round 1, after the last round in which the coalition may have acted, and at the end, on the whole test set.
    None if there is none."""
    if WHOLE not in track.start:
        return None
    acting = [line[WHOLE] for line in track.lines if WHOLE in line and line["phase"] in ACTING]
    return {"burn_in": track.start[WHOLE], "end_of_attack": acting[-1] if acting else None, "final": track.lines[-1].get(WHOLE)}
