"""Data sets from tables: a CSV or Parquet file with one column of labels; every other column is a feature."""

from __future__ import annotations

import difflib
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_sim.data.readers import Decoded, Origin, Request
from fl_sim.rng.streams import stream

TYPES = (".csv", ".parquet")

Floats = NDArray[np.float64]


def absent_table(root: Path) -> str:
    """The first file that is missing under a root; empty if none is. A root that is a file is a table; a folder holds train.* and test.*"""
    if root.is_file():
        return ""
    return next((" or ".join(part + kind for kind in TYPES) for part in ("train", "test") if not _files(root, part)), "")


def table_origin(root: Path) -> Origin:
    """The one file, or those of both parts."""
    return Origin([root] if root.is_file() else [*_files(root, "train"), *_files(root, "test")])


def _files(root: Path, part: str) -> list[Path]:
    return [path for kind in TYPES if (path := root / f"{part}{kind}").is_file()]


def read_table(request: Request, label: str = "label", test_share: float = 0.2) -> Decoded:
    """The table in the file `data.root`, or the two in the folder: inputs (n, 1, 1, features). Each feature is standardised with mean and
    standard deviation of the training part (a constant feature becomes 0).

    label: the column of labels. They are class numbers from 0, or texts, which are numbered in sorted order.
    test_share: with one file, the share of its rows that is the test part. They are the same for all seeds, and in the order of the file.
    Raises ValueError, with file, column and row (the first row is 1), for a value that is missing, not a number or infinite; for parts
    with different columns; and for options that do not fit.
    """
    tables = [_read(path) for path in table_origin(request.root).files]
    if len(tables) > 2:
        raise ValueError(f"{request.root}: expected one file for each part, got {', '.join(path.name for path, _ in tables)}")
    for path, frame in tables:
        if label not in frame.columns:
            near = difflib.get_close_matches(label, list(map(str, frame.columns)), n=1) or list(map(str, frame.columns[:8]))
            raise ValueError(f"{path}: expected a column {label!r} (data.options, 'label'), got {', '.join(map(repr, near))} …")
    columns = [column for column in tables[0][1].columns if column != label]
    if not columns:
        raise ValueError(f"{tables[0][0]}: expected a column of features beside {label!r}, got none")
    for path, frame in tables[1:]:
        if odd := sorted(map(str, set(columns) ^ (set(frame.columns) - {label}))):
            raise ValueError(f"expected the same columns in {tables[0][0]} and {path}, got {', '.join(map(repr, odd))} in one alone")
    features = [np.stack([_numbers(frame[column], path) for column in columns], axis=1) for path, frame in tables]
    labels = _class_numbers([frame[label] for _, frame in tables], [path for path, _ in tables])
    if len(tables) == 1:
        features, labels = _split_table(features[0], labels[0], test_share)
    mean, std = features[0].mean(axis=0), features[0].std(axis=0)
    flat = np.ptp(features[0], axis=0) == 0  # rounding may give equal numbers a standard deviation other than 0
    standardised = [np.where(flat, 0.0, (part - mean) / np.where(flat, 1.0, std)).astype(np.float32)[:, None, None] for part in features]
    (train, test), (train_labels, test_labels) = standardised, labels
    return Decoded((train, train_labels), (test, test_labels), 1 + int(max(part.max() for part in labels)))


def _read(path: Path) -> tuple[Path, Any]:
    """A file and its rows as a pandas frame."""
    import pandas as pd

    if path.suffix not in TYPES:
        raise ValueError(f"{path}: expected a file of type {' or '.join(TYPES)}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{path}: expected the optional package pyarrow: pip install 'fl-sim[parquet]'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # more fields than names
            frame = pd.read_csv(path, low_memory=False, index_col=False) if path.suffix == ".csv" else pd.read_parquet(path)
    except Exception as error:  # both readers may raise anything for a damaged file
        raise ValueError(f"{path}: {str(error).strip() or type(error).__name__}") from error
    if nameless := [place for place, name in enumerate(frame.columns, 1) if str(name).startswith("Unnamed: ")]:  # pandas' name for none
        raise ValueError(f"{path}: expected a name for each column, got none for column {nameless[0]} (the row numbers of a pandas frame?)")
    if not len(frame):
        raise ValueError(f"{path}: expected rows, got none")
    return path, frame


def _numbers(column: Any, path: Path) -> Floats:
    """A column as float64 (n,)."""
    import pandas as pd

    _require(~column.isna(), column, path, "a number", "nothing")
    if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_timedelta64_dtype(column):
        raise ValueError(f"{path}: expected numbers in column {column.name!r}, got {column.dtype}")
    numbers: Any = pd.to_numeric(column, errors="coerce")
    _require(~numbers.isna(), column, path, "a number")
    values: Floats = numbers.to_numpy(np.float64)
    _require(np.isfinite(values), column, path, "a finite number")
    return values


def _require(good: Any, column: Any, path: Path, what: str, instead: str = "") -> None:
    """Raises ValueError for the first row of a column in which `good` (n,) is false."""
    rows = np.flatnonzero(~np.asarray(good, bool))
    if len(rows):
        value = column.iloc[rows[0]]
        value = instead or repr(value.item() if isinstance(value, np.generic) else value)
        raise ValueError(f"{path}: expected {what} in column {column.name!r}, row {rows[0] + 1}, got {value}")


def _class_numbers(columns: Sequence[Any], paths: Sequence[Path]) -> list[NDArray[np.int64]]:
    """The labels of each table as class numbers (n,)."""
    import pandas as pd

    for column, path in zip(columns, paths, strict=True):
        _require(~column.isna(), column, path, "a label", "nothing")
    if not all(pd.api.types.is_numeric_dtype(column) for column in columns):
        texts = [column.astype(str).to_numpy(object) for column in columns]
        names = {name: number for number, name in enumerate(sorted(set(np.concatenate(texts))))}
        return [np.array([names[text] for text in part], np.int64) for part in texts]
    for column, path in zip(columns, paths, strict=True):
        values = column.to_numpy(np.float64)
        _require((values >= 0) & (values == np.floor(values)), column, path, "class numbers from 0, or texts,")
    return [column.to_numpy(np.float64).astype(np.int64) for column in columns]


def _split_table(features: Floats, labels: NDArray[np.int64], share: float) -> tuple[list[Floats], list[NDArray[np.int64]]]:
    """The training and the test part of one table."""
    count = len(labels)
    size = round(count * share) if isinstance(share, int | float) else 0  # pyright: ignore[reportUnnecessaryIsInstance] - an option
    if not 0 < size < count:
        raise ValueError(f"expected data.options 'test_share' to leave rows to both parts of {count}, got {share!r}")
    order = stream(0, "table").permutation(count)
    places = np.sort(order[size:]), np.sort(order[:size])
    return [features[place] for place in places], [labels[place] for place in places]
