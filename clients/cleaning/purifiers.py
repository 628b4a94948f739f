"""Purifiers: every image goes through a generative model of public images, and is rounded to 8 bits, as it is stored. And their simple
baselines: JPEG, noise."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from clients.cleaning.images import Context, Images
from clients.cleaning.networks import Denoiser, Energy, alpha_bars

SPLIT = 250  # images that go through a network at once


def ebm(batch: Images, context: Context, steps: int = 40, step: float = 0.025, temperature: float = 0.1, iterations: int = 800) -> Images:
    """Images after Langevin steps on an energy model: `x <- x - (e^2 / 2T) grad E(x) + e z`, pixels from -1 to 1, clipped at the end.

    Args: steps; step, e; temperature, T; iterations, of the training. Source: Bhat et al. 2024 (PureGen), Eq. 3, with e = 0.0125 and 150
    steps. Where we differ: a small network, trained by score matching (`clients.cleaning.networks`), fewer and longer steps.
    """
    network = energy_of(context.fitted, batch.inputs)
    x, draws = 2.0 * context.pixels(batch.inputs) - 1.0, context.noise(batch)
    for _ in range(steps):
        gradient = torch.cat([network.gradient(part) for part in x.split(SPLIT)])
        x = x - step**2 / (2.0 * temperature) * gradient + step * next(draws)
    return batch._replace(inputs=context.eight_bits((x + 1.0) / 2.0))


@torch.no_grad()
def ddpm(batch: Images, context: Context, time: int = 75, steps: int = 15, iterations: int = 1500) -> Images:
    """Images with noise up to a time t of a diffusion, `x_t = sqrt(abar_t) x + sqrt(1 - abar_t) z`, and then denoised in ancestral steps.

    Args: time, t, at most 250; steps, of the way back, evenly spaced in time; iterations, of the training. Source: Bhat et al. 2024
    (PureGen); Ho et al. 2020, Algorithm 2. Where we differ: a small network, and fewer steps than t.
    """
    network = denoiser_of(context.fitted, batch.inputs)
    bars, draws = alpha_bars().to(batch.inputs), context.noise(batch)
    times = torch.linspace(time, 0, steps + 1).round().long().tolist()
    x = bars[time].sqrt() * (2.0 * context.pixels(batch.inputs) - 1.0) + (1.0 - bars[time]).sqrt() * next(draws)
    for now, then in pairwise(times):
        noise = torch.cat([network(part, torch.full((len(part),), now, device=x.device)) for part in x.split(SPLIT)])
        clean = ((x - (1.0 - bars[now]).sqrt() * noise) / bars[now].sqrt()).clamp(-1.0, 1.0)
        alpha = bars[now] / bars[then]  # of the step; its posterior: Ho et al. 2020, Eq. 7
        mean = (bars[then].sqrt() * (1.0 - alpha) * clean + alpha.sqrt() * (1.0 - bars[then]) * x) / (1.0 - bars[now])
        x = mean + ((1.0 - alpha) * (1.0 - bars[then]) / (1.0 - bars[now])).sqrt() * next(draws)
    return batch._replace(inputs=context.eight_bits((x + 1.0) / 2.0))


def jpeg(batch: Images, context: Context, quality: int = 75) -> Images:
    """Every image compressed by JPEG and decoded. An image of 3 channels is one colour image, else each channel is a grey one.

    Args: quality, of Pillow, 1 to 95. Source: Dziugaite et al. 2016, as a baseline of PureGen.
    """
    pixels = (255.0 * context.pixels(batch.inputs)).round().clamp(0, 255).to(torch.uint8).cpu()
    decoded = torch.stack([_recoded(image, quality) for image in pixels]).to(batch.inputs)
    return batch._replace(inputs=context.inputs(decoded / 255.0))


def noise(batch: Images, context: Context, sd: float = 0.1) -> Images:
    """`x + sd * z`, clipped to [0, 1], z standard normal. Args: sd, in pixels of [0, 1]. A baseline of PureGen."""
    return batch._replace(inputs=context.inputs(context.pixels(batch.inputs) + sd * next(context.noise(batch))))


def energy_of(fitted: Mapping[str, Tensor], like: Tensor) -> Energy:
    """The energy model that was fitted, on the device of inputs (e, C, H, W)."""
    network = Energy(like.shape[1])
    _fill(network, fitted)
    return network.to(like)


def denoiser_of(fitted: Mapping[str, Tensor], like: Tensor) -> Denoiser:
    """The denoiser that was fitted, on the device of inputs (e, C, H, W)."""
    network = Denoiser(like.shape[1])
    _fill(network, fitted)
    return network.to(like)


def _fill(network: nn.Module, fitted: Mapping[str, Tensor]) -> None:
    network.load_state_dict({name.removeprefix("network."): value for name, value in fitted.items() if name.startswith("network.")})


def _recoded(image: Tensor, quality: int) -> Tensor:
    """An image (C, H, W), uint8, after JPEG."""
    if len(image) != 3:
        return torch.stack([_through_file(channel, quality) for channel in image])
    return _through_file(image.permute(1, 2, 0), quality).permute(2, 0, 1)


def _through_file(pixels: Tensor, quality: int) -> Tensor:
    """Pixels (H, W) or (H, W, 3) after Pillow has written and read them."""
    import PIL.Image

    file = BytesIO()
    PIL.Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality)
    with PIL.Image.open(file, formats=("JPEG",)) as image:
        return torch.from_numpy(np.array(image))
