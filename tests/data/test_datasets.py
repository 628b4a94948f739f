"""Reading, caching and naming what is missing, on small files written here in the formats of the real ones."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch

from fl_sim.data import datasets
from fl_sim.data.datasets import DATASETS, DataMissing, Dataset, Examples, data_missing, load_dataset, normalised
from tests.support.small_data import FEW, FEWER, pictures, write_cifar, write_idx, write_image_folder, write_svhn


def load(name: str, base: Path, **options: Any) -> Dataset:
    return load_dataset(name, base, cache_dir=base / "cache", **options)


def same(left: Dataset, right: Dataset) -> bool:
    tensors = [(*dataset.train, *dataset.test) for dataset in (left, right)]
    rest = [(dataset.name, dataset.num_classes, dataset.mean, dataset.std, dataset.fingerprint) for dataset in (left, right)]
    return rest[0] == rest[1] and all(torch.equal(*pair) for pair in zip(*tensors, strict=True))


@pytest.mark.parametrize(
    ("name", "write", "shape"),
    [
        ("mnist", write_idx, (1, 28, 28)),
        ("fashion-mnist", partial(write_idx, folder="FashionMNIST"), (1, 28, 28)),
        ("cifar10", write_cifar, (3, 32, 32)),
        ("svhn", write_svhn, (3, 32, 32)),
    ],
)
def test_each_format_is_read_in_its_order(
    name: str, write: Callable[[Path], None], shape: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def exists(path: str, md5: str) -> bool:
        return Path(path).exists()

    for module in ("cifar", "svhn"):  # these two compare checksums, which no file of ours can have
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", exists)
    write(tmp_path)
    dataset = load(name, tmp_path)
    assert (dataset.image_shape, dataset.num_classes) == (shape, 10)
    for part, labels in ((dataset.train, FEW), (dataset.test, FEWER)):
        assert (part.inputs.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert part.labels.tolist() == labels.tolist()
        expected = pictures(labels, *shape) if shape[0] == 3 else pictures(labels, *shape[1:])[:, None]
        assert np.array_equal(part.inputs.numpy(), expected)


def test_digits_need_no_files_and_are_divided_once_for_all(tmp_path: Path) -> None:
    assert data_missing("digits", tmp_path / "nowhere") is None
    dataset = load("digits", tmp_path)
    assert (dataset.train.inputs.shape, dataset.test.inputs.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    counts = torch.bincount(dataset.test.labels, minlength=10)
    assert counts.min() > 20, "scikit-learn's order is not random over writers: the fifth must be drawn"
    rows = {row.numpy().tobytes() for part in (dataset.train, dataset.test) for row in part.inputs}
    assert len(rows) == 1797, "both parts together are the 1,797 different digits"


def test_statistics_and_normalisation(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    dataset = load("image-folder", tmp_path)
    pixels = dataset.train.inputs.numpy().astype(np.float64)
    assert dataset.mean == pytest.approx(pixels.mean((0, 2, 3)))
    assert dataset.std == pytest.approx(pixels.std((0, 2, 3)))
    images = normalised(dataset.train.inputs, dataset)
    assert images.dtype == torch.float32
    assert images.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert images.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1])
    stacked = torch.stack([dataset.train.inputs[:2], dataset.train.inputs[2:4]])  # two clients with a batch of two
    assert torch.equal(normalised(stacked, dataset).flatten(0, 1), images[:4])
    part = Examples(torch.full((2, 1, 2, 2), 7, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    flat = Dataset("flat", part, part, 1, (7.0,), (0.0,), "")
    assert (normalised(part.inputs, flat) == 0).all()


def test_the_second_load_decodes_nothing_and_maps_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path)
    first = load("mnist", tmp_path)
    monkeypatch.setattr(datasets, "_read", None)  # calling it would raise
    second = load("mnist", tmp_path)
    assert same(first, second)
    maps = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    assert len({path for path in maps if path.startswith(str(tmp_path)) and path.endswith(".npy")}) == 4, "read into memory, not mapped"
    second.train.inputs.zero_()  # copy on write: neither the file nor the other tensor changes
    assert same(first, load("mnist", tmp_path))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "pixels cut short": lambda folder: cut(folder / "train-inputs.npy"),
    "labels empty": lambda folder: (folder / "test-labels.npy").write_bytes(b""),
    "labels absent": lambda folder: (folder / "train-labels.npy").unlink(),
    "labels of another length": lambda folder: np.save(folder / "train-labels.npy", np.zeros(3, np.int64)),
    "labels out of range": lambda folder: np.save(folder / "train-labels.npy", np.full(len(FEW), 10, np.int64)),
    "images of another size": lambda folder: np.save(folder / "test-inputs.npy", np.zeros((len(FEWER), 1, 9, 9), np.uint8)),
    "objects instead of pixels": lambda folder: np.save(folder / "train-inputs.npy", np.array([{}]), allow_pickle=True),
    "about cut short": lambda folder: cut(folder / "about.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_rebuilt(damage: str, tmp_path: Path) -> None:
    write_idx(tmp_path)
    load("mnist", tmp_path)
    (folder,) = (tmp_path / "cache").iterdir()
    DAMAGE[damage](folder)
    assert datasets._open(folder, "mnist") is None  # pyright: ignore[reportPrivateUsage]
    assert same(load("mnist", tmp_path), load_dataset("mnist", tmp_path, cache_dir=tmp_path / "another"))
    assert list((tmp_path / "cache").iterdir()) == [folder], "something was left beside the cache"
    assert datasets._open(folder, "mnist") is not None  # pyright: ignore[reportPrivateUsage]


def test_the_loser_of_a_race_keeps_the_winners_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The winner writes while the loser decodes, here for certain: the loser's reader runs a whole load first."""
    write_idx(tmp_path)
    read = datasets._read  # pyright: ignore[reportPrivateUsage]
    winner: list[tuple[Dataset, int]] = []

    def read_slowly(*arguments: Any) -> Any:
        monkeypatch.setattr(datasets, "_read", read)
        dataset = load("mnist", tmp_path)
        (folder,) = (tmp_path / "cache").iterdir()
        winner.append((dataset, folder.stat().st_ino))
        return read(*arguments)

    monkeypatch.setattr(datasets, "_read", read_slowly)
    loser = load("mnist", tmp_path)
    ((dataset, inode),) = winner
    assert same(loser, dataset)
    assert [path.stat().st_ino for path in (tmp_path / "cache").iterdir()] == [inode]


def test_parts_with_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path)
    images = np.zeros((len(FEWER), 9, 9), np.uint8)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(struct.pack(">iiii", 0x803, *images.shape) + images.tobytes())
    with pytest.raises(DataMissing, match=r"holds images of \(1, 28, 28\) to train on and of \(1, 9, 9\) to test"):
        load("mnist", tmp_path)


def test_what_a_killed_process_left_of_a_cache_is_removed_when_it_is_old(tmp_path: Path) -> None:
    write_idx(tmp_path)
    load("mnist", tmp_path)
    (folder,) = (tmp_path / "cache").iterdir()
    shutil.rmtree(folder)
    old, young = ((tmp_path / "cache" / f".{folder.name}-{name}") for name in ("old", "young"))
    for draft in (old, young):
        draft.mkdir()
    os.utime(old, (0, 0))
    load("mnist", tmp_path)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {folder.name, young.name}, "another process may be at work"


WRITERS: dict[str, Callable[[Path], None]] = {
    "mnist": write_idx,
    "svhn": write_svhn,
    "cifar10": write_cifar,
    "image-folder": write_image_folder,
}


@pytest.mark.filterwarnings("ignore")  # Pillow's and numpy's, about what they are given
@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_file_is_named_or_is_whole_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short, overwritten, emptied, or with bits turned: data that can be trained on, or one error that names the key and the folder."""
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)  # type: ignore[misc]  # even past the checksum
    (tmp_path / "whole").mkdir()
    WRITERS[name](tmp_path / "whole")
    random, refused = np.random.default_rng(8), 0
    for trial in range(60):
        root = tmp_path / str(trial)
        shutil.copytree(tmp_path / "whole", root)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        path = files[int(random.integers(len(files)))]
        content = bytearray(path.read_bytes())
        kind, place = trial % 4, int(random.integers(min(len(content), 600)))
        if kind == 0:
            del content[place:]
        elif kind == 1:
            content[place : place + 16] = random.bytes(16)
        elif kind == 2:
            content[place] ^= 1 << int(random.integers(8))
        else:
            content.clear()
        path.write_bytes(content)
        said, dataset = "", None
        try:
            dataset = load(name, root)
        except DataMissing as error:
            said = str(error)
        if dataset is None:
            refused += 1
            assert "data.name" in said, said
            assert str(root) in said, said
            assert not (root / "cache").exists() or not list((root / "cache").iterdir()), "nothing half-written"
            continue
        for part in (dataset.train, dataset.test):
            assert part.inputs.dtype == torch.uint8
            assert len(part.inputs) == len(part.labels) > 0
            assert 0 <= int(part.labels.min()) <= int(part.labels.max()) < dataset.num_classes
    assert refused >= 15, "an emptied file cannot be read"


REMEDIES = {"image-folder": "train/CLASS/*", "table": ".parquet file", "hugging-face": "save_to_disk"}


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_missing_data_names_key_value_and_remedy(name: str, tmp_path: Path) -> None:
    message = data_missing(name, tmp_path)
    assert message is not None
    assert message.startswith(f"data.name = {name!r}: not found under data.root = {str(tmp_path)!r}")
    assert REMEDIES.get(name, "set data.download = true") in message
    with pytest.raises(DataMissing) as caught:
        load(name, tmp_path)
    assert str(caught.value) == message
    assert isinstance(caught.value, FileNotFoundError)
    assert not (tmp_path / "cache").exists()


def test_files_that_fail_their_checksum_are_named(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    assert data_missing("cifar10", tmp_path) is None
    with pytest.raises(DataMissing, match=r"data\.name = 'cifar10': could not be read from data\.root = .*corrupted"):
        load("cifar10", tmp_path)


def test_only_missing_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "server")
    fetched: list[str] = []

    def fetch(url: str, download_root: str, filename: str, md5: str) -> None:
        fetched.append(filename)
        shutil.copy(tmp_path / "server" / "MNIST" / "raw" / Path(filename).stem, download_root)

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fetch)
    dataset = load("mnist", tmp_path, download=True)
    assert dataset.train.labels.tolist() == FEW.tolist()
    assert same(load("mnist", tmp_path, download=True), dataset)
    assert len(fetched) == 4


def test_a_failed_download_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    with pytest.raises(DataMissing, match=r"(?s)data\.name = 'mnist'.*Error downloading.*no route to host"):
        load("mnist", tmp_path, download=True)


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    """The same wherever it lies; another for a changed pixel and for a changed label, though mean, std and counts stay (a burn-in's cache
    was keyed by these once)."""
    for name in ("one", "copy", "pixels", "labels"):
        write_idx(tmp_path / name)
    raw = [tmp_path / name / "MNIST" / "raw" for name in ("pixels", "labels")]
    images, labels = raw[0] / "train-images-idx3-ubyte", raw[1] / "train-labels-idx1-ubyte"
    content = images.read_bytes()
    images.write_bytes(content[:16] + content[16:][::-1])
    labels.write_bytes(labels.read_bytes()[:8] + labels.read_bytes()[8:][::-1])
    one, copy, *others = (load("mnist", tmp_path / name) for name in ("one", "copy", "pixels", "labels"))
    assert len(one.fingerprint) == 64
    assert one.fingerprint == copy.fingerprint
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 3
    assert all((other.mean, other.std) == (one.mean, one.std) for other in others)
