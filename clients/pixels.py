"""Pixels of [0, 1] in the units of a model's inputs, which are normalised."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fl_sim.data.datasets import Dataset, normalised


class PixelScale(NamedTuple):
    """`input = black + unit * pixel` for a pixel of [0, 1]; `white` is the input of pixel 1. Each (C, 1, 1)."""

    unit: Tensor
    black: Tensor
    white: Tensor


def pixel_scale(dataset: Dataset, device: torch.device) -> PixelScale | None:
    """The scale of a data set of images; None for features. Black and white are exactly what the model gets for pixels 0 and 255."""
    if dataset.train.inputs.is_floating_point():
        return None
    black, white = (
        normalised(torch.full((len(dataset.mean), 1, 1), value, dtype=torch.uint8, device=device), dataset) for value in (0, 255)
    )
    return PixelScale(white - black, black, white)
