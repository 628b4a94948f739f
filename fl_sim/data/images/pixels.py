"""From a Pillow image of any mode to pixels of eight bits. What cannot be shown in eight bits is refused."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's names; its EPS reader starts a program

ORIENTATION, BITS, PHOTOMETRIC, SAMPLE_FORMAT = 0x0112, 258, 262, 339  # tags of EXIF and TIFF
WHITE_IS_ZERO, SIGNED = 0, 2


class Image(NamedTuple):
    """An image file, decoded: pixels (3, H, W), and what a reader of the data should know of it.

    transparent: some pixel is not opaque; frames: how many the file has (the first is read); turned: EXIF says that the camera was turned,
    and the pixels are upright here; dim: it has 16 bits a pixel and no level above 4095; warning: Pillow's, empty if it had none.
    """

    pixels: NDArray[np.uint8]
    transparent: bool
    frames: int
    turned: bool
    dim: bool
    warning: str


def read_image(path: Path) -> Image:
    """An image file in RGB. Raises ValueError, with the path, if it is no image that can be decoded to 8 bits."""
    import PIL.Image

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise ValueError("expected a file, got a pipe, a socket or a device")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with _whole_files_only(), PIL.Image.open(path, formats=FORMATS) as image:
                decoded = _decoded(image)
                if image.format == "PNG":  # the others have no checksums; and Pillow decodes a PNG whose end is zeros
                    with PIL.Image.open(path) as again:
                        again.verify()
    except Exception as error:  # Pillow raises anything for a damaged file
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
        raise ValueError(f"{path}: {reason or type(error).__name__}") from error
    return decoded._replace(warning=str(caught[0].message) if caught else "")


@contextmanager
def _whole_files_only() -> Generator[None]:
    """Inside the block Pillow refuses files that are cut short, whatever code from outside has set."""
    from PIL import ImageFile

    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _decoded(image: Any) -> Image:
    frames = getattr(image, "n_frames", 1)
    bits, tagged = _png_bits(image), _turn(image) is not None  # in this order: to look for the tag loads a PNG
    image.load()  # it turns a TIFF, and then the tag is gone; a PNG may have its tag behind the pixels
    turn = _turn(image)
    turned = tagged or turn is not None
    if image.mode in ("L", "RGB") and bits:
        _scale_transparent_level(image, bits)
    straight = with_alpha(eight_bits(image))
    if image.mode.startswith("I"):  # of grey levels that are scaled
        transparent = "transparency" in image.info and bool((_levels(image) == image.info["transparency"]).any())
    else:
        transparent = straight.mode == "RGBA" and straight.getchannel("A").getextrema()[0] < 255
    rgb = straight.convert("RGB")
    dim = _white_level(image) == 65535 and int(_levels(image).max()) <= 4095
    return Image(np.asarray(rgb if turn is None else rgb.transpose(turn)).transpose(2, 0, 1), transparent, frames, turned, dim, "")


def _png_bits(image: Any) -> int:
    """The bits of a level in a PNG that was opened and not loaded, 0 for other formats. Source: PNG specification, 11.2.1."""
    if image.format != "PNG":
        return 0
    place = image.fp.tell()
    image.fp.seek(24)
    bits = image.fp.read(1)[0]
    image.fp.seek(place)
    return bits


def _scale_transparent_level(image: Any, bits: int) -> None:
    """Scale the transparent level or colour of a PNG as Pillow scales its pixels: it leaves it as it is in the file. Only its lowest `bits`
    count. Of 16 the upper 8 are left, so that a colour that differs in the lower ones counts as transparent too.
    Source: PNG specification, 11.3.2.1.
    """

    def scaled(level: int) -> int:
        return level >> 8 if bits == 16 else (level & (2**bits - 1)) * 255 // (2**bits - 1)

    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        image.info["transparency"] = scaled(transparent)
    elif transparent:
        image.info["transparency"] = tuple(map(scaled, transparent))


def with_alpha(image: Any) -> Any:
    """A Pillow image in RGBA if it has transparency in any form, else as it is. (From some forms Pillow cannot go to RGB, or warns.)"""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    return image


def _turn(image: Any) -> Any:
    """How to transpose an image so that it is upright; None if it is. Source: EXIF 2.32, tag 274."""
    from PIL.Image import Transpose

    turns = (
        *(Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE),
        *(Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90),
    )
    return dict(enumerate(turns, start=2)).get(image.getexif().get(ORIENTATION, 1))


def eight_bits(image: Any) -> Any:
    """A Pillow image with 16 (or 12) bits per grey pixel scaled to 8, to the nearest level (Pillow itself cuts at 255); any other as it is.

    Raises ValueError for pixels whose white level is not defined: those of 32 bits, and those with a sign.
    """
    if image.mode == "L" and _tag(image, SAMPLE_FORMAT) == SIGNED:
        raise ValueError("expected pixels without a sign, got a TIFF of signed ones")
    if top := _white_level(image):
        from PIL.Image import fromarray

        return fromarray(((255 * _levels(image) + top // 2) // top).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"expected pixels of 8 or 16 bits, got 32, or signed ones (mode {image.mode!r})")
    return image


def _white_level(image: Any) -> int:
    """The level of white in a grey image of 12 or 16 bits; 0 of any other image."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 4095 if _tag(image, BITS) == 12 else 65535
    return 0


def _levels(image: Any) -> NDArray[np.int64]:
    """The levels (H, W) of a grey image of 12 or 16 bits, 0 for black."""
    levels = np.asarray(image).astype(np.int64)
    return _white_level(image) - levels if _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO else levels  # Pillow minds it with 8 bits only


def _tag(image: Any, number: int) -> Any:
    """The (first) value of a TIFF tag; None if the image is no TIFF or has no such tag."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value
