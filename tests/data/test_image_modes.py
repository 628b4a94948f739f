"""Every form of image is read as what it shows, or refused with its path."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch.utils.data import TensorDataset

from fl_sim.data.datasets import DataMissing, Dataset, load_dataset
from fl_sim.data.images.pixels import eight_bits, read_image, with_alpha
from fl_sim.registry import offer
from tests.support.odd_images import FORMS, noise, png, turned
from tests.support.small_data import write_image_folder


def load(base: Path) -> Dataset:
    return load_dataset("image-folder", base, cache_dir=base.parent / "cache")


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read_as_what_it_shows(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{FORMS[form].ending}"
    expected = FORMS[form].write(noise(5, 7, seed=3), path)
    image = read_image(path)
    assert np.abs(image.pixels.transpose(1, 2, 0).astype(int) - expected).max() <= (1 if form == "CMYK" else 0)
    assert image.transparent == any(word in form for word in ("LA", "RGBA", "transparency"))
    assert (image.frames, image.turned) == (1 + ("animated" in form), form.startswith("turned"))
    assert image.warning == ""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations(orientation: int, tmp_path: Path) -> None:
    expected = turned(noise(3, 5, seed=1), tmp_path / "image.png", orientation)
    assert np.array_equal(read_image(tmp_path / "image.png").pixels.transpose(1, 2, 0), expected)


def twelve_bits(path: Path) -> None:
    """A TIFF of 2x1 pixels with 12 bits each: 4095 and 0."""
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 200, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(head.ljust(200, b"\0") + b"\xff\xf0\x00")


def test_twelve_bits_have_another_white(tmp_path: Path) -> None:
    twelve_bits(tmp_path / "image.tif")
    assert read_image(tmp_path / "image.tif").pixels[0].tolist() == [[255, 0]]


SIXTEEN = struct.pack(">4H", 0, 1000, 30000, 65535)
COLOURS = struct.pack(">6H", 256, 512, 768, 1024, 1280, 1536)


@pytest.mark.parametrize(
    ("bits", "colour", "row", "there", "absent"),
    [
        (1, 0, b"\xff", (1,), (0,)),
        (2, 0, b"\x06", (2,), (3,)),
        (4, 0, b"\x01\x7f", (7,), (6,)),
        (8, 0, b"\1\7\x08\x09", (7,), (6,)),
        (8, 0, b"\1\7\x08\x09", (256 + 7,), (256 + 6,)),
        (16, 0, SIXTEEN, (1000,), (1001,)),
        (16, 0, SIXTEEN, (65535,), (65534,)),
        (8, 2, bytes(range(12)), (3, 4, 5), (3, 4, 6)),
        (16, 2, COLOURS, (1024, 1280, 1536), (4, 5, 6)),
    ],
)
def test_a_transparent_level_of_a_png_is_seen_with_every_number_of_bits(
    bits: int, colour: int, row: bytes, there: tuple[int, ...], absent: tuple[int, ...], tmp_path: Path
) -> None:
    """Only the lowest bits of the level count if the image has fewer than 16."""
    path, width = tmp_path / "image.png", 8 * len(row) // (bits * (3 if colour else 1))
    pixels: list[Any] = []
    for levels in (there, absent):
        path.write_bytes(png(bits, colour, [row], levels, width))
        image = read_image(path)
        assert image.transparent == (levels == there)
        pixels.append(image.pixels)
    assert np.array_equal(*pixels), "the colours are read, the transparency is not"


GREYISH = noise(6, 4, seed=0)[..., :3] // 4 + 96  # what LAB of 8 bits can hold


def lab(path: Path) -> None:
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(Image.fromarray(GREYISH), transform).save(path)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def signed(path: Path) -> None:
    Image.fromarray(noise(6, 4, seed=0)[..., 0].copy()).save(path, tiffinfo={339: 2})


REFUSED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "float": (".tif", lambda path: Image.fromarray(np.zeros((6, 4), np.float32)).save(path), "expected pixels of 8 or 16 bits"),
    "32 bits": (".tif", lambda path: Image.fromarray(np.zeros((6, 4), np.int32)).save(path), "expected pixels of 8 or 16 bits"),
    "signed": (".tif", signed, "expected pixels without a sign"),
    "nothing": (".png", lambda path: path.write_bytes(b""), "cannot identify"),
    "text": (".jpg", lambda path: path.write_text("no image"), "cannot identify"),
    "PostScript": (".png", lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 6\nshowpage\n"), "cannot identify"),
    "pipe": (".png", pipe, "expected a file, got a pipe"),
    "link to nowhere": (".png", lambda path: path.symlink_to("nowhere"), "No such file"),
    "size": (".png", lambda path: Image.fromarray(np.zeros((6, 5, 3), np.uint8)).save(path), "expected images of one size"),
    "bomb": (".ppm", lambda path: path.write_bytes(b"P6 20000 20000 255\n"), "exceeds limit"),
    "half a bomb": (".ppm", lambda path: path.write_bytes(b"P6 10000 10000 255\n"), "exceeds limit"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_others_are_refused_with_their_path(what: str, tmp_path: Path) -> None:
    write_image_folder(tmp_path / "root")
    ending, write, message = REFUSED[what]
    path = tmp_path / "root" / "test" / "class-3" / f"odd{ending}"
    write(path)
    with pytest.raises(DataMissing, match=f"{path}: .*{message}"):
        load(tmp_path / "root")


def test_lab_is_converted_or_refused(tmp_path: Path) -> None:
    """Pillow 13 converts it; older versions do not."""
    lab(tmp_path / "image.tif")
    with Image.open(tmp_path / "image.tif") as image:
        assert image.mode == "LAB"
        try:
            image.convert("RGB")
        except ValueError:
            with pytest.raises(ValueError, match=str(tmp_path / "image.tif")):
                read_image(tmp_path / "image.tif")
            return
    pixels = read_image(tmp_path / "image.tif").pixels.transpose(1, 2, 0)
    assert np.abs(pixels.astype(int) - GREYISH).max() <= 3


def test_a_link_to_a_folder_above_is_refused(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "root")
    link = tmp_path / "root" / "train" / "class-0" / "again"
    link.symlink_to(tmp_path / "root" / "train")
    with pytest.raises(DataMissing, match=f"{link}: expected no link to a folder above it"):
        load(tmp_path / "root")


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path / "root")
    scan = os.scandir

    def refusing(place: Any) -> Any:
        if str(place).endswith("class-3"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataMissing, match="class-3: Permission denied"):
        load(tmp_path / "root")


def test_what_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path / "root")
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 600}))
    with pytest.raises(DataMissing, match=r"expected a data set that fits into memory, .*\(9 examples of 3x6x4\)"):
        load(tmp_path / "root")


def test_what_a_researcher_should_know_is_said(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_image_folder(root)
    colours = noise(6, 4, seed=5)
    for name, form in (("alpha", "RGBA .png"), ("film", "animated .png"), ("side", "turned .png")):
        FORMS[form].write(colours if name == "alpha" else noise(6, 4, seed=len(name)), root / "train" / "class-0" / f"{name}.png")
    Image.fromarray(colours[..., :3].copy()).save(root / "test" / "class-9" / "twin.png")
    (root / "val" / "class-0").mkdir(parents=True)
    notes = "\n".join(load(root).notes)
    for sentence in (
        "left out val, with class folders like those of train",
        "1 images with transparent pixels: their colours are read, their transparency is not (train/class-0/alpha.png)",
        "1 images of several frames: the first is read (train/class-0/film.png)",
        "1 images turned upright, as their EXIF orientation says (train/class-0/side.png)",
        "1 images of the test part that are in the training part too, pixel by pixel (test/class-9/twin.png)",
        "1 images with the pixels of an image of another class (test/class-9/twin.png)",
    ):
        assert f"{root}: {sentence}" in notes
    assert load(root).notes == tuple(notes.split("\n")), "from the cache too"


def test_one_class_is_read_and_said(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / "root" / part / "only").mkdir(parents=True)
        FORMS["L .png"].write(noise(3, 3, seed=len(part)), tmp_path / "root" / part / "only" / "a.png")
    dataset = load(tmp_path / "root")
    assert (dataset.num_classes, len(dataset.train.labels)) == (1, 1)
    assert "there is one class only, 'only': every accuracy is 100 %" in dataset.notes[0]


def test_a_name_that_is_no_text_can_be_said(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "root")
    Path(os.fsdecode(os.fsencode(tmp_path / "root" / "train" / "class-0") + b"/\xff.png")).write_text("no image")
    with pytest.raises(DataMissing, match=r"class-0/\?\.png: cannot identify") as caught:
        load(tmp_path / "root")
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize("mode", ["La", "LA", "PA", "RGBa", "RGBX", "YCbCr", "HSV", "CMYK", "1", "I;16"])
def test_pillow_images_of_own_data_sets(mode: str, tmp_path: Path) -> None:
    """Uniform colours: the conversions of Pillow to and fro lose at most two levels."""
    grey = mode in ("La", "LA", "1", "I;16")
    image = Image.new("RGB", (4, 6), (255, 255, 255) if mode == "1" else (120, 120, 120) if grey else (204, 102, 51))
    steps = {"La": ["LA", "La"], "PA": ["P", "PA"], "RGBa": ["RGBA", "RGBa"], "I;16": ["L", "I", "I;16"]}.get(mode, [mode])
    odd = image
    for step in steps:
        odd = odd.convert(step)
    if mode == "I;16":
        odd = Image.fromarray(np.full((6, 4), 120 * 257, np.uint16))
    shown = np.asarray(with_alpha(eight_bits(odd)).convert("RGB")).astype(int)
    assert np.abs(shown - np.asarray(image)).max() <= 2

    def own(root: Path) -> tuple[Any, Any]:
        return [(odd, 0), (odd, 1)], TensorDataset(
            torch.zeros(1, *((1 if mode == "I;16" else 3), 6, 4), dtype=torch.uint8), torch.zeros(1).long()
        )

    dataset = load_dataset(offer(own), tmp_path, cache_dir=tmp_path / "cache")
    assert np.abs(dataset.train.inputs[0].numpy().astype(int).transpose(1, 2, 0) - np.asarray(image)).max() <= 2


def test_dim_images_of_sixteen_bits_and_classes_of_nearly_one_name_are_said(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(("Cat", "cat", "dog")):
            (tmp_path / "root" / part / name).mkdir(parents=True)
            levels = np.arange(16, dtype=np.uint16).reshape(4, 4) * (273 if number else 4369) + 16 * (part == "test")
            Image.fromarray(np.minimum(levels, 4095 if number else 65535).astype(np.uint16)).save(tmp_path / "root" / part / name / "1.png")
    notes = "\n".join(load(tmp_path / "root").notes)
    assert "4 images of 16 bits with no level above 4095" in notes
    assert "the classes 'Cat' and 'cat' differ in capitals or blanks alone" in notes
