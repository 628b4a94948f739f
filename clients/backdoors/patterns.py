"""Trigger patterns: which pixels they cover, and images that carry them."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.knowledge import PixelRange
from fl_sim.rng.streams import torch_stream

PLACES = ("top-left", "top-right", "bottom-left", "bottom-right", "centre")
BARS = 4  # parts of a distributed pattern


def square(image_shape: tuple[int, int, int], size: int = 0, place: str = "bottom-right") -> Tensor:
    """The pixels, bool (H, W), of a square of `size` pixels in a corner or in the middle of images (C, H, W).

    size 0: a seventh of the smaller side, at least 2 (4 for 28x28), and no more than the image. Raises ValueError if it does not fit or
    the place is none of `PLACES`. Source: Gu et al. 2017, "BadNets", section 3.1.
    """
    _, height, width = image_shape
    rows, columns = (size, size) if size else (min(_seventh(image_shape, 2), side) for side in (height, width))
    return _placed(torch.ones(rows, columns, dtype=torch.bool), height, width, place)


def bars(image_shape: tuple[int, int, int], size: int = 0, gap: int = -1, place: str = "top-left") -> Tensor:
    """The parts, bool (4, H, W), of a distributed pattern in images (C, H, W): two rows of two bars of 1 x `size` pixels, `gap` apart.

    size 0: a seventh of the smaller side (4 for 28x28); gap -1: half of that (2). Their union is the whole pattern, and no two parts share
    a pixel. Raises ValueError if it does not fit. Source: Xie et al. 2020, "DBA", section 3.2 and Figure 3 (size 4, gap 2 on MNIST).
    """
    _, height, width = image_shape
    size, gap = size or _seventh(image_shape, 1), _seventh(image_shape, 1) // 2 if gap < 0 else gap
    parts = torch.zeros(BARS, 2 + gap, 2 * size + gap, dtype=torch.bool)
    for part in range(BARS):
        row, column = divmod(part, 2)
        parts[part, row * (1 + gap), column * (size + gap) : column * (size + gap) + size] = True
    return torch.stack([_placed(part, height, width, place) for part in parts])


def noise(image_shape: tuple[int, int, int], pixels: PixelRange, seed: int = 0) -> Tensor:
    """The key pattern (C, H, W) of a blended backdoor: pixels drawn uniformly from black to white, the same for every run.

    Source: Chen et al. 2017, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", section IV-B (random pattern).
    """
    drawn = torch.rand(image_shape, generator=torch_stream(seed, "blended"))
    return pixels.at(drawn.to(pixels.black))


def stamped(inputs: Tensor, mask: Tensor, pixels: PixelRange, value: float) -> Tensor:
    """Images (p, C, H, W) whose pixels of the mask, bool (H, W) or one per image (p, H, W), are `value` (0 black, 1 white)."""
    where = mask.to(inputs.device).view(-1, 1, *mask.shape[-2:])
    return torch.where(where, pixels.at(inputs.new_tensor(value)).to(inputs), inputs)


def blended_with(inputs: Tensor, pattern: Tensor, blend: float) -> Tensor:
    """`(1 - blend) * image + blend * pattern` of images (p, C, H, W) and a pattern (C, H, W)."""
    return (1.0 - blend) * inputs + blend * pattern.to(inputs)


def parts_of(rank: int, coalition: int, parts: int = BARS) -> list[int]:
    """The parts of a distributed pattern that the member of a rank (0 to coalition - 1) trains on: with as many members as parts or more,
    one each in turn; with fewer, the parts are dealt to them like cards."""
    hands = min(coalition, parts)
    return [part for part in range(parts) if part % hands == rank % hands]


def _seventh(image_shape: tuple[int, int, int], least: int) -> int:
    return max(least, min(image_shape[1:]) // 7)


def _placed(pattern: Tensor, height: int, width: int, place: str) -> Tensor:
    """The pattern, bool (h, w), at a place of an empty image (height, width)."""
    if place not in PLACES:
        raise ValueError(f"expected the pattern's place to be one of {', '.join(PLACES)}, got {place!r}")
    rows, columns = pattern.shape
    if rows > height or columns > width:
        raise ValueError(f"expected a pattern of at most {height} x {width} pixels, the size of an image, got {rows} x {columns}")
    vertical, _, horizontal = place.partition("-")
    top = {"top": 0, "bottom": height - rows}.get(vertical, (height - rows) // 2)
    left = {"left": 0, "right": width - columns}.get(horizontal, (width - columns) // 2)
    image = torch.zeros(height, width, dtype=torch.bool)
    image[top : top + rows, left : left + columns] = pattern
    return image
