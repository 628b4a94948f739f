"""Data sets by name. Each is decoded once into a cache of `.npy` files, which every process maps into its memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_sim.atomic_files import writing
from fl_sim.data.images.folder import absent_parts, image_folder_origin, read_image_folder
from fl_sim.data.outside import DataError, absent_on_disk, files_below, read_hugging_face, read_outside
from fl_sim.data.readers import (
    Decoded,
    Inputs,
    Progress,
    Request,
    Source,
    files_source,
    idx_source,
    read_digits,
    read_svhn,
    torchvision_reader,
)
from fl_sim.data.tables import absent_table, read_table, table_origin
from fl_sim.registry import OutsideError, Registry

FORMAT = 5  # of the cache; raise it when the readers or the files below change

DRAFT_LIFE = 3600.0  # seconds; an older unfinished cache is of a process that was killed


class DataMissing(FileNotFoundError):  # noqa: N818 - the name says what is wrong
    """The data set is not where the configuration says; the message says what to do."""


class Examples(NamedTuple):
    """One part of a data set, memory-mapped on the CPU: `inputs` (n, C, H, W), uint8 pixels or float32 features (a table's are
    (n, 1, 1, features)); `labels` int64 (n,)."""

    inputs: Tensor
    labels: Tensor

    def on(self, device: torch.device) -> Examples:
        """The same examples in the memory of a device."""
        return Examples(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Both parts of a data set.

    mean, std: per channel, of the training part's pixels (0 to 255); 0 and 1 for features. fingerprint: SHA-256, 64 hex digits, of both
    parts' inputs and labels and the number of classes. notes: one sentence per kind of file that the reader ignored, and for each
    other thing that a user should know of the examples.
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()

    def on(self, device: torch.device) -> Dataset:
        """The same data set in the memory of a device."""
        return replace(self, train=self.train.on(device), test=self.test.on(device))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train.inputs.shape[1:]
        return channels, height, width


def normalised(inputs: Tensor, dataset: Dataset) -> Tensor:
    """The input of a model, float32 (..., C, H, W) on the device of `inputs`: for pixels (pixels - mean) / std per channel (a constant
    channel gives zeros); features as they are."""
    if inputs.is_floating_point():
        return inputs
    images = inputs.to(torch.float32)
    mean, scale = _moments(dataset.mean, dataset.std, images.device)
    return (images - mean) / scale


@lru_cache(maxsize=16)
def _moments(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The mean and the divisor of each channel (C, 1, 1) on a device (a process-wide cache, so that each is copied there once)."""
    means, scales = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    return means.to(device), torch.where(scales > 0, scales, 1).to(device)


DATASETS: Mapping[str, Source] = {
    "digits": files_source(read_digits),
    "fashion-mnist": idx_source("FashionMNIST"),
    "mnist": idx_source("MNIST"),
    "cifar10": files_source(
        torchvision_reader("CIFAR10", 10),
        *(f"cifar-10-batches-py/data_batch_{batch}" for batch in range(1, 6)),
        "cifar-10-batches-py/test_batch",
    ),
    "cifar100": files_source(torchvision_reader("CIFAR100", 100), "cifar-100-python/train", "cifar-100-python/test"),
    "svhn": files_source(read_svhn, "train_32x32.mat", "test_32x32.mat"),
    "image-folder": Source(
        read_image_folder, absent_parts, image_folder_origin, remedy="lay it out there as train/CLASS/* and test/CLASS/*"
    ),
    "table": Source(
        read_table, absent_table, table_origin, remedy="put both there, or let data.root name one .csv or .parquet file to be divided"
    ),
    "hugging-face": Source(
        read_hugging_face, absent_on_disk, files_below, remedy="save it there: DatasetDict(train=…, test=…).save_to_disk(FOLDER)"
    ),
}


def _options_taker(thing: Any) -> Any:
    return thing.read if isinstance(thing, Source) else thing


datasets: Registry[Source] = Registry(
    "data set",
    "data.name",
    DATASETS,
    "fl_sim.datasets",
    extras={"hugging-face": "datasets"},
    arguments=1,
    options_taker=_options_taker,
)


def data_missing(name: str, root: str | Path) -> str | None:
    """A message for the user if files of data set `name` are missing under `root`, else None. Looks at file names only. None for a data
    set from outside, whose files are not known."""
    source = DATASETS.get(name)
    absent = source.absent(_resolve(root)) if source else ""
    if not source or not absent:
        return None
    return f"data.name = {name!r}: not found under data.root = {str(_resolve(root))!r} ({absent} is missing); {source.remedy}"


def load_dataset(
    name: str,
    root: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    download: bool = False,
    cache_dir: str | Path,
    progress: Progress = lambda done, total: None,
) -> Dataset:
    """Data set `name`: decoded from the files under `root` at the first call, memory-mapped from `cache_dir` after that.

    Writing to a tensor changes it in this process only. Several processes may call at once. A damaged cache is rebuilt. The key of a cache
    covers its source: path, size, times and inode of each file; for a data set from outside the content of its code, and every file under
    `root`.

    options: arguments of the reader. download: fetch missing files. progress: called with (examples decoded, all examples) while single
    examples are decoded. Raises DataMissing if files are absent, cannot be fetched or are damaged; DataError for a data set from outside
    that cannot be used; CannotWriteError if the cache cannot be written; KeyError for an unknown name.
    """
    message, root, cache_dir = data_missing(name, root), _resolve(root), _resolve(cache_dir)
    source, arguments, decoded = DATASETS.get(name) or _own_source(name, cache_dir), dict(options or {}), None
    if message:
        if not download or not source.fetches:
            raise DataMissing(message)
        decoded = _read(name, source, Request(root, True, progress), arguments)
    try:
        origin = source.origin(root)
        key = _key(name, arguments, origin.files)
    except (OSError, ValueError) as error:  # a link to nowhere or to a folder above, a folder that cannot be read
        raise _unreadable(name, root, error) from error
    folder = cache_dir / f"{name if name in DATASETS else 'own'}-{key}"
    dataset = _open(folder, name) or _build(folder, name, decoded or _read(name, source, Request(root, False, progress), arguments))
    return replace(dataset, notes=tuple(map(_printable, (*origin.notes, *dataset.notes))))


def _unreadable(name: str, root: Path, error: Exception) -> DataMissing:
    reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error).strip()
    return DataMissing(
        _printable(f"data.name = {name!r}: could not be read from data.root = {str(root)!r}: {reason or type(error).__name__}")
    )


def _printable(text: str) -> str:
    """A text without halves of characters, which names of files may hold and no terminal takes."""
    return text.encode("utf-8", "replace").decode()


def _own_source(name: str, cache_dir: Path) -> Source:
    """The source of a data set from outside the repository."""
    try:
        thing: Any = datasets.find(name)
    except OutsideError as error:
        raise DataError(f"cannot load data.name = {name!r}: {error}") from error
    return Source(partial(read_outside, thing), _nothing_absent, partial(files_below, cache_dir=cache_dir), remedy="")


def _nothing_absent(root: Path) -> str:
    """For a data set from outside, whose files are not known."""
    return ""


def _resolve(path: str | Path) -> Path:
    return Path(path).expanduser().resolve()


def _read(name: str, source: Source, request: Request, options: Mapping[str, Any]) -> Decoded:
    """The arrays that a reader decodes, checked. Raises DataMissing, or DataError for a data set from outside."""
    root = f"data.root = {str(request.root)!r}"
    try:
        decoded = source.read(request, **options)
    except DataError as error:
        raise DataError(f"data.name = {name!r}: {error}") from error
    except Exception as error:  # torchvision, scipy and Pillow raise anything for a file that is damaged
        raise _unreadable(name, request.root, error) from error
    for part, (inputs, labels) in (("train", decoded.train), ("test", decoded.test)):
        if problem := _part_problem(inputs, labels, decoded.num_classes):
            raise DataMissing(f"data.name = {name!r}: what {root} holds is damaged: {problem} in the {part} part")
    sizes = [part[0].shape[1:] for part in (decoded.train, decoded.test)]
    if sizes[0] != sizes[1]:
        raise DataMissing(f"data.name = {name!r}: {root} holds images of {sizes[0]} to train on and of {sizes[1]} to test")
    return decoded


def _part_problem(inputs: Inputs, labels: NDArray[np.int64], num_classes: int) -> str:
    """Why arrays are no part of a data set; empty if they are: uint8 or float32 (n, C, H, W), and int64 (n,) in 0..num_classes-1, n > 0."""
    if inputs.dtype.type not in (np.uint8, np.float32) or inputs.ndim != 4 or not inputs.size:
        return f"expected bytes or features of shape (n, C, H, W), got {inputs.dtype} of shape {inputs.shape}"
    if labels.shape != inputs.shape[:1]:
        return f"expected a label for each of {len(inputs)} images, got {labels.size}"
    if labels.min() < 0 or labels.max() >= num_classes:
        return f"expected labels in 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}"
    return ""


def _key(name: str, options: Mapping[str, Any], files: list[Path]) -> str:
    """Sixteen hex digits that change with the source of a cache. The inode detects files that were swapped; the change time detects a file
    that was overwritten and got its old modification time back."""
    facts: list[tuple[str, int, int, int, int]] = []
    for path in files:
        stat = path.stat()
        facts.append((str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    text = json.dumps([FORMAT, name, datasets.content(name), options, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fingerprint(arrays: Mapping[str, NDArray[Any]], num_classes: int) -> str:
    """SHA-256 of contiguous arrays, with their names, types and shapes, and the number of classes."""
    digest = hashlib.sha256(f"{num_classes}\n".encode())
    for kind, array in arrays.items():
        digest.update(f"{kind} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _channel_statistics(pixels: Inputs) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of pixels (n, C, H, W), by counting the 256 levels: float32 sums over 10^8 pixels are not
    exact. 0 and 1 for features, which are not normalised."""
    if pixels.dtype != np.uint8:
        return [0.0] * pixels.shape[1], [1.0] * pixels.shape[1]
    counts = np.zeros((pixels.shape[1], 256), np.int64)
    for start in range(0, len(pixels), 1024):  # in parts, because bincount converts its input to 8 bytes per pixel
        for channel in range(pixels.shape[1]):
            counts[channel] += np.bincount(pixels[start : start + 1024, channel].ravel(), minlength=256)
    levels, total = np.arange(256), counts.sum(1)
    mean = counts @ levels / total
    std = np.sqrt(np.array([row @ (levels - centre) ** 2 for row, centre in zip(counts, mean, strict=True)]) / total)
    return mean.tolist(), std.tolist()


def _build(folder: Path, name: str, decoded: Decoded) -> Dataset:
    """Write the cache into a temporary folder and rename it. If another process was faster, use its files."""
    draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    arrays = {
        f"{part}-{kind}": np.ascontiguousarray(array)
        for part, examples in (("train", decoded.train), ("test", decoded.test))
        for kind, array in zip(Examples._fields, examples, strict=True)
    }
    mean, std = _channel_statistics(decoded.train[0])
    about: dict[str, Any] = {
        "num_classes": decoded.num_classes,
        "mean": mean,
        "std": std,
        "fingerprint": _fingerprint(arrays, decoded.num_classes),
    }
    about["notes"] = decoded.notes
    for old in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed
        if time.time() - old.stat().st_mtime > DRAFT_LIFE:
            shutil.rmtree(old, ignore_errors=True)
    try:
        with writing(folder):
            draft.mkdir(parents=True)
            for kind, array in arrays.items():
                np.save(draft / f"{kind}.npy", array, allow_pickle=False)
            (draft / "about.json").write_text(json.dumps(about))
        # Opened before the rename: its maps stay valid whatever happens to the names.
        ours = _open(draft, name)
        assert ours is not None
        try:
            draft.rename(folder)
        except OSError:
            winner = _open(folder, name)
            if winner is not None:
                return winner
            with contextlib.suppress(OSError):  # another process may replace the damaged cache at the same time
                shutil.rmtree(folder)
                draft.rename(folder)
        return ours
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _map(path: Path) -> Tensor:
    """A file of the cache as a memory-mapped tensor; copy on write, because torch warns about read-only arrays."""
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def _open(folder: Path, name: str) -> Dataset | None:
    """The cached data set; None if there is none or it is damaged (a file is absent, truncated or of the wrong kind)."""
    try:
        about = json.loads((folder / "about.json").read_text())
        train, test = (Examples(*(_map(folder / f"{part}-{kind}.npy") for kind in Examples._fields)) for part in ("train", "test"))
        dataset = Dataset(
            name, train, test, about["num_classes"], tuple(about["mean"]), tuple(about["std"]), about["fingerprint"], tuple(about["notes"])
        )
        sound = (
            dataset.image_shape[0] == len(dataset.mean)
            and (train.inputs.shape[1:], train.inputs.dtype) == (test.inputs.shape[1:], test.inputs.dtype)
            and not any(_part_problem(part.inputs.numpy(), part.labels.numpy(), dataset.num_classes) for part in (train, test))
            and all(part.labels.dtype == torch.int64 for part in (train, test))
        )
    except (OSError, ValueError, EOFError, KeyError, TypeError, RecursionError):
        return None
    return dataset if sound else None
