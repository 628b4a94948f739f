"""Data sets that Hugging Face's `datasets` has saved on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fl_sim.data.datasets import DataMissing, Dataset, datasets, load_dataset
from fl_sim.data.outside import DataError
from fl_sim.registry import how_to_install

hugging_face = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")


def grey(i: int) -> np.ndarray:
    return np.arange(12, dtype=np.uint8).reshape(3, 4) + 20 * i


def save(base: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, parts: tuple[str, ...] = ("train", "test")) -> None:
    made = hugging_face.Dataset.from_dict(columns, features=hugging_face.Features(features) if features else None)
    hugging_face.DatasetDict(dict.fromkeys(parts, made)).save_to_disk(base)


def load_saved(base: Path, **options: Any) -> Dataset:
    return load_dataset("hugging-face", base, options=options, cache_dir=base / "cache")


def test_a_hugging_face_data_set_of_images(tmp_path: Path) -> None:
    images = [Image.fromarray(np.stack([grey(i)] * 3, 2)) for i in range(3)]
    features = {
        "image": hugging_face.Image(),
        "label": hugging_face.ClassLabel(names=["a", "b", "c", "d"]),
        "id": hugging_face.Value("int64"),
    }
    save(tmp_path, {"image": images, "label": [2, 0, 1], "id": [7, 8, 9]}, features)
    dataset = load_saved(tmp_path)
    assert np.array_equal(dataset.train.inputs.numpy(), np.stack([np.stack([grey(i)] * 3) for i in range(3)]))
    assert (dataset.test.labels.tolist(), dataset.num_classes) == ([2, 0, 1], 4), "a class may have no example"
    save(tmp_path, {"image": images[::-1], "label": [2, 0, 1], "id": [7, 8, 9]}, features)
    assert load_saved(tmp_path).fingerprint != dataset.fingerprint


def test_a_hugging_face_data_set_of_features(tmp_path: Path) -> None:
    save(tmp_path, {"x": [[0.5, 1.0], [2.0, -3.0]], "y": [1, 0]})
    dataset = load_saved(tmp_path, image="x", label="y")
    assert dataset.train.inputs.tolist() == [[[[0.5, 1.0]]], [[[2.0, -3.0]]]]
    assert dataset.num_classes == 2
    with pytest.raises(DataError, match=r"expected data\.options 'image' to be a column of the train part \('x', 'y'\), got 'image'"):
        load_saved(tmp_path)


def test_a_hugging_face_data_set_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"dataset_dict\.json is missing\); save it there"):
        load_saved(tmp_path / "nowhere")
    save(tmp_path, {"image": [[1.0]], "label": ["cat"]}, parts=("train", "validation"))
    with pytest.raises(DataError, match=r"data\.name = 'hugging-face': expected the parts 'train' and 'test', got 'train', 'validation'"):
        load_saved(tmp_path)
    save(tmp_path, {"image": [[1.0]], "label": ["cat"]})
    with pytest.raises(DataError, match=r"example 0 of the training part: expected a whole number as label, got 'cat'"):
        load_saved(tmp_path)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert how_to_install("datasets") in datasets.problem("hugging-face")
