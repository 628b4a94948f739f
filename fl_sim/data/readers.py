"""What a reader takes and returns; and the readers of data sets that scikit-learn and torchvision know: from the files under `data.root` to
arrays. Both are imported inside the readers: that takes seconds, and is not needed once a data set is in the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    """Both parts as arrays, the number of classes, and one sentence for each thing that a user should know of the examples."""

    train: Part
    test: Part
    num_classes: int
    notes: tuple[str, ...] = ()


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


def alike_notes(root: Path, names: Sequence[str]) -> list[str]:
    """Sentences on names of classes that differ in capitals and blanks alone."""
    plain, notes = dict[str, str](), list[str]()
    for name in names:
        if (like := plain.setdefault("".join(name.lower().split()), name)) != name:
            notes.append(f"{root}: the classes {like!r} and {name!r} differ in capitals or blanks alone")
    return notes


def shared_note(where: Path | str, what: str, train: Inputs, test: Inputs) -> tuple[str, ...]:
    """A sentence on the examples (n, ...) of the test part whose inputs are in the training part too; none without any."""
    if train.dtype != test.dtype or train.shape[1:] != test.shape[1:]:
        return ()
    known = {hash(np.ascontiguousarray(example).data.tobytes()) for example in train}
    count = sum(hash(np.ascontiguousarray(example).data.tobytes()) in known for example in test)
    return (f"{where}: {count} of {len(test)} {what} of the test part are in the training part too",) if count else ()


def require_memory(count: int, shape: tuple[int, ...], kind: Any, whose: str) -> None:
    """Raises ValueError unless `count` examples of a shape and type fit into the memory that is free."""
    import psutil

    need, free = count * math.prod(shape) * np.dtype(kind).itemsize, psutil.virtual_memory().available
    if need > free:
        raise ValueError(
            f"{whose}: expected a data set that fits into memory, {free / 1e9:.1f} GB are free, got {need / 1e9:.1f} GB "
            f"({count} examples of {'x'.join(map(str, shape))})"
        )
