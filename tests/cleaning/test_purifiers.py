"""Purifiers really purify: images with noise come nearer to the data, and their energy falls. With quickly trained networks, on images that are planes of grey."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import clients.cleaning.shares as shares
from clients.cleaning.cohort import Cleaner
from clients.cleaning.networks import SD, Energy, alpha_bars, energy_loss
from clients.cleaning.purifiers import energy_of
from clients.honest import RoundInputs, work_of
from fl_sim.config.keys import Config
from fl_sim.data.batches import CohortBatches
from tests.support.small_cleaning import cleaner_of, round_of

Configure = Callable[..., Config]
SMOOTH = """
import torch
from torch.utils.data import TensorDataset

def smooth(root):
    generator = torch.Generator().manual_seed(0)
    level, right, down = torch.rand(3, 1500, 1, 1, generator=generator) * torch.tensor([0.4, 0.6, 0.6]).view(3, 1, 1, 1)
    place = torch.linspace(0, 1, 8)
    images = (255 * (0.1 + level + (right - 0.3) * place + (down - 0.3) * place[:, None]).clamp(0, 1)).to(torch.uint8).unsqueeze(1)
    labels = (right > 0.3).flatten().long()
    return TensorDataset(images[:1200], labels[:1200]), TensorDataset(images[1200:], labels[1200:])
"""


def inputs_of(configure: Configure, folder: Path, name: str, **options: object) -> RoundInputs:
    (folder / "own.py").write_text(SMOOTH)
    own = {"data__name": f"{folder / 'own.py'}:smooth", "data__root": str(folder / "empty"), "data__public_size": 500}
    (folder / "empty").mkdir(exist_ok=True)
    return round_of(configure(**own, cleaning__name=name, cleaning__options=json.dumps({"iterations": 100, **options})))


def purified(cleaner: Cleaner, images: Tensor) -> Tensor:
    size = len(images)
    batches = CohortBatches(images[None, None], torch.zeros(1, 1, size, dtype=torch.long), torch.full((1, 1, size), 1 / size), [size])
    return cleaner([0], batches).batches.inputs[0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ebm", "ddpm"])
def test_images_with_noise_come_nearer_to_what_they_were(configure: Configure, tmp_path: Path, name: str) -> None:
    inputs = inputs_of(configure, tmp_path, name)
    cleaner = cleaner_of(inputs)
    clean = inputs.federation.batch(inputs.federation.dataset.test, inputs.federation.splits.test[:100]).inputs
    context = cleaner._context((0,))
    pixels = context.pixels(clean)
    noisy = (pixels + 0.2 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    after = context.pixels(purified(cleaner, context.inputs(noisy)))
    assert not torch.allclose(after, noisy, atol=0.05), "a purifier that loads no network changes nothing"
    assert float((after - pixels).square().mean()) < 0.8 * float((noisy - pixels).square().mean())
    levels = 255.0 * after
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0.0)
    if name == "ebm":
        network = energy_of(inputs.fitted, clean)
        energies = [float(network(2 * images - 1).detach().mean()) for images in (noisy, after)]
        assert energies[1] < energies[0]


def test_the_energy_is_trained_to_point_away_from_noise() -> None:
    """Denoising score matching of a single image x: the loss is 0 for E(y) = |y - x|^2 / (2 SD^2)."""
    images = torch.rand(1, 1, 4, 4).expand(64, 1, 4, 4) * 2 - 1

    class Exact(Energy):
        def forward(self, images: Tensor) -> Tensor:
            return (images - self.centre).square().sum(dim=(1, 2, 3)) / (2 * SD**2)

    network = Exact(1)
    for shift, expected in ((0.0, 0.0), (0.5, 0.25)):
        network.centre = images[:1] + shift * SD
        loss = energy_loss(network, images, torch.Generator().manual_seed(0))
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_the_schedule_of_the_diffusion() -> None:
    bars = alpha_bars()
    assert bars[0] == 1.0
    assert float(bars[75]) == pytest.approx(0.938, abs=2e-3), "the noise of PureGen's t = 75"


@pytest.mark.slow
def test_a_share_is_purified_once_and_stored(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round's batches come from the stored share, in any process; an attacker's images are purified when they come."""
    inputs = inputs_of(configure, tmp_path, "ebm", steps=3, iterations=2)
    clients = [3, 5]
    raw = inputs.federation.cohort(clients, 1, 1, 10)
    first = work_of(inputs, clients, raw).batches.inputs
    assert not torch.equal(first, raw.inputs)
    shares._shares.cache_clear()
    monkeypatch.setattr(shares, "_purify", lambda *_: pytest.fail("it is in the cache"))
    assert torch.equal(work_of(inputs, clients, raw).batches.inputs, first)
    later = replace(inputs, round=2)
    work_of(later, clients, inputs.federation.cohort(clients, 2, 1, 10))
    moved = raw.inputs.clone()
    moved[0, 0, :4] += 0.5
    mixed = work_of(inputs, clients, raw._replace(inputs=moved), raw)
    assert mixed.poisoned is not None
    assert mixed.poisoned.images == 4
    assert torch.equal(mixed.batches.inputs[0, 0, 4:], first[0, 0, 4:])
    assert not torch.equal(mixed.batches.inputs[0, 0, :4], moved[0, 0, :4])
