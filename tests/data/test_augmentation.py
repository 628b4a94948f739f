"""Random crops and mirrored images: against torchvision's, image by image, with the draws made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from fl_sim.config.keys import Config
from fl_sim.data.augmentation import PADDING, cropped_and_flipped
from fl_sim.data.federation import load_federation
from fl_sim.model.burn_in import burn_in


def test_each_image_is_cropped_and_mirrored_as_torchvision_does() -> None:
    images = torch.randint(1, 256, (200, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    draws = np.random.default_rng(3)
    tops, lefts = draws.integers(2 * PADDING + 1, size=(2, 200, 1))
    mirrored = draws.random((200, 1)) < 0.5
    found = cropped_and_flipped(images, np.random.default_rng(3))
    for i, image in enumerate(images):
        expected = functional.crop(functional.pad(image, [PADDING] * 4), int(tops[i, 0]), int(lefts[i, 0]), 9, 7)
        assert torch.equal(found[i], functional.horizontal_flip(expected) if mirrored[i] else expected)
    assert 0 < mirrored.sum() < 200
    assert len(np.unique(tops)) == len(np.unique(lefts)) == 2 * PADDING + 1


@pytest.mark.parametrize("override", [{"schedule__burn_in_augmentation": "crop-flip"}, {"schedule__burn_in_weight_decay": 0.01}])
def test_the_burn_in_takes_it_and_comes_out_the_same_again(
    configure: Callable[..., Config], tmp_path: Any, override: dict[str, Any]
) -> None:
    plain, changed = configure(), configure(**override)
    again = configure(**override, data__cache_dir=str(tmp_path))
    first, second, third = (burn_in(config, load_federation(config), lambda *_: None) for config in (plain, changed, again))
    assert not torch.equal(first.theta, second.theta)
    assert not third.cached
    assert torch.equal(second.theta, third.theta)
    if "schedule__burn_in_weight_decay" in override:
        assert second.theta.norm() < first.theta.norm()
