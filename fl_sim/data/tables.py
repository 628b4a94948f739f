"""Data sets from tables: a CSV or Parquet file with one column of labels; every other column is a feature."""

from __future__ import annotations

import difflib
import importlib.util
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl_sim.data.outside import MOST_CLASSES
from fl_sim.data.readers import Decoded, Origin, Request, alike_notes, shared_note
from fl_sim.registry import how_to_install
from fl_sim.rng.streams import stream

TYPES = (".csv", ".parquet")
MISSING = ("na", "n/a", "nan", "null", "none", "<na>", "#n/a", "-", "?")  # words for a missing number
BOOLEANS = {"true": "1", "false": "0"}

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
    if not root.is_dir():
        return []
    return [path for path in sorted(root.iterdir()) if path.stem == part and path.suffix.lower() in TYPES and path.is_file()]


def read_table(request: Request, label: str = "label", test_share: float = 0.2) -> Decoded:
    """The table in the file `data.root`, or the two in the folder: inputs (n, 1, 1, features). Each feature is standardised with mean and
    standard deviation of the training part (a constant feature becomes 0).

    label: the column of labels. They are class numbers from 0, or texts, which are numbered in sorted order.
    test_share: with one file, the share of its rows that is the test part. They are the same for all seeds, and in the order of the file.
    Raises ValueError, with file, column and row (the first row is 1), for a value that is missing, not a number or infinite; for parts
    with different columns; and for options that do not fit.
    """
    paths = table_origin(request.root).files
    if len(paths) > 2:
        raise ValueError(f"{request.root}: expected one file for each part, got {', '.join(path.name for path in paths)}")
    if not isinstance(label, str):  # pyright: ignore[reportUnnecessaryIsInstance] - an option
        raise ValueError(f"expected data.options 'label' to be the name of a column, got {label!r}")
    tables = [_Table(path, _read(path, label)) for path in paths]
    columns = _feature_columns(tables, label)
    features = [np.stack([_numbers(table.frame[column], table.path) for column in columns], axis=1) for table in tables]
    labels, names = _class_numbers([table.frame[label] for table in tables], paths)
    rows = [np.arange(len(part)) for part in labels]
    if len(tables) == 1:
        train_rows, test_rows = _split_rows(len(labels[0]), test_share)
        tables, features, labels, rows = tables * 2, features * 2, labels * 2, [train_rows, test_rows]
    train, test = (values[place] for values, place in zip(features, rows, strict=True))
    shared = shared_note(request.root, "rows", train, test)
    train_labels, test_labels = (values[place] for values, place in zip(labels, rows, strict=True))
    standardised = _standardised(train, test)
    for table, part, place in zip(tables, standardised, rows, strict=True):
        if len(odd := np.argwhere(~np.isfinite(part))):  # far from the training part's mean
            row, column = place[odd[0][0]], columns[odd[0][1]]
            where = f"{table.path}: expected a number that float32 can hold after standardising in column {column!r}, row {row + 1}"
            raise ValueError(f"{where}, got {table.frame[column].iloc[row]!r}")
    classes = 1 + int(max(train_labels.max(), test_labels.max()))
    inputs = [part.astype(np.float32)[:, None, None] for part in standardised]
    notes = (*_name_notes(request.root, names), *shared, *_notes(request.root, train_labels, test_labels, classes))
    return Decoded((inputs[0], train_labels), (inputs[1], test_labels), classes, notes)


class _Table(NamedTuple):
    """A file and its rows as a pandas frame."""

    path: Path
    frame: Any


def _read(path: Path, label: str) -> Any:
    """The rows of a file as a pandas frame. Raises ValueError, with the path, if it is no table with a name for each column."""
    import pandas as pd

    kind = path.suffix.lower()
    if kind not in TYPES:
        raise ValueError(f"{path}: expected a file of type {' or '.join(TYPES)}")
    if kind == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{path}: expected the optional package pyarrow: {how_to_install('parquet')}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # more fields than names
            if kind == ".csv":
                names, frame = _read_csv(path, label)
            else:
                frame = pd.read_parquet(path)
                if any(name is not None for name in frame.index.names):  # of a frame whose index is a column of the file
                    frame = frame.reset_index()
                names = list(map(str, frame.columns))
    except pd.errors.ParserWarning as error:
        raise ValueError(f"{path}: expected no row with more fields than the first line, which names the columns") from error
    except Exception as error:  # both readers may raise anything for a damaged file
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
        raise ValueError(f"{path}: {reason or type(error).__name__}") from error
    if nameless := [place for place, name in enumerate(names, 1) if not name.strip() or name.startswith("Unnamed: ")]:  # as pandas writes
        raise ValueError(f"{path}: expected a name for each column, got none for column {nameless[0]} (the row numbers of a pandas frame?)")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path}: expected different names of columns, got {twice[0]!r} {names.count(twice[0])} times")
    if not len(frame):
        raise ValueError(f"{path}: expected rows, got none")
    return frame


def _read_csv(path: Path, label: str) -> tuple[list[str], Any]:
    """The names in the first line (pandas would number those that are there twice), and the rows. An empty field alone is missing; labels
    are texts."""
    import pandas as pd

    form: Any = {"encoding": "utf-8-sig", "keep_default_na": False, "na_values": [""]}
    header: Any = pd.read_csv(path, header=None, nrows=1, dtype=str, **form)
    frame: Any = pd.read_csv(path, low_memory=False, index_col=False, dtype={label: str}, **form)
    return header.iloc[0].fillna("").tolist(), frame


def _feature_columns(tables: Sequence[_Table], label: str) -> list[str]:
    """The columns of features, in the order of the training part. Raises ValueError, with the path, if a part has other columns."""
    for path, frame in tables:
        if label not in frame.columns:
            near = difflib.get_close_matches(label, list(map(str, frame.columns)), n=1) or list(map(str, frame.columns[:8]))
            raise ValueError(f"{path}: expected a column {label!r} (data.options, 'label'), got {', '.join(map(repr, near))} …")
    columns = [column for column in tables[0].frame.columns if column != label]
    if not columns:
        raise ValueError(f"{tables[0].path}: expected a column of features beside {label!r}, got none")
    for path, frame in tables[1:]:
        if odd := sorted(map(str, set(columns) ^ (set(frame.columns) - {label}))):
            raise ValueError(f"expected the same columns in {tables[0].path} and {path}, got {', '.join(map(repr, odd))} in one alone")
    return columns


def _numbers(column: Any, path: Path) -> Floats:
    """A column as float64 (n,)."""
    import pandas as pd

    _require(~column.isna(), column, path, "a number", "nothing")
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    dtypes = pd.api.types
    if dtypes.is_datetime64_any_dtype(column) or dtypes.is_timedelta64_dtype(column) or dtypes.is_complex_dtype(column):
        raise ValueError(f"{path}: expected numbers in column {column.name!r}, got {column.dtype}")
    if not dtypes.is_numeric_dtype(column):  # texts, truth values among others, whole numbers beyond 64 bits, Decimals; and anything else
        column = column.astype(object).map(_scalar)
    numbers: Any = pd.to_numeric(column, errors="coerce")
    _require(~numbers.isna(), column, path, "a number")
    values: Floats = numbers.to_numpy(np.float64)
    _require(np.isfinite(values), column, path, "a finite number")
    return values


def _scalar(value: Any) -> Any:
    """A value of a column of objects as a float, if it is a number; anything else as its text (true and false as 1 and 0)."""
    if isinstance(value, int | Decimal):
        try:
            return float(value)
        except (OverflowError, ValueError):
            return float("inf")
    return value if isinstance(value, float) else BOOLEANS.get(str(value).lower(), str(value))


def _require(good: Any, column: Any, path: Path, what: str, instead: str = "") -> None:
    """Raises ValueError for the first row of a column in which `good` (n,) is false."""
    rows = np.flatnonzero(~np.asarray(good, bool))
    if len(rows):
        value = column.iloc[rows[0]]
        value = instead or repr(value.item() if isinstance(value, np.generic) else value)
        raise ValueError(f"{path}: expected {what} in column {column.name!r}, row {rows[0] + 1}, got {value[:80]}")


def _class_numbers(columns: Sequence[Any], paths: Sequence[Path]) -> tuple[list[NDArray[np.int64]], list[str]]:
    """The labels of each table as class numbers (n,): as they are if all are numbers (true and false count as 1 and 0), else by the sorted
    order of their texts. And these texts, none for numbers."""
    import pandas as pd

    for column, path in zip(columns, paths, strict=True):
        _require(~column.isna() & (column.astype(str).str.strip() != ""), column, path, "a label", "nothing")
    texts = [column.astype(str).to_numpy(object) for column in columns]
    numbers: list[Any] = [pd.to_numeric(pd.Series([BOOLEANS.get(text.lower(), text) for text in part]), errors="coerce") for part in texts]
    no_numbers = [part.isna().to_numpy(bool) for part in numbers]
    if any(odd.any() for odd in no_numbers):
        if not all(odd.all() for odd in no_numbers):  # numbers, and a word for a missing one among them
            for column, odd, part, path in zip(columns, no_numbers, texts, paths, strict=True):
                _require([not odd[row] or text.lower() not in MISSING for row, text in enumerate(part)], column, path, "a label")
        names = {name: number for number, name in enumerate(sorted(set(np.concatenate(texts))))}
        if len(names) > MOST_CLASSES:
            raise ValueError(f"{paths[0]}: expected at most {MOST_CLASSES} classes, got {len(names)} texts in column {columns[0].name!r}")
        return [np.array([names[text] for text in part], np.int64) for part in texts], list(names)
    for part, column, path in zip(numbers, columns, paths, strict=True):
        values, part.name = part.to_numpy(np.float64), column.name
        _require((values >= 0) & (values == np.floor(values)), part, path, "class numbers from 0, or texts,")
        _require(values < MOST_CLASSES, part, path, f"class numbers below {MOST_CLASSES}")
    return [part.to_numpy(np.float64).astype(np.int64) for part in numbers], []


def _standardised(train: Floats, test: Floats) -> list[Floats]:
    """Features (n, f) of both parts minus the mean of the training part, over its standard deviation (0 if it is constant there).

    A column whose squares float64 cannot hold is divided by its largest magnitude first."""
    largest = np.abs(train).max(axis=0)
    scale = np.where((largest > 1e150) | ((largest < 1e-150) & (largest > 0)), largest, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):  # of a test row far away: the caller looks for it
        train, test = train / scale, test / scale
        mean, std = train.mean(axis=0), train.std(axis=0)
        flat = (np.ptp(train, axis=0) == 0) | (std == 0)  # rounding may give equal numbers a standard deviation other than 0
        parts = [np.where(flat, 0.0, (part - mean) / np.where(flat, 1.0, std)) for part in (train, test)]
        return [np.where(np.abs(part) <= np.finfo(np.float32).max, part, np.inf) for part in parts]


def _name_notes(root: Path, names: Sequence[str]) -> list[str]:
    """Sentences on labels that are texts, sorted, and may be mistakes: numbers, words for a missing label, and nearly equal ones."""
    notes = list[str]()
    if (numbers := [name for name in names if _is_number(name)]) and len(numbers) < len(names):
        text = next(name for name in names if name not in numbers)
        notes.append(f"{root}: all labels are texts, numbered in sorted order, because {text!r} is no number (others are: {numbers[0]!r})")
    if words := [name for name in names if name.strip().lower() in MISSING]:
        notes.append(f"{root}: {words[0]!r} is a class of its own, and no missing label")
    return [*notes, *alike_notes(root, names)]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _notes(root: Path, train: NDArray[np.int64], test: NDArray[np.int64], classes: int) -> tuple[str, ...]:
    """Sentences on classes without rows to train on."""
    absent = sorted(set(range(classes)) - set(train.tolist()))
    notes: list[str] = []
    if absent:
        names = f"{', '.join(map(str, absent[:8]))}{', …' if absent[8:] else ''}"
        rows = int(np.isin(test, absent).sum())
        notes.append(
            f"{root}: {len(absent)} of {classes} classes have no row in the training part ({names}), and {rows} rows in the test part"
        )
    if classes == 1:
        notes.append(f"{root}: there is one class only: every accuracy is 100 %")
    return tuple(notes)


def _split_rows(count: int, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of the training and of the test part of one table with `count` rows."""
    is_share = isinstance(share, int | float) and 0.0 < share < 1.0  # pyright: ignore[reportUnnecessaryIsInstance] - an option
    size = round(count * share) if is_share else 0
    if not 0 < size < count:
        raise ValueError(f"expected data.options 'test_share' to leave rows to both parts of {count}, got {share!r}")
    order = stream(0, "table").permutation(count)
    return np.sort(order[size:]), np.sort(order[:size])
