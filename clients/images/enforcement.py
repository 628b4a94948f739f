"""What an attack on images may do, enforced by its caller: it moves pixels of the members' own images, and nothing else.

Threat model: a poisoned source behind honest software. The attacker supplies a share of the images of its clients. It may change pixels by
at most `attack.epsilon` (l-infinity, pixels in [0, 1]), never labels, weights or the update, which the caller computes from the images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clients.pixels import PixelScale
from fl_sim.data.batches import CohortBatches


class Enforced(NamedTuple):
    """Batches with the images that are used, and figures for the record."""

    batches: CohortBatches
    figures: dict[str, float]


def supplied_places(batches: CohortBatches, fraction: float) -> Tensor:
    """Which examples (k, steps, b) the attacker supplies: the first `fraction` of each batch, rounded. Batches are in random order."""
    counts = torch.tensor([round(fraction * size) for size in batches.sizes], device=batches.labels.device)
    return (torch.arange(batches.labels.shape[2], device=counts.device) < counts[:, None, None]).expand(batches.labels.shape)


def ball(images: Tensor, scale: PixelScale, epsilon: float) -> tuple[Tensor, Tensor]:
    """The lowest and the highest inputs (..., C, H, W) within epsilon of images, in pixels of [0, 1], that are pixels."""
    low = torch.maximum(images - epsilon * scale.unit.to(images), scale.black.to(images))
    high = torch.minimum(images + epsilon * scale.unit.to(images), scale.white.to(images))
    return torch.minimum(low, images), torch.maximum(high, images)  # rounding: the image itself is always allowed


def enforce(batches: CohortBatches, proposed: Tensor, scale: PixelScale, epsilon: float, fraction: float) -> Enforced:
    """The members' batches with the proposed images as far as they are allowed.

    Images that the attacker does not supply stay as they are. Pixels are clipped to the ball of epsilon around the original and to [0, 1].
    An image with a pixel that is not a number stays as it is. Labels and weights are those of the batches.

    Args: batches, as the members drew them; proposed (k, steps, b, C, H, W), in the units of model inputs.
    Raises ValueError for another shape.
    """
    original = batches.inputs
    if tuple(proposed.shape) != tuple(original.shape):
        raise ValueError(f"expected images of shape {tuple(original.shape)}, as Knowledge.batches.inputs, got {tuple(proposed.shape)}")
    proposed = proposed.detach().to(original)
    supplied = supplied_places(batches, fraction)
    allowed = supplied & torch.isfinite(proposed).flatten(3).all(dim=3)
    low, high = ball(original, scale, epsilon)
    used = torch.where(allowed[..., None, None, None], torch.minimum(torch.maximum(proposed, low), high), original)
    shift = float(((used - original).abs() / scale.unit.to(original)).max()) if used.numel() else 0.0
    figures = {"images": _count(used, original), "image_shift": shift, "images_corrected": _count(used, proposed)}
    return Enforced(batches._replace(inputs=used), figures)


def _count(one: Tensor, other: Tensor) -> float:
    """How many images differ."""
    return float((one != other).flatten(3).any(dim=3).sum())
