"""Image folders: which files are read, in which order and depth, what is left out and said, and when the cache is made anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from fl_sim.data.datasets import DataMissing, Dataset, load_dataset
from fl_sim.data.images.folder import list_images
from fl_sim.data.images.pixels import read_image
from tests.support.odd_images import noise
from tests.support.small_data import FEW, pictures, write_image_folder


def load(base: Path, **options: Any) -> Dataset:
    return load_dataset("image-folder", base, cache_dir=base / "cache", **options)


def test_images_are_read_in_class_order_with_progress(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    steps: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))

    dataset = load(tmp_path, progress=progress)
    assert steps == [(done, 9) for done in range(1, 10)]
    assert (dataset.image_shape, dataset.num_classes) == ((3, 6, 4), 4)
    assert dataset.train.labels.tolist() == [0, 1, 2, 2, 3]  # class-0, class-1, class-3 twice, class-9
    rows = [0, 4, 1, 2, 3]
    assert np.array_equal(dataset.train.inputs.numpy(), pictures(FEW, 6, 4, 3)[rows].transpose(0, 3, 1, 2))
    assert dataset.notes == ()


def test_the_files_are_those_of_torchvisions_image_folder_in_its_order(tmp_path: Path) -> None:
    names = ["b/2.png", "b/10.PNG", "b/sub/deep/1.jpg", "b/sub-x/1.tif", "a/z.webp", "a/Z.bmp", "a/notes.txt", "B/1.ppm", "B/none"]
    for name in [*names, "elsewhere/linked.pgm"]:
        path = tmp_path / name.replace("elsewhere", "../elsewhere")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "a" / "link").symlink_to(tmp_path.parent / "elsewhere")
    theirs, ours = ImageFolder(tmp_path), list_images(tmp_path)
    assert ours.classes == theirs.classes
    assert [(str(path), number) for path, number in ours.images] == theirs.samples
    assert {path.name for path in ours.other} == {"notes.txt", "none"}


def test_other_sizes_and_classes_are_refused_with_their_path(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    odd = tmp_path / "test" / "class-9" / "odd.png"
    Image.fromarray(np.zeros((5, 4, 3), np.uint8)).save(odd)
    with pytest.raises(DataMissing, match=r"odd\.png: expected images of one size, 4x6 like .*0\.png, got 4x5"):
        load(tmp_path)
    odd.unlink()
    (tmp_path / "test" / "class-9" / "3.png").unlink()
    with pytest.raises(DataMissing, match=r"test/class-9: expected images \(.*\.png.*\), got none"):
        load(tmp_path)
    (tmp_path / "test" / "class-1").rename(tmp_path / "test" / "other")
    with pytest.raises(DataMissing, match="expected the same classes in train and test"):
        load(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_damaged_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path, (40, 40))
    path = tmp_path / "train" / "class-3" / "2.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataMissing, match=r"class-3/2\.png: .*truncated"):
        load(tmp_path)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 700)  # an error from twice as many
    with pytest.raises(DataMissing, match=r"class-0/0\.png: .*exceeds limit"):
        load(tmp_path)


SAVED = {
    "jpg": {},
    "progressive.jpg": {"progressive": True},
    "png": {},
    "webp": {},
    "tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "bmp": {},
    "ppm": {},
}


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("lenient", [False, True])
def test_a_file_that_is_cut_short_is_named(kind: str, lenient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any place; and also if code of the user lets Pillow read such files."""
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", lenient)
    path = tmp_path / f"image.{kind}"
    Image.fromarray(noise(24, 24, seed=3)[..., :3].copy()).save(path, **SAVED[kind])
    whole = path.read_bytes()
    read_image(path)
    last = len(whole) - 4 * (kind == "png")  # after its end mark is that mark's checksum
    for size in {*range(0, last, max(last // 60, 1)), last - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{path}: "):
            read_image(path)


def test_a_png_with_other_bytes_is_named(tmp_path: Path) -> None:
    """Its checksums tell; also that of a file whose end is zeros, as after a download that was cut: Pillow itself reads that."""
    path = tmp_path / "image.png"
    Image.fromarray(noise(24, 24, seed=3)[..., :3].copy()).save(path)
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    for size in range(100, len(whole) - 12, 60):
        path.write_bytes(whole[:size].ljust(len(whole), b"\0"))
        with pytest.raises(ValueError, match=f"{path}: "):
            read_image(path)
    for place in draw.integers(0, len(whole) - 12, 200):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=f"{path}: "):
            read_image(path)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bits_are_scaled_to_eight(kind: str, tmp_path: Path) -> None:
    """257 v / 257 = v; and between two levels the nearer one."""
    levels = np.arange(24, dtype=np.uint16).reshape(6, 4) * 11
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.fromarray(levels * 257 + 128).save(tmp_path / part / "a" / f"x.{kind}")
        Image.fromarray(levels * 257 + 129).save(tmp_path / part / "a" / f"y.{kind}")
    below, above = load(tmp_path).train.inputs.numpy()
    assert np.array_equal(below, np.broadcast_to(levels, (3, 6, 4)))
    assert np.array_equal(above, np.broadcast_to(levels + 1, (3, 6, 4)))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_thirty_two_bits_are_refused_with_the_files_name(dtype: type, tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    Image.fromarray(np.zeros((6, 4), dtype)).save(tmp_path / "train" / "class-0" / "0.tif")
    with pytest.raises(DataMissing, match=r"class-0/0\.tif: expected pixels of 8 or 16 bits, got 32"):
        load(tmp_path)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    plain = load(tmp_path)
    image = tmp_path / "train" / "class-0" / "0.png"
    for name in ("train/.ipynb_checkpoints/0.png", "test/class-0/.thumbs/0.png", "test/class-1/._0.png", "train/stray.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(image, tmp_path / name)
    for name in ("train/class-0/1.gif", "train/class-0/2.GIF", "test/class-1/README"):
        (tmp_path / name).touch()
    dataset = load(tmp_path)
    assert dataset.fingerprint == plain.fingerprint, "a hidden folder is no class"
    hidden, other, stray = dataset.notes
    assert "3 hidden files or folders (train/.ipynb_checkpoints, test/class-0/.thumbs, test/class-1/._0.png)" in hidden
    assert "3 files of other types (2 .gif, 1 without an ending)" in other
    assert "1 files that lie in no class folder (train/stray.png)" in stray
    assert load(tmp_path).notes == dataset.notes, "the cache must not silence them"


def add_below(root: Path) -> None:
    folder = root / "train" / "class-0" / "sub"
    folder.mkdir()
    shutil.copy(root / "train" / "class-9" / "3.png", folder)


def swap_classes(root: Path) -> None:
    """Two folders whose files have the same names, sizes and times."""
    one, other = root / "train" / "class-0", root / "train" / "class-9"
    one.rename(root / "aside")
    other.rename(one)
    (root / "aside").rename(other)


def overwrite(root: Path) -> None:
    """In place, with as many bytes and the old times."""
    path = root / "train" / "class-0" / "x.bmp"
    before = path.stat()
    path.write_bytes((root / "train" / "class-9" / "x.bmp").read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [add_below, swap_classes, overwrite])
def test_changed_files_are_read_again(change: Callable[[Path], None], tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    for number, name in enumerate(("class-0", "class-9")):
        for path in (tmp_path / "train" / name).iterdir():
            path.unlink()
        image = tmp_path / "train" / name / "x.bmp"
        Image.fromarray(np.full((6, 4, 3), 100 * number, np.uint8)).save(image)
        os.utime(image, (0, 0))
    shutil.copy(tmp_path / "train" / "class-3" / "1.png", tmp_path / "train" / "class-9" / "3.png")
    shutil.copy(tmp_path / "train" / "class-3" / "1.png", tmp_path / "train" / "class-0" / "3.png")
    before = load(tmp_path)
    assert load(tmp_path).fingerprint == before.fingerprint
    change(tmp_path)
    after = load(tmp_path)
    assert after.fingerprint != before.fingerprint
    assert after.fingerprint == load_dataset("image-folder", tmp_path, cache_dir=tmp_path / "fresh").fingerprint
