"""Data augmentation of the burn-in: random crops and mirror images, drawn for each image."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4  # pixels


def cropped_and_flipped(images: Tensor, generator: np.random.Generator) -> Tensor:
    """Images (b, C, H, W) padded with `PADDING` black pixels, cropped to their size at a random place, each mirrored with probability 1/2.

    The same draws on any device. Source: Pang et al. 2021, Appendix B (RandomCrop with four paddings and RandomHorizontalFlip).
    """
    count, _, height, width = images.shape
    first_row, first_column = generator.integers(2 * PADDING + 1, size=(2, count, 1))
    mirror = generator.random((count, 1)) < 0.5
    columns = np.where(mirror, np.arange(width)[::-1], np.arange(width))
    rows, columns = (torch.from_numpy(place).to(images.device) for place in (first_row + np.arange(height), first_column + columns))
    padded = F.pad(images, (PADDING,) * 4)
    image = torch.arange(count, device=images.device)
    return padded.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
