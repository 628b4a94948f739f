"""Edge-case images: of another data set, of one of its classes, or of a folder, in the form of the run's own images."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clients.knowledge import PixelRange, pixel_range
from clients.success import target_class
from fl_sim.config.keys import Config
from fl_sim.data.datasets import DATASETS, Dataset, load_dataset

MOST = 2000  # images of a part that are used
TYPES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def edge_images(config: Config, dataset: Dataset, part: Literal["train", "test"], device: torch.device) -> Tensor:
    """The images (e, C, H, W) of `attack.edge-data`, resized, normalised, on a device; `train` and `test` share none. From the run's own
    data set those of the target class are left out: for them the target class is right.

    Raises ValueError if the source holds none, or if the run's data or the source's are no images; OSError if it cannot be read.
    """
    settings = config.attack
    without = target_class(settings, dataset.num_classes) if settings.edge_data == config.data.name else -1
    images = _source(settings.edge_data, settings.edge_root, (settings.edge_class, without), config.data.cache_dir, part)
    return in_the_form_of(images.to(device), dataset.image_shape, pixel_range(dataset, device))


def in_the_form_of(images: Tensor, image_shape: tuple[int, int, int], pixels: PixelRange) -> Tensor:
    """Images (e, C0, H0, W0) with values from 0 (black) to 1 (white) as inputs (e, C, H, W): colour to grey or back, resized, and with the
    same black and white as the run's own images."""
    channels, height, width = image_shape
    if images.shape[1] != channels:
        images = images.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
    if images.shape[2:] != (height, width):
        images = F.interpolate(images, size=(height, width), mode="bilinear", antialias=True, align_corners=False).clamp(0.0, 1.0)
    return pixels.at(images)


@lru_cache(maxsize=8)
def _source(name: str, root: str, classes: tuple[int, int], cache_dir: str, part: Literal["train", "test"]) -> Tensor:
    """Images (e, C, H, W) of one part, from 0 to 1, at most `MOST`, evenly taken (a process-wide cache of data, as of data sets).

    Args: classes, the one that is wanted (-1: all) and one that is not (-1: none).
    """
    class_, without = classes
    if name == "folder":
        return _folder(Path(root).expanduser(), part)
    if name not in DATASETS:
        raise ValueError(f"expected attack.edge-data to be folder or one of {', '.join(DATASETS)}, got {name!r}")
    dataset = load_dataset(name, root, cache_dir=cache_dir)
    inputs, labels = dataset.train if part == "train" else dataset.test
    if inputs.is_floating_point():
        raise ValueError(f"expected attack.edge-data to hold images, got {name!r}, which holds features")
    if class_ >= dataset.num_classes:
        raise ValueError(f"expected attack.edge-class < {dataset.num_classes}, the number of classes of {name!r}, got {class_}")
    where = torch.nonzero((labels == class_ if class_ >= 0 else labels >= 0) & (labels != without)).flatten()
    if not len(where):
        raise ValueError(f"expected attack.edge-class to be another class than attack.to-class of the same data set, got {class_}")
    chosen = inputs[_even(where)].float()
    return chosen / float(inputs[:1000].max())


def _folder(root: Path, part: str) -> Tensor:
    """The images below a folder in the order of their paths: every other one is for the test."""
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in TYPES)
    own = paths[part == "test" :: 2]
    if not own:
        raise ValueError(f"expected attack.edge-root to be a folder with at least two images ({', '.join(TYPES)}), got {str(root)!r}")
    with Image.open(own[0]) as first:
        size = first.size
    images = [np.asarray(Image.open(own[int(i)]).convert("RGB").resize(size)) for i in _even(torch.arange(len(own)))]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255.0


def _even(where: Tensor) -> Tensor:
    """At most `MOST` of the positions (e,), evenly spaced."""
    return where[torch.linspace(0, len(where) - 1, MOST).long()] if len(where) > MOST else where
