"""Data sets from outside the repository: any two `torch.utils.data.Dataset` of (image or features, label), and Hugging Face's on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_sim.data.images.pixels import eight_bits, with_alpha
from fl_sim.data.readers import Decoded, Inputs, Origin, Part, Progress, Request, require_memory, shared_note
from fl_sim.outside_code import end_if_forked, error_words, is_interrupt, outside_call, placed, with_place
from fl_sim.rng.streams import seeded_global_generators

MOST_CLASSES = 2**16  # a larger label is taken for a mistake


class DataError(ValueError):
    """A data set or a partition from outside cannot be used. The message is one sentence, with the file and the line that raised."""


def read_outside(thing: Callable[..., Any], request: Request, **options: Any) -> Decoded:
    """The two data sets that `thing(root, **options)` returns, decoded example by example. Meanwhile Python's, NumPy's and PyTorch's global
    generators are seeded from a fixed stream, so that the same code gives the same data. Raises DataError.
    """
    with seeded_global_generators(0, "dataset"), outside_call(lambda error: _data_error(error, thing)):
        parts = thing(request.root, **options)
        if not isinstance(parts, Sequence) or isinstance(parts, str) or len(parts) != 2:
            raise DataError(with_place(f"expected two data sets, (train, test), got {_kind(parts)}", thing))
        return decode_parts(parts[0], parts[1], request.progress, thing)


def _data_error(error: BaseException, thing: Any) -> Exception:
    return DataError(placed(str(error), thing) if isinstance(error, DataError) else error_words(error, thing))


def files_below(root: Path, cache_dir: Path | None = None) -> Origin:
    """Every file below a folder (or the file itself), because we cannot know which of them outside code reads. Links are followed; hidden
    files and those of our cache are left out."""
    files, visited = list[Path]([root] if root.is_file() else []), set[str]()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited or real == str(cache_dir):  # a link to a folder above would never end
            below.clear()
            continue
        visited.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        files += [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
    return Origin([file for file in files if file.is_file()])


def decode_parts(train: Any, test: Any, progress: Progress, thing: Any = None) -> Decoded:
    """Two torch data sets as arrays. `thing` is the code that made them, for messages.

    An image is a uint8 tensor (C, H, W) or (H, W), or a Pillow image; features are a floating-point tensor of these shapes or (features,).
    A label is a whole number from 0. The number of classes is the largest label of both parts plus 1.
    Raises DataError for anything else, for examples of different types or shapes, and for NaN.
    """
    sizes = [_length(dataset, part, thing) for dataset, part in ((train, "training"), (test, "test"))]
    like: Inputs | None = None
    parts: list[Part] = []
    for dataset, size, part, before in ((train, sizes[0], "training", 0), (test, sizes[1], "test", sizes[0])):
        inputs, labels = None, np.empty(size, np.int64)
        for row in range(size):
            where = f"example {row} of the {part} part"
            array, labels[row] = _example(dataset, row, where, thing)
            like = array if like is None else like
            if (array.dtype, array.shape) != (like.dtype, like.shape):
                raise DataError(f"{where}: expected {_form(like)} as the first example of the training part has, got {_form(array)}")
            if inputs is None:
                require_memory(size, array.shape, array.dtype, f"the {part} part")
                inputs = np.empty((size, *array.shape), array.dtype)
            inputs[row] = array
            progress(before + row + 1, sum(sizes))
        assert inputs is not None
        parts.append((inputs, labels))
    notes = shared_note("the data set", "examples", parts[0][0], parts[1][0])
    return Decoded(parts[0], parts[1], 1 + int(max(part[1].max() for part in parts)), notes)


def _length(dataset: Any, part: str, thing: Any) -> int:
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(f"expected the {part} part to be a torch.utils.data.Dataset with __len__ and __getitem__, got {_kind(dataset)}")
    try:
        size = len(dataset)
    except (Exception, SystemExit) as error:
        raise DataError(f"the length of the {part} part: {error_words(error, thing)}") from error
    if not size:
        raise DataError(f"expected examples in the {part} part, got none")
    return size


def _example(dataset: Any, row: int, where: str, thing: Any) -> tuple[Inputs, int]:
    """One example as an array (C, H, W) and its label."""
    process = os.getpid()
    try:
        pair = dataset[row]
    except BaseException as error:  # it may raise anything
        if is_interrupt(error):
            raise
        raise DataError(f"{where}: {error_words(error, thing)}") from error
    finally:
        end_if_forked(process)
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise DataError(f"{where}: expected a pair (image or features, label), got {_kind(pair)}")
    try:
        return _array(pair[0]), _label(pair[1])
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _array(value: Any) -> Inputs:
    """An image or features as uint8 or float32 (C, H, W); (H, W) becomes (1, H, W), (features,) becomes (1, 1, features)."""
    from PIL.Image import Image

    if isinstance(value, Image):
        return _pixels(value)
    if not isinstance(value, Tensor):
        raise DataError(f"expected a tensor or a Pillow image, got {_kind(value)}")
    shape = tuple(value.shape)
    if not 1 <= len(shape) <= 3 or not value.numel():
        raise DataError(f"expected a tensor of shape (C, H, W), (H, W) or (features,), got {shape}")
    tensor = value.detach().cpu().reshape((1,) * (3 - len(shape)) + shape)
    if tensor.dtype == torch.uint8:
        return tensor.numpy()
    if not tensor.is_floating_point():
        raise DataError(f"expected uint8 (pixels) or floating-point numbers (features), got {tensor.dtype}")
    features = tensor.to(torch.float32)
    if not bool(torch.isfinite(features).all()):
        raise DataError("expected finite numbers in float32, got NaN or infinity")
    return features.numpy()


def _pixels(image: Any) -> NDArray[np.uint8]:
    """A Pillow image as (1, H, W) if it is grey, else in RGB as (3, H, W)."""
    try:
        eight_bit = eight_bits(image)
        array = np.asarray(eight_bit if eight_bit.mode in ("L", "RGB") else with_alpha(eight_bit).convert("RGB"))
    except Exception as error:  # Pillow reads files late, and may raise anything for a damaged one
        raise DataError(f"{getattr(image, 'filename', '')}: {error}".removeprefix(": ")) from error
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _label(label: Any) -> int:
    if isinstance(label, Tensor) and label.ndim == 0 and not label.is_floating_point() and label.dtype != torch.bool:
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, int | np.integer):
        raise DataError(f"expected a whole number as label, got {_kind(label)}")
    if not 0 <= label < MOST_CLASSES:
        raise DataError(f"expected a label from 0 to {MOST_CLASSES - 1}, got {label}")
    return int(label)


def _form(array: Inputs) -> str:
    return f"{'pixels' if array.dtype == np.uint8 else 'features'} of shape {array.shape}"


def _kind(thing: Any) -> str:
    """What an object is, for a message."""
    if isinstance(thing, Tensor | np.ndarray):
        return f"{type(thing).__name__} of shape {tuple(thing.shape)} and type {thing.dtype}"
    if isinstance(thing, Sequence) and not isinstance(thing, str):
        return f"{type(thing).__name__} of {len(thing)}"
    return f"{thing!r}" if isinstance(thing, bool | int | float | str | None) else type(thing).__name__


def absent_on_disk(root: Path) -> str:
    """The file that marks a folder as a `DatasetDict`, if it is missing; else empty."""
    return "" if (root / "dataset_dict.json").is_file() else "dataset_dict.json"


def read_hugging_face(request: Request, image: str = "image", label: str = "label") -> Decoded:
    """The parts `train` and `test` of a `datasets.DatasetDict` that `save_to_disk` wrote under `data.root`.

    image, label: names of the columns; an image is one of Hugging Face's `Image`, or a list of numbers (features), and a label one of
    `ClassLabel` or a whole number. Raises DataError for anything else.
    """
    from datasets import load_from_disk

    parts: Any = load_from_disk(str(request.root))
    for part in ("train", "test"):
        if part not in parts:
            raise DataError(f"expected the parts 'train' and 'test', got {', '.join(map(repr, parts))}")
        for option, column in (("image", image), ("label", label)):
            if column not in parts[part].column_names:
                have = ", ".join(map(repr, parts[part].column_names))
                raise DataError(f"expected data.options {option!r} to be a column of the {part} part ({have}), got {column!r}")
    train, test = (_Rows(parts[part], image, label) for part in ("train", "test"))
    decoded = decode_parts(train, test, request.progress)
    names = getattr(parts["train"].features[label], "names", None)  # a ClassLabel may have classes without examples
    return decoded._replace(num_classes=max(decoded.num_classes, len(names or ())))


class _Rows:
    """Rows of a Hugging Face data set as (image or features, label)."""

    def __init__(self, rows: Any, image: str, label: str) -> None:
        self._rows, self._image, self._label = rows.select_columns([image, label]), image, label

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        example = self._rows[row]
        value = example[self._image]
        if isinstance(value, list):
            value = torch.tensor(value, dtype=torch.float32)
        return value, example[self._label]
