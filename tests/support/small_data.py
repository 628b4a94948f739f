"""Small data sets written in the formats of the real ones, and splits of a thousand labels."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fl_sim.data.partitions import KEYED
from fl_sim.data.splits import SplitPlan, Splits, make_splits

Numbers = np.ndarray[Any, np.dtype[np.integer[Any]]]
FEW, FEWER = np.array([0, 3, 3, 9, 1]), np.array([2, 9])  # labels of the two parts


def pictures(labels: Numbers, *shape: int) -> Numbers:
    """Image i is noise around 10 i, so that an exchanged image, row or channel shows."""
    noise = np.random.default_rng(0).integers(0, 200, (len(labels), *shape))
    return (noise + 10 * np.arange(len(labels)).reshape(-1, *(1 for _ in shape))).astype(np.uint8)


def write_idx(root: Path, folder: str = "MNIST") -> None:
    """The big-endian format of MNIST and its kin: magic number, sizes, bytes."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for part, labels in (("train", FEW), ("t10k", FEWER)):
        images = pictures(labels, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 0x803, *images.shape) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, len(labels)) + labels.astype(np.uint8).tobytes())


def write_cifar(root: Path) -> None:
    """Five pickled batches, here of one image each, a test batch and the names of the classes; rows are (3, 32, 32), flat."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    train, test = (pictures(labels, 3, 32, 32).reshape(len(labels), -1) for labels in (FEW, FEWER))
    batches = {f"data_batch_{row + 1}": (train[[row]], FEW[[row]]) for row in range(5)} | {"test_batch": (test, FEWER)}
    for name, (rows, labels) in batches.items():
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": labels.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(label) for label in range(10)]}))


def write_svhn(root: Path) -> None:
    from scipy.io import savemat  # pyright: ignore[reportUnknownVariableType]

    for part, labels in (("train", FEW), ("test", FEWER)):
        images = pictures(labels, 3, 32, 32).transpose(2, 3, 1, 0)  # (H, W, C, n) in the file, and the digit 0 is class 10
        savemat(root / f"{part}_32x32.mat", {"X": images, "y": np.where(labels == 0, 10, labels)[:, None]})


def write_image_folder(root: Path, size: tuple[int, int] = (6, 4)) -> None:
    for part, labels in (("train", FEW), ("test", np.array([0, 1, 3, 9]))):
        images = pictures(labels, *size, 3)
        for row, (image, label) in enumerate(zip(images if part == "train" else 255 - images, labels, strict=True)):
            (root / part / f"class-{label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / part / f"class-{label}" / f"{row}.png")


SORTED = np.repeat(np.arange(10), 100)  # 1,000 labels, class after class, as many test files come
DEFAULTS: dict[str, Any] = {"alpha": 0.5, "shards_per_client": 2}


def split(partition: str = "iid", *, options: dict[str, Any] | None = None, **changes: Any) -> Splits:
    """Both parts `SORTED`, 20 clients, 100 examples for the own set and the probe; options as a configuration gives them."""
    keyed = {option: DEFAULTS[option] for option in KEYED.get(partition, {})}
    plan: dict[str, Any] = {"seed": 0, "num_clients": 20, "content": "", "own_set_size": 100, "probe_size": 100} | changes
    return make_splits(SORTED, SORTED, SplitPlan(partition=partition, options=json.dumps(keyed | (options or {})), **plan))
