"""Tables: features standardised by the training part, labels as class numbers, and each cell that cannot be used named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fl_sim.data.datasets import DataMissing, Dataset, datasets, load_dataset, normalised

Frame = pd.DataFrame


def frame(rows: int = 20, seed: int = 0) -> Frame:
    draws = np.random.default_rng(seed)
    label = np.arange(rows) % 3
    return Frame({"age": draws.normal(50, 9, rows), "label": label, "height": draws.integers(150, 200, rows), "one": [7.1] * rows})


def load(base: Path, root: Path | None = None, **options: Any) -> Dataset:
    return load_dataset("table", root or base, options=options, cache_dir=base / "cache")


WRITERS: dict[str, Callable[[Frame, Path], None]] = {
    "csv": lambda table, path: table.to_csv(path, index=False),
    "parquet": lambda table, path: table.to_parquet(path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_two_files_are_the_two_parts_standardised_by_the_first(kind: str, tmp_path: Path) -> None:
    train, test = frame(20), frame(8, seed=1)[["one", "label", "height", "age"]]  # another order of columns
    test["one"] = 9.0
    for part, table in (("train", train), ("test", test)):
        WRITERS[kind](table, tmp_path / f"{part}.{kind}")
    dataset = load(tmp_path)
    assert (dataset.image_shape, dataset.num_classes) == ((1, 1, 3), 3)
    assert (dataset.mean, dataset.std) == ((0.0,), (1.0,))
    assert dataset.train.labels.tolist() == train["label"].tolist()
    assert dataset.train.inputs.dtype == torch.float32
    for part, table in ((dataset.train, train), (dataset.test, test)):
        for column, name in enumerate(("age", "height")):
            expected = (table[name] - train[name].mean()) / train[name].std(ddof=0)
            assert part.inputs[:, 0, 0, column].tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)
        assert (part.inputs[..., 2] == 0).all(), "a feature that is constant in training says nothing"
    assert normalised(dataset.train.inputs, dataset) is dataset.train.inputs


def test_one_file_is_divided_once_for_all_in_its_order(tmp_path: Path) -> None:
    table = frame(40).assign(age=np.arange(40.0), label=np.arange(40) % 4)
    table.to_csv(tmp_path / "all.csv", index=False)
    dataset = load(tmp_path, tmp_path / "all.csv")
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (32, 8)
    for part in (dataset.train, dataset.test):
        assert (part.inputs[1:, 0, 0, 0] > part.inputs[:-1, 0, 0, 0]).all(), "the order of the file"
    both = torch.cat([dataset.train.inputs, dataset.test.inputs])[:, 0, 0, 0]
    assert len(both.unique()) == 40
    assert dataset.test.labels.unique().tolist() != [3], "not the end of the file"
    third = load(tmp_path, tmp_path / "all.csv", test_share=0.35)
    assert len(third.test.labels) == 14
    assert load_dataset("table", tmp_path / "all.csv", cache_dir=tmp_path / "other").fingerprint == dataset.fingerprint


def test_texts_are_numbered_in_sorted_order_over_both_parts(tmp_path: Path) -> None:
    for part, kinds in (("train", ["emu", "cat", "emu"]), ("test", ["dog", "cat", "ant"])):
        Frame({"x": [1.0, 2.0, 3.0], "kind": kinds}).to_csv(tmp_path / f"{part}.csv", index=False)
    dataset = load(tmp_path, label="kind")
    assert (dataset.num_classes, dataset.train.labels.tolist(), dataset.test.labels.tolist()) == (4, [3, 1, 3], [2, 1, 0])


def changed(column: str, row: int, value: Any) -> Callable[[Frame], Frame]:
    def change(table: Frame) -> Frame:
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
        return table

    return change


BAD: dict[str, tuple[Callable[[Frame], Frame], str]] = {
    "text": (changed("age", 4, "old"), r"all\.csv: expected a number in column 'age', row 5, got 'old'"),
    "missing": (changed("height", 2, None), r"all\.csv: expected a number in column 'height', row 3, got nothing"),
    "infinite": (changed("height", 0, "inf"), r"all\.csv: expected a finite number in column 'height', row 1, got "),
    "missing label": (changed("label", 6, None), r"all\.csv: expected a label in column 'label', row 7, got nothing"),
    "negative label": (changed("label", 1, -1), r"all\.csv: expected class numbers from 0, or texts, in column 'label', row 2, got -1"),
    "part of a label": (changed("label", 1, 0.5), r"all\.csv: expected class numbers from 0, or texts, in column 'label', row 2, got 0\.5"),
    "no label": (
        lambda table: table.rename(columns={"label": "labels"}),
        r"expected a column 'label' \(data\.options, 'label'\), got 'labels'",
    ),
    "labels alone": (lambda table: table[["label"]], r"all\.csv: expected a column of features beside 'label', got none"),
    "no rows": (lambda table: table[:0], r"all\.csv: expected rows, got none"),
    "one row": (lambda table: table[:1], r"expected data\.options 'test_share' to leave rows to both parts of 1, got 0\.2"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_used_is_named(what: str, tmp_path: Path) -> None:
    change, message = BAD[what]
    change(frame()).to_csv(tmp_path / "all.csv", index=False)
    with pytest.raises(DataMissing, match=r"data\.name = 'table': could not be read from data\.root = .*" + message):
        load(tmp_path, tmp_path / "all.csv")


def test_other_files_and_columns_are_refused(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(DataMissing, match=r"test\.csv or test\.parquet is missing"):
        load(tmp_path)
    frame().drop(columns="age").to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(DataMissing, match=r"expected the same columns in .*train\.csv and .*test\.csv, got 'age' in one alone"):
        load(tmp_path)
    frame().to_parquet(tmp_path / "test.parquet")
    with pytest.raises(DataMissing, match=r"expected one file for each part, got train\.csv, test\.csv, test\.parquet"):
        load(tmp_path)
    for name, text, message in (
        ("a.tsv", "x\tlabel\n1\t0\n", r"a\.tsv: expected a file of type \.csv or \.parquet"),
        ("ragged.csv", "x,label\n1,0,5\n2,1,5\n", r"ragged\.csv: expected no row with more fields than the first line"),
        ("index.csv", ",x,label\n0,3,1\n1,2,0\n", r"index\.csv: expected a name for each column, got none for column 1"),
        ("empty.csv", "", r"empty\.csv: No columns"),
        ("damaged.parquet", "PAR1", r"damaged\.parquet: "),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataMissing, match=message):
            load(tmp_path, tmp_path / name)


def test_changed_rows_are_read_again_and_options_are_part_of_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    frame().assign(group=np.arange(20) % 2).to_csv(path, index=False)
    first, other = load(tmp_path, path), load(tmp_path, path, label="group")
    assert (first.num_classes, other.num_classes) == (3, 2)
    frame(seed=5).to_csv(path, index=False)
    assert load(tmp_path, path).fingerprint != first.fingerprint


def test_options_are_known_beforehand() -> None:
    assert datasets.options_problem("table", {"label": "y", "test_share": 0.1}, "data.options") == ""
    assert "has no option labl; it takes label, test_share" in datasets.options_problem("table", {"labl": "y"}, "data.options")
    assert "has no option size; it takes none" in datasets.options_problem("digits", {"size": 3}, "data.options")


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (["0", "1", "other"], "all labels are texts, numbered in sorted order, because 'other' is no number (others are: '0')"),
        (["cat", "dog", "nan"], "'nan' is a class of its own, and no missing label"),
        (["cat", "Cat ", "dog"], "the classes 'Cat ' and 'cat' differ in capitals or blanks alone"),
    ],
)
def test_labels_that_may_be_mistakes_are_said(labels: list[str], note: str, tmp_path: Path) -> None:
    frame(30).assign(label=labels * 10).to_csv(tmp_path / "all.csv", index=False)
    assert [text.split(": ", 1)[1] for text in load(tmp_path, tmp_path / "all.csv").notes] == [note]


def test_a_label_of_blanks_is_missing(tmp_path: Path) -> None:
    frame(30).assign(label=["0", "1", " "] * 10).to_csv(tmp_path / "all.csv", index=False)
    with pytest.raises(DataMissing, match="expected a label in column 'label', row 3, got nothing"):
        load(tmp_path, tmp_path / "all.csv")


def test_rows_of_the_test_part_that_were_trained_on_are_said(tmp_path: Path) -> None:
    frame(20).to_csv(tmp_path / "train.csv", index=False)
    pd.concat([frame(20)[:6], frame(4, seed=1)]).to_csv(tmp_path / "test.csv", index=False)
    assert load(tmp_path).notes == (f"{tmp_path}: 6 of 10 rows of the test part are in the training part too",)


@pytest.mark.parametrize("share", [float("nan"), float("inf"), -0.2, 1, True])
def test_a_share_is_between_0_and_1(share: float, tmp_path: Path) -> None:
    frame(30).to_csv(tmp_path / "all.csv", index=False)
    with pytest.raises(DataMissing, match=r"expected data\.options 'test_share' to leave rows to both parts of 30, got"):
        load(tmp_path, tmp_path / "all.csv", test_share=share)


def test_rows_longer_than_the_names_are_said_in_our_words(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("# a comment\nage,label\n1,0\n2,1\n")
    with pytest.raises(DataMissing, match=r"all\.csv: expected no row with more fields than the first line, which names the columns"):
        load(tmp_path, tmp_path / "all.csv")
