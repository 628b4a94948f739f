"""The networks of purifiers, about 100,000 parameters each, and how they are trained on public images. Pixels are from -1 to 1 here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_sim.rng.streams import seeded_global_generators, stream, torch_stream

SD = 0.2  # of the noise that the energy model is trained with
DIFFUSION_STEPS, LAST_TIME = 1000, 250  # of the schedule; the denoiser is trained for times below LAST_TIME, as PureGen's
BATCH, LEARNING_RATE = 128, 2e-3


class Energy(nn.Module):
    """E (n,) of images (n, C, H, W): convolutions at a half and a quarter of the resolution, summed over places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(4 * channels, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1), nn.SiLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1), nn.SiLU()),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 1, 1)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(F.pixel_unshuffle(_even(images), 2)).flatten(1).sum(dim=1)

    def gradient(self, images: Tensor, *, graph: bool = False) -> Tensor:
        """`grad_x E(x)` (n, C, H, W). graph: keep what a gradient of it needs."""
        leaf = images.detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self(leaf).sum(), leaf, create_graph=graph)
        return gradient


class Denoiser(nn.Module):
    """The noise in images (n, C, H, W) at times t (n,) of the schedule: a U-Net at a half and a quarter of the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4 * channels, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.down, self.middle = nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.up, self.joined = nn.Conv2d(64, 32, 3, padding=1), nn.Conv2d(64, 32, 3, padding=1)
        self.last = nn.Conv2d(32, 4 * channels, 3, padding=1)
        self.time = nn.Linear(32, 32 + 64)

    def forward(self, images: Tensor, times: Tensor) -> Tensor:
        fine, coarse = self.time(_waves(times)).split([32, 64], dim=1)
        x = F.silu(self.first(F.pixel_unshuffle(_even(images), 2)) + fine[:, :, None, None])
        x = F.silu(self.second(x))
        y = F.silu(self.down(x) + coarse[:, :, None, None])
        y = F.silu(self.middle(y)) + y
        y = F.silu(self.up(F.interpolate(y, size=x.shape[-2:])))
        y = self.last(F.silu(self.joined(torch.cat([x, y], dim=1))))
        return F.pixel_shuffle(y, 2)[..., : images.shape[-2], : images.shape[-1]]


def _even(images: Tensor) -> Tensor:
    """Images with even height and width: an odd one gets its last line twice."""
    return F.pad(images, (0, images.shape[-1] % 2, 0, images.shape[-2] % 2), mode="replicate")


def _waves(times: Tensor) -> Tensor:
    """Sines and cosines (n, 32) of times (n,). Source: Ho et al. 2020, appendix B."""
    angles = times[:, None] * torch.logspace(0, -4, 16, device=times.device)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def alpha_bars() -> Tensor:
    """`abar_t = prod_{s <= t} (1 - beta_s)`, t = 0..1000, abar_0 = 1, beta from 1e-4 to 0.02 in a line.

    Source: Ho et al. 2020, section 4."""
    betas = torch.linspace(1e-4, 0.02, DIFFUSION_STEPS, dtype=torch.float64)
    return torch.cat([torch.ones(1, dtype=torch.float64), (1.0 - betas).cumprod(0)]).float()


def energy_loss(network: Energy, images: Tensor, noise: torch.Generator) -> Tensor:
    """The loss of a batch (n, C, H, W): `mean (SD * grad E(x + SD * z) - z)^2`, so that -grad E is the score of the images with noise.

    Source: Vincent 2011, denoising score matching. Where we differ: PureGen samples from its energy model while it trains.
    """
    z = torch.randn(images.shape, generator=noise).to(images)
    return (SD * network.gradient(images + SD * z, graph=True) - z).square().mean()


def denoiser_loss(network: Denoiser, images: Tensor, noise: torch.Generator) -> Tensor:
    """The loss of a batch (n, C, H, W): `mean (network(sqrt(abar_t) x + sqrt(1 - abar_t) z, t) - z)^2`, t uniform in 1..LAST_TIME.

    Source: Ho et al. 2020, Algorithm 1.
    """
    z = torch.randn(images.shape, generator=noise).to(images)
    times = torch.randint(1, LAST_TIME + 1, (len(images),), generator=noise).to(images.device)
    bars = alpha_bars().to(images)[times][:, None, None, None]
    return (network(bars.sqrt() * images + (1.0 - bars).sqrt() * z, times) - z).square().mean()


Loss = Callable[[Any, Tensor, torch.Generator], Tensor]


def trained(
    make: Callable[[int], nn.Module], loss: Loss, images: Tensor, *, seed: int, iterations: int, progress: Callable[[int, int], None]
) -> nn.Module:
    """A network trained on images (n, C, H, W) with Adam, its rate falling to 0 as a cosine; progress(done, all) is called in each step.

    The same arguments give the same numbers on machines of the same kind, with one thread.
    """
    with seeded_global_generators(seed, "purifier"):
        network = make(images.shape[1]).to(images.device)
    noise, order = torch_stream(seed, "purifier-noise"), stream(seed, "purifier-order")
    means = [(torch.zeros_like(p), torch.zeros_like(p)) for p in network.parameters()]
    for step in range(1, iterations + 1):
        picked = torch.from_numpy(order.choice(len(images), min(BATCH, len(images)), replace=False)).to(images.device)
        gradients = torch.autograd.grad(loss(network, images[picked], noise), list(network.parameters()), materialize_grads=True)
        _adam_step(network, gradients, means, step, 0.5 * LEARNING_RATE * (1.0 + math.cos(math.pi * step / iterations)))
        progress(step, iterations)
    return network


@torch.no_grad()
def _adam_step(network: nn.Module, gradients: tuple[Tensor, ...], means: list[tuple[Tensor, Tensor]], step: int, rate: float) -> None:
    """Kingma and Ba 2015, Algorithm 1, by hand: torch.optim imports the compiler, seconds of start-up."""
    for parameter, gradient, (first, second) in zip(network.parameters(), gradients, means, strict=True):
        first.mul_(0.9).add_(gradient, alpha=0.1)
        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        parameter.sub_(rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8))
