"""Reading, caching and naming what is missing, on small files written here in the formats of the real ones."""

from __future__ import annotations

import os
import pickle
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
from PIL import Image

from fl_sim.data import datasets
from fl_sim.data.datasets import DATASETS, DataMissing, Dataset, Images, data_missing, load_dataset, normalised

Numbers = np.ndarray[Any, np.dtype[np.integer[Any]]]
FEW, FEWER = np.array([0, 3, 3, 9, 1]), np.array([2, 9])  # labels of the two parts


def pictures(labels: Numbers, *shape: int) -> Numbers:
    """Image i is noise around 10 i, so that an exchanged image, row or channel shows."""
    noise = np.random.default_rng(0).integers(0, 200, (len(labels), *shape))
    return (noise + 10 * np.arange(len(labels)).reshape(-1, *(1 for _ in shape))).astype(np.uint8)


def write_idx(root: Path, folder: str = "MNIST") -> None:
    """The big-endian format of MNIST and its kin: magic number, sizes, bytes."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for part, labels in (("train", FEW), ("t10k", FEWER)):
        images = pictures(labels, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 0x803, *images.shape) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, len(labels)) + labels.astype(np.uint8).tobytes())


def write_cifar(root: Path) -> None:
    """Five pickled batches, here of one image each, a test batch and the names of the classes; rows are (3, 32, 32), flat."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    train, test = (pictures(labels, 3, 32, 32).reshape(len(labels), -1) for labels in (FEW, FEWER))
    batches = {f"data_batch_{row + 1}": (train[[row]], FEW[[row]]) for row in range(5)} | {"test_batch": (test, FEWER)}
    for name, (rows, labels) in batches.items():
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": labels.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(label) for label in range(10)]}))


def write_svhn(root: Path) -> None:
    from scipy.io import savemat  # pyright: ignore[reportUnknownVariableType]

    for part, labels in (("train", FEW), ("test", FEWER)):
        images = pictures(labels, 3, 32, 32).transpose(2, 3, 1, 0)  # (H, W, C, n) in the file, and the digit 0 is class 10
        savemat(root / f"{part}_32x32.mat", {"X": images, "y": np.where(labels == 0, 10, labels)[:, None]})


def write_image_folder(root: Path, size: tuple[int, int] = (6, 4)) -> None:
    for part, labels in (("train", FEW), ("test", np.array([0, 1, 3, 9]))):
        for row, (image, label) in enumerate(zip(pictures(labels, *size, 3), labels, strict=True)):
            (root / part / f"class-{label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / part / f"class-{label}" / f"{row}.png")


def load(name: str, base: Path, **options: Any) -> Dataset:
    return load_dataset(name, base, cache_dir=base / "cache", **options)


def same(left: Dataset, right: Dataset) -> bool:
    tensors = [(*dataset.train, *dataset.test) for dataset in (left, right)]
    rest = [(dataset.name, dataset.num_classes, dataset.mean, dataset.std) for dataset in (left, right)]
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
        assert (part.pixels.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert part.labels.tolist() == labels.tolist()
        expected = pictures(labels, *shape) if shape[0] == 3 else pictures(labels, *shape[1:])[:, None]
        assert np.array_equal(part.pixels.numpy(), expected)


def test_image_folder_is_read_in_class_order_with_progress(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    steps: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))

    dataset = load("image-folder", tmp_path, progress=progress)
    assert steps == [(done, 9) for done in range(1, 10)]
    assert (dataset.image_shape, dataset.num_classes) == ((3, 6, 4), 4)
    assert dataset.train.labels.tolist() == [0, 1, 2, 2, 3]  # class-0, class-1, class-3 twice, class-9
    rows = [0, 4, 1, 2, 3]
    assert np.array_equal(dataset.train.pixels.numpy(), pictures(FEW, 6, 4, 3)[rows].transpose(0, 3, 1, 2))


def test_image_folder_refuses_other_sizes_and_classes(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    odd = tmp_path / "test" / "class-9" / "odd.png"
    Image.fromarray(np.zeros((5, 4, 3), np.uint8)).save(odd)
    with pytest.raises(DataMissing, match=r"odd\.png: expected images of one size, 4x6 like .*0\.png, got 4x5"):
        load("image-folder", tmp_path)
    odd.unlink()
    (tmp_path / "test" / "class-1").rename(tmp_path / "test" / "other")
    with pytest.raises(DataMissing, match="expected the same classes in train and test"):
        load("image-folder", tmp_path)


def test_digits_need_no_files_and_are_divided_once_for_all(tmp_path: Path) -> None:
    assert data_missing("digits", tmp_path / "nowhere") is None
    dataset = load("digits", tmp_path)
    assert (dataset.train.pixels.shape, dataset.test.pixels.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    counts = torch.bincount(dataset.test.labels, minlength=10)
    assert counts.min() > 20, "scikit-learn's order is not random over writers: the fifth must be drawn"
    rows = {row.numpy().tobytes() for part in (dataset.train, dataset.test) for row in part.pixels}
    assert len(rows) == 1797, "both parts together are the 1,797 different digits"


def test_statistics_and_normalisation(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    dataset = load("image-folder", tmp_path)
    pixels = dataset.train.pixels.numpy().astype(np.float64)
    assert dataset.mean == pytest.approx(pixels.mean((0, 2, 3)))
    assert dataset.std == pytest.approx(pixels.std((0, 2, 3)))
    images = normalised(dataset.train.pixels, dataset)
    assert images.dtype == torch.float32
    assert images.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert images.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1])
    stacked = torch.stack([dataset.train.pixels[:2], dataset.train.pixels[2:4]])  # two clients with a batch of two
    assert torch.equal(normalised(stacked, dataset).flatten(0, 1), images[:4])
    part = Images(torch.full((2, 1, 2, 2), 7, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    flat = Dataset("flat", part, part, 1, (7.0,), (0.0,))
    assert (normalised(part.pixels, flat) == 0).all()


def test_the_second_load_decodes_nothing_and_maps_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path)
    first = load("mnist", tmp_path)
    monkeypatch.setattr(datasets, "_read", None)  # calling it would raise
    second = load("mnist", tmp_path)
    assert same(first, second)
    maps = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    assert len({path for path in maps if path.startswith(str(tmp_path)) and path.endswith(".npy")}) == 4, "read into memory, not mapped"
    second.train.pixels.zero_()  # copy on write: neither the file nor the other tensor changes
    assert same(first, load("mnist", tmp_path))


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    before = load("image-folder", tmp_path)
    shutil.copy(tmp_path / "train" / "class-0" / "0.png", tmp_path / "train" / "class-9" / "copy.png")
    after = load("image-folder", tmp_path)
    assert (len(before.train.labels), len(after.train.labels)) == (5, 6)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "pixels cut short": lambda folder: cut(folder / "train-pixels.npy"),
    "labels empty": lambda folder: (folder / "test-labels.npy").write_bytes(b""),
    "labels absent": lambda folder: (folder / "train-labels.npy").unlink(),
    "labels of another length": lambda folder: np.save(folder / "train-labels.npy", np.zeros(3, np.int64)),
    "labels out of range": lambda folder: np.save(folder / "train-labels.npy", np.full(len(FEW), 10, np.int64)),
    "images of another size": lambda folder: np.save(folder / "test-pixels.npy", np.zeros((len(FEWER), 1, 9, 9), np.uint8)),
    "objects instead of pixels": lambda folder: np.save(folder / "train-pixels.npy", np.array([{}]), allow_pickle=True),
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
            assert part.pixels.dtype == torch.uint8
            assert len(part.pixels) == len(part.labels) > 0
            assert 0 <= int(part.labels.min()) <= int(part.labels.max()) < dataset.num_classes
    assert refused >= 15, "an emptied file cannot be read"


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_missing_data_names_key_value_and_remedy(name: str, tmp_path: Path) -> None:
    message = data_missing(name, tmp_path)
    assert message is not None
    assert message.startswith(f"data.name = {name!r}: not found under data.root = {str(tmp_path)!r}")
    assert ("train/CLASS/*" if name == "image-folder" else "set data.download = true") in message
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


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.name: expected one of digits, .*image-folder, got 'imagenet'"):
        load("imagenet", tmp_path)
