"""Data sets by name, decoded once into a cache of `.npy` files and memory-mapped from there by every process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_sim.atomic_files import writing
from fl_sim.registry import Registry
from fl_sim.rng.streams import stream

FORMAT = 1  # of the cache; raise it when the readers or the files below change

Progress = Callable[[int, int], None]
Part = tuple[NDArray[np.uint8], NDArray[np.int64]]

DRAFT_LIFE = 3600.0  # seconds after which nobody writes a cache any more


class DataMissing(FileNotFoundError):  # noqa: N818 - read aloud, it says what is wrong
    """The data set is not where the config says; the message says what to do."""


class Images(NamedTuple):
    """Examples, memory-mapped where they are on the CPU: `pixels` uint8 (n, C, H, W), `labels` int64 (n,)."""

    pixels: Tensor
    labels: Tensor

    def on(self, device: torch.device) -> Images:
        """The same examples in the memory of a device."""
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Both parts of a data set. `mean` and `std` are per channel, over the training part, in units of the uint8 pixels."""

    name: str
    train: Images
    test: Images
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def on(self, device: torch.device) -> Dataset:
        """The same data set in the memory of a device."""
        return replace(self, train=self.train.on(device), test=self.test.on(device))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width


def normalised(pixels: Tensor, dataset: Dataset) -> Tensor:
    """(pixels - mean) / std per channel, as float32 on the device of `pixels` (..., C, H, W). A constant channel gives zeros."""
    images = pixels.to(torch.float32)
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    return (images - mean) / torch.where(std > 0, std, 1)


# (root, download, progress) -> train part, test part, number of classes. Readers import torchvision and scikit-learn themselves:
# that takes seconds, and once the cache is there nobody needs them.
Reader = Callable[[Path, bool, Progress], tuple[Part, Part, int]]


def _read_digits(root: Path, download: bool, progress: Progress) -> tuple[Part, Part, int]:
    """scikit-learn's 1,797 digits, which have no test part of their own: a fixed fifth of them, drawn once for all seeds."""
    from sklearn.datasets import load_digits

    digits = cast(Any, load_digits())
    pixels, labels = digits.images.astype(np.uint8)[:, None], digits.target.astype(np.int64)
    order = stream(0, "digits").permutation(len(labels))
    train, test = np.split(order, [len(order) * 4 // 5])
    return (pixels[train], labels[train]), (pixels[test], labels[test]), 10


def _torchvision(kind: str, num_classes: int) -> Reader:
    """A reader for torchvision's classes of grey (n, H, W) or colour (n, H, W, C) images in memory."""

    def read(root: Path, download: bool, progress: Progress) -> tuple[Part, Part, int]:
        from torchvision import datasets

        parts = [getattr(datasets, kind)(root, train=train, download=download) for train in (True, False)]
        train, test = ((np.asarray(part.data), np.asarray(part.targets, np.int64)) for part in parts)
        if train[0].ndim == 3:
            return (train[0][:, None], train[1]), (test[0][:, None], test[1]), num_classes
        return (train[0].transpose(0, 3, 1, 2), train[1]), (test[0].transpose(0, 3, 1, 2), test[1]), num_classes

    return read


def _read_svhn(root: Path, download: bool, progress: Progress) -> tuple[Part, Part, int]:
    from torchvision.datasets import SVHN

    train, test = (cast(Any, SVHN(root, split=split, download=download)) for split in ("train", "test"))
    return (train.data, train.labels), (test.data, test.labels), 10


def _read_image_folder(root: Path, download: bool, progress: Progress) -> tuple[Part, Part, int]:
    """ROOT/train/CLASS/* and ROOT/test/CLASS/*, decoded to RGB; classes are numbered in the order of their names."""
    from torchvision.datasets import ImageFolder

    folders = [ImageFolder(root / part) for part in ("train", "test")]
    if folders[0].classes != folders[1].classes:
        raise ValueError(f"{root}: expected the same classes in train and test, got {folders[0].classes} and {folders[1].classes}")
    first = np.asarray(folders[0][0][0])
    total, done = sum(len(folder) for folder in folders), 0
    parts: list[Part] = []
    for folder in folders:
        pixels = np.empty((len(folder), 3, *first.shape[:2]), np.uint8)
        for row, (path, _) in enumerate(folder.samples):
            image = np.asarray(folder.loader(path))
            if image.shape != first.shape:
                sizes = [f"{shape[1]}x{shape[0]}" for shape in (first.shape, image.shape)]
                raise ValueError(f"{path}: expected images of one size, {sizes[0]} like {folders[0].samples[0][0]}, got {sizes[1]}")
            pixels[row] = image.transpose(2, 0, 1)
            done += 1
            progress(done, total)
        parts.append((pixels, np.array(folder.targets, np.int64)))
    return parts[0], parts[1], len(folders[0].classes)


class Source(NamedTuple):
    """A reader, and the paths under `data.root` without which it cannot work."""

    read: Reader
    needs: tuple[str, ...] = ()


def _idx_files(folder: str) -> tuple[str, ...]:
    return tuple(f"{folder}/raw/{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


DATASETS: Mapping[str, Source] = {
    "digits": Source(_read_digits),
    "fashion-mnist": Source(_torchvision("FashionMNIST", 10), _idx_files("FashionMNIST")),
    "mnist": Source(_torchvision("MNIST", 10), _idx_files("MNIST")),
    "cifar10": Source(
        _torchvision("CIFAR10", 10),
        (*(f"cifar-10-batches-py/data_batch_{batch}" for batch in range(1, 6)), "cifar-10-batches-py/test_batch"),
    ),
    "cifar100": Source(_torchvision("CIFAR100", 100), ("cifar-100-python/train", "cifar-100-python/test")),
    "svhn": Source(_read_svhn, ("train_32x32.mat", "test_32x32.mat")),
    "image-folder": Source(_read_image_folder, ("train", "test")),
}


def data_missing(name: str, root: str | Path) -> str | None:
    """What to tell the user when the files of data set `name` are not under `root`, else None. Looks at names only, decodes nothing.

    Raises ValueError for an unknown name.
    """
    if name not in DATASETS:
        raise ValueError(f"data.name: expected one of {', '.join(DATASETS)}, got {name!r}")
    absent = [path for path in DATASETS[name].needs if not (_resolve(root) / path).exists()]
    if not absent:
        return None
    layout = "lay it out there as train/CLASS/* and test/CLASS/*"
    remedy = layout if name == "image-folder" else "set data.download = true or put it there"
    return f"data.name = {name!r}: not found under data.root = {str(_resolve(root))!r} ({absent[0]} is missing); {remedy}"


def load_dataset(
    name: str, root: str | Path, *, download: bool = False, cache_dir: str | Path, progress: Progress = lambda done, total: None
) -> Dataset:
    """Data set `name`, decoded from the files under `root` at the first call and memory-mapped from `cache_dir` after that.

    Writing to a tensor changes it in this process only. Several processes may call at once. A damaged cache is rebuilt, and so is one
    whose source files have changed (by size and time; for an image folder those of the class folders: an image overwritten in place
    is not noticed).

    download: fetch what is missing. progress: called with (images done, images in all) while single images are decoded.
    Raises DataMissing where files are absent, cannot be fetched or are damaged; CannotWriteError where the cache cannot be written;
    ValueError for an unknown name.
    """
    message, root, source = data_missing(name, root), _resolve(root), DATASETS[name]
    fresh = None
    if message:
        if not download or name == "image-folder":
            raise DataMissing(message)
        fresh = _read(name, root, True, progress)
    folder = _resolve(cache_dir) / f"{name}-{_fingerprint(name, root, source)}"
    return _open(folder, name) or _build(folder, name, fresh or _read(name, root, False, progress))


def _resolve(path: str | Path) -> Path:
    return Path(path).expanduser().resolve()


def _read(name: str, root: Path, download: bool, progress: Progress) -> tuple[Part, Part, int]:
    try:
        found = DATASETS[name].read(root, download, progress)
    except Exception as error:  # torchvision, scipy and Pillow raise anything for a file that is damaged
        reason = str(error).strip() or type(error).__name__
        raise DataMissing(f"data.name = {name!r}: could not be read from data.root = {str(root)!r}: {reason}") from error
    for part, (pixels, labels) in zip(("train", "test"), found[:2], strict=True):
        if problem := _part_problem(pixels, labels, found[2]):
            raise DataMissing(f"data.name = {name!r}: what data.root = {str(root)!r} holds is damaged: {problem} in the {part} part")
    sizes = [part[0].shape[1:] for part in found[:2]]
    if sizes[0] != sizes[1]:
        raise DataMissing(
            f"data.name = {name!r}: data.root = {str(root)!r} holds images of {sizes[0]} to train on and of {sizes[1]} to test"
        )
    return found


def _part_problem(pixels: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int) -> str:
    """Why arrays are not a data set's part: uint8 (n, C, H, W) and int64 (n,) in 0..num_classes-1, n > 0; empty if they are."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or not pixels.size:
        return f"expected bytes of shape (n, C, H, W), got {pixels.dtype} of shape {pixels.shape}"
    if labels.shape != pixels.shape[:1]:
        return f"expected a label for each of {len(pixels)} images, got {labels.size}"
    if labels.min() < 0 or labels.max() >= num_classes:
        return f"expected labels in 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}"
    return ""


def _fingerprint(name: str, root: Path, source: Source) -> str:
    """Sixteen hex digits that change when what the cache was made from does."""
    needs = [root / path for path in source.needs]
    files = sorted(needs + [child for path in needs if path.is_dir() for child in path.iterdir()])
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([FORMAT, name, facts]).encode()).hexdigest()[:16]


def _channel_statistics(pixels: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of (n, C, H, W), exact sums over the 256 levels: float32 sums over 10^8 pixels are not."""
    counts = np.zeros((pixels.shape[1], 256), np.int64)
    for start in range(0, len(pixels), 1024):  # bincount widens what it counts to eight bytes
        for channel in range(pixels.shape[1]):
            counts[channel] += np.bincount(pixels[start : start + 1024, channel].ravel(), minlength=256)
    levels, total = np.arange(256), counts.sum(1)
    mean = counts @ levels / total
    std = np.sqrt(np.array([row @ (levels - centre) ** 2 for row, centre in zip(counts, mean, strict=True)]) / total)
    return mean.tolist(), std.tolist()


def _build(folder: Path, name: str, decoded: tuple[Part, Part, int]) -> Dataset:
    """Write the cache beside its place and rename it into place; where another process was first, use its files."""
    train, test, num_classes = decoded
    draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    mean, std = _channel_statistics(train[0])
    for old in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed
        if time.time() - old.stat().st_mtime > DRAFT_LIFE:
            shutil.rmtree(old, ignore_errors=True)
    try:
        with writing(folder):
            draft.mkdir(parents=True)
            for part, (pixels, labels) in zip(("train", "test"), (train, test), strict=True):
                np.save(draft / f"{part}-pixels.npy", np.ascontiguousarray(pixels), allow_pickle=False)
                np.save(draft / f"{part}-labels.npy", labels, allow_pickle=False)
            (draft / "about.json").write_text(json.dumps({"num_classes": num_classes, "mean": mean, "std": std}))
        # Opened before the rename: its maps stay valid whatever happens to the names.
        ours = _open(draft, name)
        assert ours is not None
        try:
            draft.rename(folder)
        except OSError:
            winner = _open(folder, name)
            if winner is not None:
                return winner
            with contextlib.suppress(OSError):  # another process may be replacing the damaged cache too
                shutil.rmtree(folder)
                draft.rename(folder)
        return ours
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _map(path: Path) -> Tensor:
    """Copy on write, because torch warns about read-only arrays."""
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def _open(folder: Path, name: str) -> Dataset | None:
    """The cached data set, or None where there is none or it is damaged (a file is absent, cut short or not what it should be)."""
    try:
        about = json.loads((folder / "about.json").read_text())
        train, test = (Images(*(_map(folder / f"{part}-{kind}.npy") for kind in Images._fields)) for part in ("train", "test"))
        dataset = Dataset(name, train, test, about["num_classes"], tuple(about["mean"]), tuple(about["std"]))
        sound = (
            dataset.image_shape[0] == len(dataset.mean)
            and train.pixels.shape[1:] == test.pixels.shape[1:]
            and not any(_part_problem(part.pixels.numpy(), part.labels.numpy(), dataset.num_classes) for part in (train, test))
            and all(part.labels.dtype == torch.int64 for part in (train, test))
        )
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    return dataset if sound else None


datasets: Registry[Source] = Registry("data set", "data.name", DATASETS, "fl_sim.datasets")
