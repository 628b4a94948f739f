"""What a cleaning gets and returns, and what it may know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.pixels import PixelScale
from fl_sim.config.keys import Cleaning as Settings
from fl_sim.model.flat_model import FlatModel


class Images(NamedTuple):
    """The batch of a cleaning: normalised inputs (e, C, H, W), labels (e,), and `kept` (e,), false for images that are dropped.

    owners (e,), ascending: the local batch that an image belongs to, as a place in `Context.seeds`; our cleanings get those of many clients
    at once, one from outside those of one. scores (e,): what the cleaning measured of each image, for the records.
    """

    inputs: Tensor
    labels: Tensor
    kept: Tensor
    owners: Tensor
    scores: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """What a cleaning may know: the model and the global parameters theta (d,) of the round; `history` (d,), an earlier model, half-way
    through the burn-in (`cleaning.history`); the keys `cleaning.*`; and what was fitted before round 1 (`clients.cleaning.fitted`)."""

    model: FlatModel
    theta: Tensor
    round: int
    settings: Settings
    scale: PixelScale
    fitted: Mapping[str, Tensor]
    seeds: tuple[int, ...] = (0,)  # of the randomness of each local batch

    @property
    def history(self) -> Tensor:
        return self.fitted["history"]

    @cached_property
    def limit(self) -> float:
        """The threshold of the scores in this round: `P0 + growth * round`."""
        return float(self.fitted["start"] + self.fitted["growth"] * self.round)

    def noise(self, batch: Images) -> Iterator[Tensor]:
        """Standard normal draws, each (e, C, H, W). Those of a local batch do not depend on the others that are cleaned with it."""
        sizes = torch.bincount(batch.owners, minlength=len(self.seeds)).tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        shape = batch.inputs.shape[1:]
        while True:
            parts = [torch.randn(size, *shape, generator=draws) for size, draws in zip(sizes, generators, strict=True)]
            yield torch.cat(parts).to(batch.inputs)

    def pixels(self, inputs: Tensor) -> Tensor:
        """Inputs as pixels of [0, 1]."""
        return (inputs - self.scale.black.to(inputs)) / self.scale.unit.to(inputs)

    def inputs(self, pixels: Tensor) -> Tensor:
        """Pixels, clipped to [0, 1], as inputs."""
        inputs = self.scale.black.to(pixels) + self.scale.unit.to(pixels) * pixels
        return torch.minimum(torch.maximum(inputs, self.scale.black.to(pixels)), self.scale.white.to(pixels))

    def eight_bits(self, pixels: Tensor) -> Tensor:
        """Inputs of pixels that are rounded to 8 bits, as a file has them."""
        return self.inputs((255.0 * pixels.clamp(0.0, 1.0)).round() / 255.0)


@torch.no_grad()
def log_probabilities(model: FlatModel, theta: Tensor, inputs: Tensor, batch: int = 200) -> Tensor:
    """log p(. | x; theta) (e, c) of inputs (e, C, H, W), in batches."""
    return torch.cat([F.log_softmax(model.logits(theta, part), dim=1) for part in inputs.split(batch)])
