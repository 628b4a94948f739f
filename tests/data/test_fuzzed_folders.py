"""Image folders of all kinds: each is read as it is, pixel by pixel, or refused with the path of what is wrong."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st
from PIL import Image

from fl_sim.data.datasets import DataMissing, load_dataset
from tests.support.fuzz import fuzzing, limited
from tests.support.odd_images import FORMS, Pixels, noise

LETTERS = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/")
NAMES = st.one_of(
    st.text(LETTERS, min_size=1, max_size=12).filter(lambda name: not name.startswith(".") and len(name.encode()) < 200),
    st.sampled_from(["cat", "Cat", "CAT", "0", "10", "9", "a b", "e\u0301", "é", "train", "x.png", "__MACOSX", "-", "…", "ß"]),
    st.just(os.fsdecode(b"caf\xe9")),
)
STEMS = st.one_of(NAMES.filter(lambda name: len(name.encode("utf-8", "replace")) < 100), st.sampled_from(["1", "2", "10", "IMG 1", "a.b"]))
DEPTHS = st.lists(NAMES, max_size=3)


@dataclass
class Tree:
    """A folder on the disk, and what a reader must make of it."""

    root: Path
    size: tuple[int, int]
    images: dict[Path, tuple[Pixels, int, int]] = field(default_factory=dict)  # pixels, number of the class, allowed difference
    left_out: dict[str, int] = field(default_factory=lambda: {"hidden": 0, "other": 0, "outside": 0})
    wrong: list[Path] = field(default_factory=list)  # what must be named


def order(root: Path, classes: list[str]) -> list[Path]:
    """The files of class folders as torchvision orders them: `sorted(os.walk(...))`, then the files by name."""
    return [
        Path(place) / name
        for part in sorted(classes)
        for place, _, names in sorted(os.walk(root / part, followlinks=True))
        for name in sorted(names)
    ]


def not_read(path: Path) -> None:
    """Raises FileExistsError."""
    with path.open("x") as file:
        file.write("not read")


# What may lie in a class folder besides its images: each takes the tree, a class folder and a name.
def hidden_file(tree: Tree, folder: Path, name: str) -> None:
    not_read(folder / f".{name}.png")
    tree.left_out["hidden"] += 1


def hidden_folder(tree: Tree, folder: Path, name: str) -> None:
    (folder / f".{name}").mkdir()
    (folder / f".{name}" / "0.png").write_text("not read")
    tree.left_out["hidden"] += 1


def hidden_class(tree: Tree, folder: Path, name: str) -> None:
    (folder.parent / f".{name}").mkdir()
    (folder.parent / f".{name}" / "0.png").write_text("not read")
    tree.left_out["hidden"] += 1


def other_type(tree: Tree, folder: Path, name: str) -> None:
    not_read(folder / f"{name}.gif")
    tree.left_out["other"] += 1


def stray(tree: Tree, folder: Path, name: str) -> None:
    not_read(folder.parent / f"{name}.jpg")
    tree.left_out["outside"] += 1


def empty_folder(tree: Tree, folder: Path, name: str) -> None:
    (folder / name).mkdir()


def deep_folder(tree: Tree, folder: Path, name: str) -> None:
    folder.joinpath(*["d"] * 60).mkdir(parents=True)


EXTRAS = [hidden_file, hidden_folder, hidden_class, other_type, stray, empty_folder, deep_folder]


# What is wrong, each with the same arguments.
def cut(tree: Tree, folder: Path, name: str) -> None:
    path = folder / f"{name}.png"
    Image.fromarray(noise(*tree.size, seed=0)[..., :3].copy()).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    tree.wrong.append(path)


def garbage(tree: Tree, folder: Path, name: str) -> None:
    path = folder / f"{name}.JPEG"
    path.write_bytes(noise(20, 20, seed=len(name)).tobytes())
    tree.wrong.append(path)


def nothing(tree: Tree, folder: Path, name: str) -> None:
    path = folder / f"{name}.webp"
    path.write_bytes(b"")  # also where an image has that name
    tree.wrong.append(path)


def other_size(tree: Tree, folder: Path, name: str) -> None:
    path = folder / f"{name}.bmp"
    Image.fromarray(noise(tree.size[0] + 1, tree.size[1], seed=0)[..., :3].copy()).save(path)
    tree.wrong.append(path)


def real_numbers(tree: Tree, folder: Path, name: str) -> None:
    path = folder / f"{name}.tiff"
    Image.fromarray(np.zeros(tree.size, np.float32)).save(path)
    tree.wrong.append(path)


def pipe(tree: Tree, folder: Path, name: str) -> None:
    path = folder / f"{name}.png"
    os.mkfifo(path)
    tree.wrong.append(path)


def dead_link(tree: Tree, folder: Path, name: str) -> None:
    path = folder / f"{name}.png"
    path.symlink_to("nowhere")
    tree.wrong.append(path)


def endless_link(tree: Tree, folder: Path, name: str) -> None:
    (folder / name).symlink_to(folder.parent)
    tree.wrong.append(folder / name)


def bomb(tree: Tree, folder: Path, name: str) -> None:
    path = folder / f"{name}.ppm"
    path.write_bytes(b"P6 30000 30000 255\n")
    tree.wrong.append(path)


def empty_class(tree: Tree, folder: Path, name: str) -> None:
    for part in ("train", "test"):
        (tree.root / part / f"{name} empty").mkdir()
    tree.wrong.append(tree.root / "train" / f"{name} empty")


def class_in_one_part(tree: Tree, folder: Path, name: str) -> None:
    (folder.parent / f"{name} alone").mkdir()
    FORMS["L .png"].write(noise(*tree.size, seed=1), folder.parent / f"{name} alone" / "0.png")
    tree.wrong.append(tree.root)


def part_without_classes(tree: Tree, folder: Path, name: str) -> None:
    shutil.rmtree(tree.root / "test")
    (tree.root / "test").mkdir()
    tree.wrong.append(tree.root)


TROUBLES: list[Callable[[Tree, Path, str], None]] = [
    *(cut, garbage, nothing, other_size, real_numbers, pipe, dead_link),
    *(endless_link, bomb, empty_class, class_in_one_part, part_without_classes),
]


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[str], tuple[int, int], list[Any], list[Any], Any]:
    classes = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    size = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    image = st.tuples(DEPTHS, STEMS, st.sampled_from(sorted(FORMS)), st.booleans())  # and whether it is a link to a file elsewhere
    images = [draw(st.lists(image, min_size=1, max_size=3, unique_by=lambda item: (tuple(item[0]), item[1].lower()))) for _ in classes * 2]
    spot = st.tuples(st.sampled_from(["train", "test"]), st.sampled_from(classes), STEMS)
    extras = draw(st.lists(st.tuples(st.sampled_from(EXTRAS), spot), max_size=3))
    trouble = draw(st.none() | st.tuples(st.sampled_from(TROUBLES), spot))
    return classes, size, images, extras, trouble


def build(root: Path, drawn: tuple[list[str], tuple[int, int], list[Any], list[Any], Any]) -> Tree:
    classes, size, images, extras, trouble = drawn
    tree, numbers = Tree(root, size), {name: number for number, name in enumerate(sorted(classes))}
    (root.parent / "elsewhere").mkdir()
    for place, entries in enumerate(images):
        part, name = ("train", "test")[place // len(classes)], classes[place % len(classes)]
        for row, (depth, stem, form, linked) in enumerate(entries):
            folder = (root / part / name).joinpath(*depth)
            path = folder / f"{stem}{FORMS[form].ending}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):  # an image has that name
                continue
            if path.exists():
                continue
            place_of_file = root.parent / "elsewhere" / f"{place}-{row}{FORMS[form].ending}" if linked else path
            tree.images[path] = FORMS[form].write(noise(*size, seed=100 * place + row), place_of_file), numbers[name], int(form == "CMYK")
            if linked:
                path.symlink_to(place_of_file)
    for what, (part, name, stem) in [*extras, *([trouble] if trouble else [])]:
        (root / part / name).mkdir(parents=True, exist_ok=True)
        try:
            what(tree, root / part / name, stem)
        except FileExistsError:
            continue
        event(what.__name__)
    return tree


@fuzzing
@given(trees())
def test_a_folder_is_read_as_it_is_or_refused(drawn: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "root"
        tree, refusal = build(root, drawn), ""
        try:
            with limited():
                dataset = load_dataset("image-folder", root, cache_dir=Path(place) / "cache")
                again = load_dataset("image-folder", root, cache_dir=Path(place) / "cache")
        except DataMissing as error:
            refusal = str(error)
        event("refused" if refusal else "read")
        if refusal:
            shown = [str(path).encode("utf-8", "replace").decode() for path in tree.wrong]
            assert any(path in refusal for path in shown), f"expected one of {shown}, got {refusal}"
            return
        assert not tree.wrong, f"{tree.wrong} must be refused"
        for part, examples in (("train", dataset.train), ("test", dataset.test)):
            files = [path for path in order(root / part, drawn[0]) if path in tree.images]
            labels = [tree.images[path][1] for path in files]
            assert examples.labels.tolist() == labels
            for path, pixels in zip(files, examples.inputs.numpy(), strict=True):
                difference = np.abs(pixels.transpose(1, 2, 0).astype(int) - tree.images[path][0])
                assert difference.max() <= tree.images[path][2], path
        assert dataset.num_classes == len(drawn[0])
        notes = "\n".join(dataset.notes)
        for kind, words in (
            ("hidden", "hidden files or folders"),
            ("other", "files of other types"),
            ("outside", "files that lie in no class"),
        ):
            count = tree.left_out[kind]
            assert (f"left out {count} {words}" in notes) if count else (words not in notes)
        assert (again.fingerprint, again.notes) == (dataset.fingerprint, dataset.notes)
        "".join(dataset.notes).encode("utf-8")
