"""Built-in readers of images: from the files under `data.root` to arrays. torchvision, scikit-learn and Pillow are imported inside the
readers: that takes seconds, and is not needed once a data set is in the cache."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fl_sim.rng.streams import stream

Progress = Callable[[int, int], None]
Inputs = NDArray[Any]  # uint8 pixels or float32 features
Part = tuple[Inputs, NDArray[np.int64]]  # (n, C, H, W) and (n,)


class Request(NamedTuple):
    """The input of a reader: the folder (or file) to read, whether to fetch missing files, and a function called with (examples read, all
    examples)."""

    root: Path
    download: bool
    progress: Progress


class Decoded(NamedTuple):
    """Both parts as arrays, and the number of classes."""

    train: Part
    test: Part
    num_classes: int


class Origin(NamedTuple):
    """The files that a data set is made from, and one sentence per kind of file that is ignored."""

    files: list[Path]
    notes: tuple[str, ...] = ()


class Source(NamedTuple):
    """How to read a data set. read: `(Request, **options) -> Decoded`; absent: the first path under `data.root` that is missing, empty if
    none is; origin: the files that it is made from; remedy: what to do if files are missing; fetches: whether the reader can fetch them."""

    read: Callable[..., Decoded]
    absent: Callable[[Path], str]
    origin: Callable[[Path], Origin]
    remedy: str
    fetches: bool = False


def files_source(read: Callable[..., Decoded], *names: str) -> Source:
    """A data set of the files `names`, which torchvision can fetch."""

    def absent(root: Path) -> str:
        return next((name for name in names if not (root / name).exists()), "")

    def origin(root: Path) -> Origin:
        return Origin([root / name for name in names])

    return Source(read, absent, origin, remedy="set data.download = true or put it there", fetches=True)


def idx_source(kind: str) -> Source:
    """A data set of ten classes in MNIST's format, which torchvision reads with its class `kind`."""
    files = [f"{kind}/raw/{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
    return files_source(torchvision_reader(kind, 10), *files)


def read_digits(request: Request) -> Decoded:
    """scikit-learn's 1,797 digits. They have no test part: it is a random fifth of them, the same for all seeds."""
    from sklearn.datasets import load_digits

    digits = cast(Any, load_digits())
    pixels, labels = digits.images.astype(np.uint8)[:, None], digits.target.astype(np.int64)
    order = stream(0, "digits").permutation(len(labels))
    train, test = np.split(order, [len(order) * 4 // 5])
    return Decoded((pixels[train], labels[train]), (pixels[test], labels[test]), 10)


def torchvision_reader(kind: str, num_classes: int) -> Callable[[Request], Decoded]:
    """A reader for torchvision's classes of grey (n, H, W) or colour (n, H, W, C) images in memory."""

    def read(request: Request) -> Decoded:
        from torchvision import datasets

        parts = [getattr(datasets, kind)(request.root, train=train, download=request.download) for train in (True, False)]
        train, test = ((np.asarray(part.data), np.asarray(part.targets, np.int64)) for part in parts)
        if train[0].ndim == 3:
            return Decoded((train[0][:, None], train[1]), (test[0][:, None], test[1]), num_classes)
        return Decoded((train[0].transpose(0, 3, 1, 2), train[1]), (test[0].transpose(0, 3, 1, 2), test[1]), num_classes)

    return read


def read_svhn(request: Request) -> Decoded:
    """torchvision's SVHN, without its extra part."""
    from torchvision.datasets import SVHN

    train, test = (cast(Any, SVHN(request.root, split=split, download=request.download)) for split in ("train", "test"))
    return Decoded((train.data, train.labels), (test.data, test.labels), 10)


# The types of files that torchvision's ImageFolder reads.
IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class ImageList(NamedTuple):
    """One part of an image folder: the sorted names of the classes; each image with the number of its class; and what is ignored."""

    classes: list[str]
    images: list[tuple[Path, int]]
    hidden: list[Path]
    other: list[Path]  # of another type
    outside: list[Path]  # in no class folder


def list_images(folder: Path) -> ImageList:
    """The images of FOLDER/CLASS/** in the order of torchvision's ImageFolder, which reads class folders recursively and follows links.

    Where we differ: files and folders whose name starts with a dot are left out (`.ipynb_checkpoints` would be a class).
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    hidden, visible = _by_visibility(entries)
    outside = [entry for entry in visible if not entry.is_dir()]
    classes = sorted(entry.name for entry in visible if entry.is_dir())
    images, other = list[tuple[Path, int]](), list[Path]()
    for number, name in enumerate(classes):
        for root, files in _walk(folder / name, hidden):
            hidden_files, visible_files = _by_visibility(root / file for file in files)
            hidden += hidden_files
            images += [(path, number) for path in visible_files if path.suffix.lower() in IMAGE_TYPES]
            other += [path for path in visible_files if path.suffix.lower() not in IMAGE_TYPES]
    return ImageList(classes, images, hidden, other, outside)


def _walk(folder: Path, hidden: list[Path]) -> list[tuple[Path, list[str]]]:
    """A folder and all visible ones below it, each with the names of its files, sorted as torchvision does. Adds hidden folders to
    `hidden`."""
    folders: list[tuple[str, list[str]]] = []
    for root, below, files in os.walk(folder, followlinks=True):
        hidden += [Path(root) / name for name in sorted(below) if name.startswith(".")]
        below[:] = [name for name in below if not name.startswith(".")]
        folders.append((root, sorted(files)))
    return [(Path(root), files) for root, files in sorted(folders)]


def _by_visibility(paths: Any) -> tuple[list[Path], list[Path]]:
    """The hidden paths, and the others."""
    split: tuple[list[Path], list[Path]] = [], []
    for path in paths:
        split[not path.name.startswith(".")].append(path)
    return split


def absent_parts(root: Path) -> str:
    """The first part that an image folder lacks; empty if none."""
    return next((part for part in ("train", "test") if not (root / part).exists()), "")


def image_folder_origin(root: Path) -> Origin:
    """Every image of both parts, and notes on the files beside them that are not read."""
    parts = [list_images(root / part) for part in ("train", "test")]
    hidden, other, outside = ([path for part in parts for path in getattr(part, kind)] for kind in ("hidden", "other", "outside"))
    notes: list[str] = []
    if hidden:
        names = ", ".join(str(path.relative_to(root)) for path in hidden[:3])
        notes.append(f"{root}: left out {len(hidden)} hidden files or folders ({names}{', …' if hidden[3:] else ''})")
    if other:
        counts = Counter(path.suffix.lower() or "without an ending" for path in other)
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        notes.append(f"{root}: left out {len(other)} files of other types ({kinds}); read are {', '.join(IMAGE_TYPES)}")
    if outside:
        notes.append(f"{root}: left out {len(outside)} files that lie in no class folder ({outside[0].relative_to(root)})")
    return Origin([path for part in parts for path, _ in part.images], tuple(notes))


def read_image_folder(request: Request) -> Decoded:
    """ROOT/train/CLASS/** and ROOT/test/CLASS/**, decoded to RGB of 8 bits; classes are numbered in the order of their names.

    Raises ValueError, with the path, for parts with different classes, a class without an image, images of several sizes and an image
    that cannot be decoded.
    """
    train, test = (list_images(request.root / part) for part in ("train", "test"))
    if train.classes != test.classes:
        raise ValueError(f"{request.root}: expected the same classes in train and test, got {train.classes} and {test.classes}")
    if not train.classes:
        raise ValueError(f"{request.root}: expected a folder for each class in train and test, got none")
    for part, content in (("train", train), ("test", test)):
        if empty := set(range(len(content.classes))) - {number for _, number in content.images}:
            folder = request.root / part / content.classes[min(empty)]
            raise ValueError(f"{folder}: expected images ({', '.join(IMAGE_TYPES)}), got none")
    total, done, like = len(train.images) + len(test.images), 0, train.images[0][0]
    shape, parts = _rgb(like).shape, list[Part]()
    for content in (train, test):
        pixels = np.empty((len(content.images), *shape), np.uint8)
        for row, (path, _) in enumerate(content.images):
            image = _rgb(path)
            if image.shape != shape:
                sizes = [f"{width}x{height}" for _, height, width in (shape, image.shape)]
                raise ValueError(f"{path}: expected images of one size, {sizes[0]} like {like}, got {sizes[1]}")
            pixels[row] = image
            done += 1
            request.progress(done, total)
        parts.append((pixels, np.array([number for _, number in content.images], np.int64)))
    return Decoded(parts[0], parts[1], len(train.classes))


def _rgb(path: Path) -> NDArray[np.uint8]:
    """An image file as (3, H, W). Raises ValueError, with the path, if it cannot be decoded."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(eight_bits(image).convert("RGB")).transpose(2, 0, 1)
    except Exception as error:  # Pillow raises anything for a damaged file
        raise ValueError(f"{path}: {str(error).strip() or type(error).__name__}") from error


def eight_bits(image: Any) -> Any:
    """A Pillow image with 16 bits per pixel scaled to 8 (Pillow itself cuts at 255); any other as it is.

    Raises ValueError for pixels of 32 bits, whose white level is not defined.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        from PIL import Image

        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"expected pixels of 8 or 16 bits, got 32 (mode {image.mode!r})")
    return image
