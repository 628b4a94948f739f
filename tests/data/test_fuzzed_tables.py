"""Tables of all kinds: each is read number by number, or refused with the file, and the column and row where there is one."""

from __future__ import annotations

import csv
import datetime
import io
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from fl_sim.data.datasets import DataMissing, load_dataset
from tests.support.fuzz import fuzzing, limited

LETTERS = st.characters(exclude_categories=["Cs", "Cc"])
NAMES = st.one_of(
    st.text(LETTERS, min_size=1, max_size=8).filter(lambda name: name.strip() and not name.startswith("Unnamed: ")),
    st.sampled_from(["age", "x.1", "a,b", 'a"b', "a;b", " x", "nan", "NA", "0", "1", "é", "Label", "index", "a\nb"]),
)
FLOATS = st.one_of(
    st.floats(-1e6, 1e6, allow_nan=False),
    st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False),
    st.sampled_from([0.0, -0.0, 1e300, -1e300, 1e-300, 2.0**53, 5e-324]),
)
WHOLE = st.integers(-(10**6), 10**6) | st.integers(-(10**40), 10**40)
COLUMNS = st.sampled_from([FLOATS, st.floats(-100, 100), WHOLE, st.booleans(), st.just(7)])
CLASSES = st.one_of(
    st.just([0, 1, 2]),
    st.just([1, 2, 10]),
    st.just([0]),
    st.just([False, True]),
    st.lists(
        st.text(LETTERS, min_size=1, max_size=6).filter(is_no_number := lambda text: text.strip() and not numeric(text)),
        min_size=1,
        max_size=3,
    ),
    st.just(["cat", "NA", "None"]),
    st.just(["10", "9", "x"]),
)


def numeric(text: str) -> bool:
    return text.strip().lower() in ("true", "false") or not np.isnan(pd.to_numeric(pd.Series([text], dtype=object), errors="coerce")[0])


@dataclass
class Table:
    """One part as a researcher has it: names, columns of values, labels; how its file is written; and what in it is wrong."""

    names: list[str]
    columns: list[list[Any]]
    label: str
    labels: list[Any]
    path: Path = Path()
    raw: Callable[[bytes], bytes] = lambda content: content  # a change of the bytes of the file
    extra: list[tuple[int, list[str]]] = field(default_factory=list)  # raw lines before a row (CSV)

    def rows(self) -> list[list[Any]]:
        return [[*values, label] for *values, label in zip(*self.columns, self.labels, strict=True)]


# What is wrong. Each changes the table (row and column are places in it) and returns what the error must name; None if it does not apply.
def put(value: Any) -> Callable[[Table, int, int], list[str] | None]:
    def change(table: Table, row: int, column: int) -> list[str] | None:
        table.columns[column][row] = value
        return [f"column {table.names[column]!r}, row {row + 1}"]

    return change


def put_label(value: Any) -> Callable[[Table, int, int], list[str] | None]:
    def change(table: Table, row: int, column: int) -> list[str] | None:
        others = [label for place, label in enumerate(table.labels) if place != row]
        if value != "" and not (others and all(isinstance(label, int) for label in others)):
            return None
        table.labels[row] = value
        return [f"column {table.label!r}, row {row + 1}"]

    return change


def name_twice(table: Table, row: int, column: int) -> list[str] | None:
    table.names.append(table.names[column])
    table.columns.append(list(table.columns[column]))
    return [repr(table.names[column])]


def label_twice(table: Table, row: int, column: int) -> list[str] | None:
    table.names.append(table.label)
    table.columns.append(list(table.labels))
    return [repr(table.label)]


def nameless(table: Table, row: int, column: int) -> list[str] | None:
    table.names[column] = ""
    return [f"none for column {column + 1}"]


def no_label(table: Table, row: int, column: int) -> list[str] | None:
    table.label = f"{table.label}?"
    return ["expected a column"]


def one_column_more(table: Table, row: int, column: int) -> list[str] | None:
    table.names.append("one more")
    table.columns.append([1.0] * len(table.labels))
    return ["'one more'"]


def no_rows(table: Table, row: int, column: int) -> list[str] | None:
    table.columns, table.labels = [[] for _ in table.columns], []
    return ["expected rows, got none"]


def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[Table, int, int], list[str] | None]:
    def apply(table: Table, row: int, column: int) -> list[str] | None:
        table.raw = change
        return []

    return apply


def too_many_fields(table: Table, row: int, column: int) -> list[str] | None:
    table.extra.append((row, ["1"] * (len(table.names) + 3)))
    return []


def too_few_fields(table: Table, row: int, column: int) -> list[str] | None:
    table.extra.append((row, ["1"]))
    return [f"row {row + 1}"]


TROUBLES: dict[str, Callable[[Table, int, int], list[str] | None]] = {
    "empty": put(""),
    "text": put("old"),
    "nan": put("nan"),
    "NA": put("NA"),
    "inf": put("inf"),
    "-Infinity": put("-Infinity"),
    "1e400": put("1e400"),
    "decimal comma": put("1,5"),
    "underscore": put("1_000"),
    "hexadecimal": put("0x10"),
    "date": put("2024-01-31"),
    "percent": put("5%"),
    "whole number of 400 digits": put("9" * 400),
    "empty label": put_label(""),
    "label NA": put_label("NA"),
    "label nan": put_label("nan"),
    "negative label": put_label(-1),
    "label 0.5": put_label(0.5),
    "huge label": put_label(10**12),
    "infinite label": put_label("inf"),
    "a name twice": name_twice,
    "the label twice": label_twice,
    "nameless": nameless,
    "no label": no_label,
    "one column more": one_column_more,
    "no rows": no_rows,
    "no bytes": bytes_of(lambda content: b""),
    "blank": bytes_of(lambda content: b"\n \n\n"),
    "UTF-16": bytes_of(lambda content: content.decode("utf-8-sig").encode("utf-16")),
    "Latin-1": bytes_of(lambda content: content + b"\xe9\n"),
    "an open quote": bytes_of(lambda content: content + b'"1,2\n'),
    "a PNG": bytes_of(lambda content: b"\x89PNG\r\n\x1a\n" + content),
    "too many fields": too_many_fields,
    "too few fields": too_few_fields,
}
WITH_TWO_FILES = ("one column more",)


def text_of(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def as_csv(table: Table, form: dict[str, Any]) -> bytes:
    """The file of a table: quoting, ends of lines, a BOM, blank lines, blanks around numbers."""
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=form["quoting"], lineterminator=form["end"])
    writer.writerow([*table.names, table.label])
    for place, (row, values) in enumerate(zip(range(len(table.labels) + 1), [*table.rows(), None], strict=True)):
        for _, line in [entry for entry in table.extra if entry[0] == place]:
            writer.writerow(line)
        if values is not None:
            if row in form["blank lines"]:
                stream.write(form["end"])
            writer.writerow(list(map(text_of, values)))
    return table.raw((b"\xef\xbb\xbf" if form["bom"] else b"") + stream.getvalue().encode())


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    label = draw(st.sampled_from(["label", "y", "Klasse ä"]).filter(lambda name: name not in names))
    classes, kinds = draw(CLASSES), [draw(COLUMNS) for _ in names]
    parts: list[Table] = []
    for _ in range(draw(st.integers(1, 2))):
        count = draw(st.integers(3, 8))
        columns = [draw(st.lists(kind, min_size=count, max_size=count)) for kind in kinds]
        parts.append(Table(list(names), columns, label, draw(st.lists(st.sampled_from(classes), min_size=count, max_size=count))))
    form = {
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        "end": draw(st.sampled_from(["\n", "\r\n"])),
        "bom": draw(st.booleans()),
        "blank lines": draw(st.sets(st.integers(0, 8), max_size=2)),
    }
    order = draw(st.permutations(range(len(names))))
    ending = draw(st.sampled_from([".csv", ".CSV"]))
    spot = st.tuples(st.integers(0, len(parts) - 1), st.integers(0, 2), st.integers(0, len(names) - 1))
    trouble = draw(st.none() | st.tuples(st.sampled_from(sorted(TROUBLES)), spot))
    return {"parts": parts, "form": form, "order": order, "ending": ending, "trouble": trouble, "label": label}


def written(drawn: dict[str, Any], root: Path) -> tuple[Path, list[str] | None]:
    """Writes the files; the path for `data.root`, and what an error must name (None if the table is fine)."""
    parts: list[Table] = drawn["parts"]
    root.mkdir()
    for number, table in enumerate(parts):
        table.path = root / f"{('train', 'test')[number]}{drawn['ending']}"
    if len(parts) == 2:  # in another order of columns
        parts[1].names = [parts[1].names[place] for place in drawn["order"]]
        parts[1].columns = [parts[1].columns[place] for place in drawn["order"]]
    needles = None
    if drawn["trouble"]:
        what, (number, row, column) = drawn["trouble"]
        assume(len(parts) == 2 or what not in WITH_TWO_FILES)
        needles = TROUBLES[what](parts[number], row, column)
        assume(needles is not None)
        event(what)
        needles = [*(needles or []), str(parts[number].path)]
    for table in parts:
        table.path.write_bytes(as_csv(table, drawn["form"]))
    return (root if len(parts) == 2 else parts[0].path), needles


def standardised(train: list[float], part: list[float]) -> list[float]:
    """By exact sums, after division by the largest magnitude."""
    largest = max(map(abs, train)) or 1.0
    train, part = [value / largest for value in train], [value / largest for value in part]
    mean = math.fsum(train) / len(train)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in train) / len(train))
    return [0.0 if max(train) == min(train) else (value - mean) / std if std else math.nan for value in part]


def class_numbers(labels: list[Any], every: list[Any]) -> list[int]:
    if all(numeric(str(label)) for label in every):
        return [int({"True": "1", "False": "0"}.get(str(label), label)) for label in labels]
    names = sorted(set(map(str, every)))
    return [names.index(str(label)) for label in labels]


@pytest.mark.filterwarnings("error")
@fuzzing
@given(tables())
def test_a_table_is_read_as_it_is_or_refused(drawn: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root, needles = written(drawn, Path(place) / "root")
        parts: list[Table] = drawn["parts"]
        refusal = ""
        try:
            with limited():
                dataset = load_dataset("table", root, options={"label": drawn["label"]}, cache_dir=Path(place) / "cache")
        except DataMissing as error:
            refusal = str(error)
        event("refused" if refusal else "read")
        if needles is not None:
            assert refusal, f"{drawn['trouble'][0]} must be refused"
            assert [needle for needle in needles if needle not in refusal] == [], refusal
            return
        if refusal:  # a test row so far from the training part that float32 cannot hold it
            assert "expected a number that float32 can hold after standardising in column" in refusal, refusal
            return
        halves = [dataset.train, dataset.test]
        every = [label for table in parts for label in table.labels]
        numbers = [class_numbers(table.labels, every) for table in parts]
        columns = [dict(zip(table.names, table.columns, strict=True)) for table in parts]
        if len(parts) == 1:  # the rows of both parts, in their order
            size = round(0.2 * len(parts[0].labels))
            assert [len(half.labels) for half in halves] == [len(parts[0].labels) - size, size]
            assert sorted([*halves[0].labels.tolist(), *halves[1].labels.tolist()]) == sorted(numbers[0])
        else:
            assert [half.labels.tolist() for half in halves] == numbers
            for feature, name in enumerate(parts[0].names):
                train = list(map(float, columns[0][name]))
                for half, part in zip(halves, columns, strict=True):
                    expected = standardised(train, list(map(float, part[name])))
                    got = half.inputs[:, 0, 0, feature].tolist()
                    assert all(math.isfinite(value) for value in got)
                    spread = max(train) - min(train)
                    if spread and spread > 1e-9 * max(map(abs, train)):  # else the digits that remain are few
                        assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert dataset.num_classes == 1 + max(map(max, numbers))
        assert halves[0].inputs.shape[1:] == (1, 1, len(parts[0].names))
        missing = set(range(dataset.num_classes)) - set(halves[0].labels.tolist())
        assert bool(missing) == any("have no row in the training part" in note for note in dataset.notes)


Kind = tuple[Any, st.SearchStrategy[Any]]  # an Arrow type, and values of it
GOOD: dict[str, Kind] = {
    "int8": (pa.int8(), st.integers(-128, 127)),
    "uint64": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "float32": (pa.float32(), st.floats(-100, 100, width=32)),
    "float64": (pa.float64(), st.floats(-1e6, 1e6)),
    "bool": (pa.bool_(), st.booleans()),
    "decimal": (pa.decimal128(12, 2), st.decimals(-1000, 1000, places=2)),
    "dictionary": (pa.dictionary(pa.int8(), pa.int64()), st.integers(0, 5)),
    "text of a number": (pa.string(), st.integers(0, 99).map(str)),
}
BAD: dict[str, Kind] = {
    "date": (pa.date32(), st.dates()),
    "timestamp": (pa.timestamp("us"), st.datetimes(datetime.datetime(1990, 1, 1), datetime.datetime(2030, 1, 1))),
    "duration": (pa.duration("s"), st.timedeltas(datetime.timedelta(0), datetime.timedelta(9))),
    "time": (pa.time64("us"), st.times()),
    "list": (pa.list_(pa.int64()), st.lists(st.integers(0, 9), max_size=2)),
    "struct": (pa.struct([("a", pa.int64())]), st.just({"a": 1})),
    "binary": (pa.binary(), st.binary(max_size=3)),
    "null": (pa.null(), st.none()),
    "text": (pa.string(), st.just("old")),
    "missing": (pa.int64(), st.none()),
    "NaN": (pa.float64(), st.just(math.nan)),
    "infinity": (pa.float64(), st.just(math.inf)),
}
LABELS: dict[str, Kind] = {
    "int": (pa.int32(), st.integers(0, 3)),
    "float": (pa.float64(), st.integers(0, 3).map(float)),
    "bool": (pa.bool_(), st.booleans()),
    "text": (pa.string(), st.sampled_from(["b", "a", "ä"])),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["b", "a"])),
    "date": (pa.date32(), st.sampled_from([datetime.date(2024, 1, 2), datetime.date(2023, 1, 2)])),
}


@st.composite
def arrow_tables(draw: st.DrawFn) -> tuple[dict[str, tuple[str, list[Any]]], str, list[Any], str, bool]:
    """Columns with their kinds, the kind of the labels and the labels, the name of a bad column, and whether pandas' index is one of them."""
    count = draw(st.integers(5, 9))

    def column(kinds: dict[str, Kind]) -> tuple[str, list[Any]]:
        kind = draw(st.sampled_from(sorted(kinds)))
        return kind, draw(st.lists(kinds[kind][1], min_size=count, max_size=count))

    columns = {f"c{number}": column(GOOD) for number in range(draw(st.integers(1, 4)))}
    bad = draw(st.sampled_from(["", "", "odd"]))
    if bad:
        columns[bad] = column(BAD)
    kind, labels = column(LABELS)
    return columns, kind, labels, bad, draw(st.booleans())


@fuzzing
@given(arrow_tables())
def test_a_parquet_file_is_read_as_it_is_or_refused(drawn: Any) -> None:
    columns, kind, labels, bad, indexed = drawn
    arrays = {name: pa.array(values, ({**GOOD, **BAD})[of][0]) for name, (of, values) in columns.items()}
    table = pa.table({**arrays, "label": pa.array(labels, LABELS[kind][0])})
    event(f"{kind} labels")
    if bad:
        event(columns[bad][0])
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "all.parquet"
        if indexed and not bad:  # written by pandas with a column as its index
            table.to_pandas().set_index("c0").to_parquet(path)
        else:
            pq.write_table(table, path)
        refusal = ""
        try:
            with limited():
                dataset = load_dataset("table", path, cache_dir=Path(place) / "cache")
        except DataMissing as error:
            refusal = str(error)
        if bad:
            assert str(path) in refusal
            assert f"column {bad!r}" in refusal
            return
        assert refusal == ""
        halves = [dataset.train, dataset.test]
        texts = sorted(set(map(str, labels)))
        numbers = [int(label) if kind in ("int", "float", "bool") else texts.index(str(label)) for label in labels]
        size = round(0.2 * len(labels))
        rows = np.concatenate([half.labels.numpy() for half in halves])
        assert sorted(rows.tolist()) == sorted(numbers)
        assert len(halves[1].labels) == size
        for feature, name in enumerate(columns):
            values = sorted(map(float, columns[name][1]))
            together = np.sort(np.concatenate([half.inputs[:, 0, 0, feature].numpy() for half in halves]).astype(np.float64))
            if np.ptp(together):  # standardising keeps the order and the ratios of distances
                scaled = (np.array(values) - values[0]) / (values[-1] - values[0])
                assert np.allclose((together - together[0]) / np.ptp(together), scaled, atol=1e-5)
