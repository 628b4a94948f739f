"""Image folders: ROOT/train/CLASS/** and ROOT/test/CLASS/**."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fl_sim.data.images.pixels import Image, read_image
from fl_sim.data.readers import Decoded, Origin, Part, Request, alike_notes, require_memory

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

    Where we differ: files and folders whose name starts with a dot are left out (`.ipynb_checkpoints` would be a class). Raises ValueError
    for a link that leads to a folder above it (torchvision reads such a folder 40 times), and OSError for a folder that cannot be read.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    hidden, visible = _by_visibility(entries)
    outside = [entry for entry in visible if not entry.is_dir()]
    classes = sorted(entry.name for entry in visible if entry.is_dir())
    images, other = list[tuple[Path, int]](), list[Path]()
    for number, name in enumerate(classes):
        for root, files in _walk(folder / name, hidden):
            images += [(root / file, number) for file in files if _is_image(file)]
            other += [root / file for file in files if not _is_image(file)]
    return ImageList(classes, images, hidden, other, outside)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_TYPES


def _walk(folder: Path, hidden: list[Path]) -> list[tuple[Path, list[str]]]:
    """A folder and all visible ones below it, each with the sorted names of its visible files; folders in torchvision's order. Adds what
    is hidden to `hidden`."""
    walked: list[tuple[str, list[str]]] = []
    open_folders: list[tuple[str, tuple[str, ...]]] = [
        (str(folder), (os.path.realpath(folder.parent), os.path.realpath(folder)))
    ]  # with the real folders above
    while open_folders:
        place, above = open_folders.pop()
        files: list[str] = []
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                hidden.append(Path(entry.path))
            elif entry.is_dir():
                real = os.path.realpath(entry.path)
                if real in above:
                    raise ValueError(f"{entry.path}: expected no link to a folder above it, got one to {real}")
                open_folders.append((entry.path, (*above, real)))
            else:
                files.append(entry.name)
        walked.append((place, files))
    return [(Path(place), files) for place, files in sorted(walked)]


def _by_visibility(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
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
    if beside := _other_parts(root, parts[0].classes):
        notes.append(f"{root}: left out {', '.join(beside)}, with class folders like those of train; read are train and test")
    return Origin([path for part in parts for path, _ in part.images], tuple(notes))


def _other_parts(root: Path, classes: list[str]) -> list[str]:
    """The names of folders beside `train` and `test` that hold folders of the same classes."""
    others = [path for path in sorted(root.iterdir()) if path.name not in ("train", "test") and path.is_dir()]
    return [path.name for path in others if any((path / name).is_dir() for name in classes)]


def read_image_folder(request: Request) -> Decoded:
    """ROOT/train/CLASS/** and ROOT/test/CLASS/**, decoded to RGB of 8 bits; classes are numbered in the order of their names.

    Raises ValueError, with the path, for parts with different classes, a class without an image, images of several sizes, an image
    that cannot be decoded, and images that do not fit into memory.
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
    shape, parts, watch = read_image(like).pixels.shape, list[Part](), _Watch(request.root)
    require_memory(total, shape, np.uint8, str(request.root))
    for content in (train, test):
        pixels = np.empty((len(content.images), *shape), np.uint8)
        for row, (path, number) in enumerate(content.images):
            image = read_image(path)
            if image.pixels.shape != shape:
                sizes = [f"{width}x{height}" for _, height, width in (shape, image.pixels.shape)]
                raise ValueError(f"{path}: expected images of one size, {sizes[0]} like {like}, got {sizes[1]}")
            pixels[row] = image.pixels
            watch.see(path, image, number, is_test=content is test)
            done += 1
            request.progress(done, total)
        parts.append((pixels, np.array([number for _, number in content.images], np.int64)))
    watch.notes += alike_notes(request.root, train.classes)
    if len(train.classes) == 1:
        watch.notes.append(f"{request.root}: there is one class only, {train.classes[0]!r}: every accuracy is 100 %")
    return Decoded(parts[0], parts[1], len(train.classes), watch.sentences())


class _Watch:
    """Counts what a researcher should know of the images, with the first example of each."""

    def __init__(self, root: Path) -> None:
        self.notes: list[str] = []
        self._root, self._counts, self._first = root, Counter[str](), dict[str, str]()
        self._class_of, self._in_train = dict[int, int](), set[int]()

    def see(self, path: Path, image: Image, number: int, *, is_test: bool) -> None:
        """Look at one image of class `number`; the training part comes first."""
        content = hash(image.pixels.tobytes())
        traits = {
            "images with transparent pixels: their colours are read, their transparency is not": image.transparent,
            "images of several frames: the first is read": image.frames > 1,
            "images turned upright, as their EXIF orientation says": image.turned,
            "images of 16 bits with no level above 4095, as 12 bits give: of 256 levels at most 17 are left": image.dim,
            f"images with a warning of Pillow ({image.warning})": bool(image.warning),
            "images of the test part that are in the training part too, pixel by pixel": is_test and content in self._in_train,
            "images with the pixels of an image of another class": self._class_of.setdefault(content, number) != number,
        }
        if not is_test:
            self._in_train.add(content)
        for trait, holds in traits.items():
            if holds:
                self._counts[trait] += 1
                self._first.setdefault(trait, str(path.relative_to(self._root)))

    def sentences(self) -> tuple[str, ...]:
        """One sentence for each trait that some image has."""
        return (*self.notes, *(f"{self._root}: {count} {trait} ({self._first[trait]})" for trait, count in self._counts.items()))
