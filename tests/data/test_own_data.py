"""Data sets from outside the repository: which examples are taken, and what is said of those that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fl_sim.data.datasets import Dataset, datasets, load_dataset, normalised
from fl_sim.data.outside import DataError, files_below
from fl_sim.registry import offer

Pair = tuple[Any, Any]


class Pairs:
    """A list of pairs as a map-style data set."""

    def __init__(self, *pairs: Pair) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> Pair:
        return self.pairs[row]


def load(made: Any, base: Path, **options: Any) -> Dataset:
    return load_dataset(offer(made), base, options=options, cache_dir=base / "cache")


def alike(make: Callable[[int], Any], base: Path) -> Dataset:
    """Three examples to train on and two to test, `make(i)` and the label 4 - i."""
    examples = [(make(i), 4 - i) for i in range(5)]
    return load(lambda root: (Pairs(*examples[:3]), Pairs(*examples[3:])), base)


def grey(i: int) -> np.ndarray:
    return np.arange(12, dtype=np.uint8).reshape(3, 4) + 20 * i


FORMS: dict[str, tuple[Callable[[int], Any], Callable[[int], Any], torch.dtype]] = {
    "uint8 (C, H, W)": (lambda i: torch.full((2, 3, 4), i, dtype=torch.uint8), lambda i: np.full((2, 3, 4), i), torch.uint8),
    "uint8 (H, W)": (lambda i: torch.from_numpy(grey(i)), lambda i: grey(i)[None], torch.uint8),
    "float (C, H, W)": (lambda i: torch.full((2, 3, 4), i / 3), lambda i: np.full((2, 3, 4), i / 3), torch.float32),
    "float (H, W)": (lambda i: torch.full((3, 4), i - 0.5), lambda i: np.full((1, 3, 4), i - 0.5), torch.float32),
    "features": (lambda i: torch.tensor([i, 0.25], dtype=torch.float64), lambda i: np.array([[[i, 0.25]]]), torch.float32),
    "half": (lambda i: torch.tensor([i, 0.25], dtype=torch.float16), lambda i: np.array([[[i, 0.25]]]), torch.float32),
    "grey image": (lambda i: Image.fromarray(grey(i)), lambda i: grey(i)[None], torch.uint8),
    "colour image": (lambda i: Image.fromarray(np.stack([grey(i)] * 3, 2)), lambda i: np.stack([grey(i)] * 3), torch.uint8),
    "image with alpha": (lambda i: Image.fromarray(np.stack([grey(i)] * 4, 2)), lambda i: np.stack([grey(i)] * 3), torch.uint8),
    "deep image": (lambda i: Image.fromarray(grey(i).astype(np.uint16) * 257), lambda i: grey(i)[None], torch.uint8),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_taken_as_it_is(form: str, tmp_path: Path) -> None:
    make, expected, dtype = FORMS[form]
    dataset = alike(make, tmp_path)
    assert dataset.train.inputs.dtype == dataset.test.inputs.dtype == dtype
    inputs = torch.cat([dataset.train.inputs, dataset.test.inputs]).numpy()
    np.testing.assert_allclose(inputs, np.stack([expected(i) for i in range(5)]), rtol=1e-7)
    assert dataset.train.labels.tolist() + dataset.test.labels.tolist() == [4, 3, 2, 1, 0]
    assert dataset.num_classes == 5
    model_inputs = normalised(dataset.train.inputs, dataset)
    assert model_inputs.dtype == torch.float32
    assert torch.equal(model_inputs, dataset.train.inputs) == (dtype == torch.float32), "features as they are, pixels normalised"


FINE = torch.zeros(3)
REST = Pairs((FINE, 0))
WRONG: dict[str, tuple[Any, str]] = {
    "one part": (lambda: (Pairs((FINE, 0)),), r"expected two data sets, \(train, test\), got tuple of 1"),
    "no pair of parts": (lambda: Pairs((FINE, 0)), r"expected two data sets, \(train, test\), got Pairs"),
    "an iterator": (lambda: (iter([(FINE, 0)]), Pairs((FINE, 0))), r"expected the training part to be a torch.* got list_iterator"),
    "empty": (lambda: (Pairs((FINE, 0)), Pairs()), r"expected examples in the test part, got none"),
    "no pair": (lambda: (Pairs((FINE, 0)), Pairs((FINE, 0, 1))), r"example 0 of the test part: expected a pair .* got tuple of 3"),
    "an array": (lambda: (Pairs((np.zeros(3), 0)), REST), r"expected a tensor or a Pillow image, got ndarray of shape \(3,\)"),
    "four dimensions": (lambda: (Pairs((torch.zeros(1, 2, 3, 4), 0)), REST), r"expected a tensor of shape .* got \(1, 2, 3, 4\)"),
    "no dimension": (lambda: (Pairs((torch.zeros(()), 0)), REST), r"expected a tensor of shape .* got \(\)"),
    "integers": (lambda: (Pairs((FINE.long(), 0)), REST), r"expected uint8 \(pixels\) or floating-point .* got torch\.int64"),
    "several sizes": (
        lambda: (Pairs((FINE, 0), (torch.zeros(4), 0)), Pairs((FINE, 0))),
        r"example 1 of the training part: expected features of shape \(1, 1, 3\) as the first .* got features of shape \(1, 1, 4\)",
    ),
    "several types": (
        lambda: (Pairs((FINE, 0)), Pairs((FINE.byte(), 0))),
        r"example 0 of the test part: expected features of shape \(1, 1, 3\) .* got pixels of shape \(1, 1, 3\)",
    ),
    "NaN": (lambda: (Pairs((FINE, 0), (FINE / 0, 0)), Pairs((FINE, 0))), r"example 1 of the training part: expected finite .* got NaN"),
    "beyond float32": (lambda: (Pairs((FINE.double() + 1e300, 0)), REST), r"expected finite numbers in float32"),
    "negative": (lambda: (Pairs((FINE, 0)), Pairs((FINE, -1))), r"example 0 of the test part: expected a label from 0 to 65535, got -1"),
    "huge": (lambda: (Pairs((FINE, 10**9)), REST), r"expected a label from 0 to 65535, got 1000000000"),
    "part of a label": (lambda: (Pairs((FINE, 0.5)), REST), r"expected a whole number as label, got 0\.5"),
    "bool": (lambda: (Pairs((FINE, True)), REST), r"expected a whole number as label, got True"),
    "text": (lambda: (Pairs((FINE, "cat")), REST), r"expected a whole number as label, got 'cat'"),
    "label (1,)": (lambda: (Pairs((FINE, torch.tensor([1]))), REST), r"expected a whole number as label, got Tensor of shape \(1,\)"),
    "32 bits": (lambda: (Pairs((Image.fromarray(np.zeros((2, 2), np.float32)), 0)), REST), r"expected pixels of 8 or 16 bits"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_used_is_said_in_one_sentence(what: str, tmp_path: Path) -> None:
    make, message = WRONG[what]

    def made(root: Path) -> Any:
        return make()

    with pytest.raises(DataError, match=rf"^data\.name = 'object:made-\w+': .*{message}") as caught:
        load(made, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_labels_may_be_numpys_and_tensors(tmp_path: Path) -> None:
    labels: list[Any] = [np.int32(3), torch.tensor(1), torch.tensor(2, dtype=torch.uint8)]
    dataset = load(lambda root: (Pairs(*((FINE, label) for label in labels)), Pairs((FINE, 0))), tmp_path)
    assert dataset.train.labels.tolist() == [3, 1, 2]


OWN = """
import torch

def wave(root, count=6, bad=-1):
    x = torch.rand(count, 2)
    y = [int(line) for line in (root / "labels.txt").read_text().split()]
    class Part:
        def __len__(self):
            return count
        def __getitem__(self, row):
            return x[row], y[row] + 0 * (1 // (row - bad))
    return Part(), Part()
"""


def own(tmp_path: Path, code: str = OWN) -> str:
    (tmp_path / "own.py").write_text(code)
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "labels.txt").write_text("0 1 2 0 1 2 0 1 2")
    return f"{tmp_path / 'own.py'}:wave"


def load_own(name: str, tmp_path: Path, **options: Any) -> Dataset:
    return load_dataset(name, tmp_path / "data", options=options, cache_dir=tmp_path / "data" / "cache")


def test_a_file_of_code_is_given_root_and_options_and_draws_the_same_again(tmp_path: Path) -> None:
    name, before = own(tmp_path), torch.get_rng_state()
    first = load_own(name, tmp_path)
    assert (first.image_shape, first.num_classes, len(first.train.labels)) == ((1, 1, 2), 3, 6)
    assert len(load_own(name, tmp_path, count=4).train.labels) == 4
    again = load_dataset(name, tmp_path / "data", cache_dir=tmp_path / "other")
    assert again.fingerprint == first.fingerprint
    assert torch.equal(before, torch.get_rng_state())
    assert datasets.options_problem(name, {"count": 3}, "data.options") == ""
    assert "has no option size; it takes count, bad" in datasets.options_problem(name, {"size": 3}, "data.options")


def test_the_cache_is_keyed_by_the_code_the_options_and_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = own(tmp_path)
    prints = [load_own(name, tmp_path).fingerprint]
    (tmp_path / "data" / "labels.txt").write_text("2 2 2 0 1 2 0 1 2")
    prints.append(load_own(name, tmp_path).fingerprint)
    own(tmp_path, OWN.replace("rand(", "randn("))
    prints.append(load_own(name, tmp_path).fingerprint)
    prints.append(load_own(name, tmp_path, count=3).fingerprint)
    assert len(set(prints)) == 4
    (tmp_path / "data" / ".hidden").touch()
    monkeypatch.setattr("fl_sim.data.datasets._read", None)  # calling it would raise
    assert load_own(name, tmp_path, count=3).fingerprint == prints[-1]


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        (OWN, {"bad": 2}, r"example 2 of the training part: .*own\.py, line 11: ZeroDivisionError: "),
        (OWN, {"count": 20}, r"example 9 of the training part: .*own\.py, line 11: IndexError: list index out of range"),
        (OWN, {"size": 3}, r"TypeError: wave\(\) got an unexpected keyword argument 'size'"),
        (OWN.replace("return count", "return None"), {}, r"the length of the training part: TypeError: 'NoneType'"),
        (OWN.replace("labels.txt", "label.txt"), {}, r"own\.py, line 6: FileNotFoundError: .*label\.txt"),
        (
            OWN.replace("import torch", "import torc"),
            {},
            r"cannot load data\.name = .*own\.py, line 2: ModuleNotFoundError: No module named 'torc'",
        ),
        (OWN.replace("wave", "other"), {}, r"cannot load data\.name = .*own\.py has no 'wave'"),
    ],
)
def test_an_error_of_the_code_is_given_with_its_line(code: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_own(own(tmp_path, code), tmp_path, **options)


def test_the_files_below_a_folder_follow_links_once(tmp_path: Path) -> None:
    for name in ("root/a/1", "root/.git/2", "root/a/.3", "root/cache/4", "linked/5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "root" / "b").symlink_to(tmp_path / "linked")
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path / "root")
    files = files_below(tmp_path / "root", tmp_path / "root" / "cache").files
    assert [str(file.relative_to(tmp_path / "root")) for file in files] == ["a/1", "b/5"]
    assert files_below(tmp_path / "linked" / "5").files == [tmp_path / "linked" / "5"]
    assert files_below(tmp_path / "nowhere").files == []


def test_examples_of_the_test_part_that_were_trained_on_are_said(tmp_path: Path) -> None:
    examples = [(torch.full((2, 3), float(i)), i % 2) for i in range(6)]
    dataset = load(lambda root: (Pairs(*examples[:4]), Pairs(*examples[2:])), tmp_path)
    assert dataset.notes == ("the data set: 2 of 4 examples of the test part are in the training part too",)
