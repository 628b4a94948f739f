"""Image files of every form that a folder may hold, with the pixels that they show: computed here, not by Pillow's conversions."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


class Form(NamedTuple):
    """ending: of the file; write: from random pixels (H, W, 4) to a file at a path, returning what the file shows, (H, W, 3)."""

    ending: str
    write: Callable[[Pixels, Path], Pixels]


def grey(levels: Any) -> Pixels:
    return np.repeat(np.asarray(levels, np.uint8)[..., None], 3, axis=2)


def one_bit(noise: Pixels, path: Path) -> Pixels:
    bits = noise[..., 0] > 127
    Image.fromarray(bits).save(path)
    return grey(255 * bits)


def eight_bits(noise: Pixels, path: Path) -> Pixels:
    Image.fromarray(noise[..., 0].copy()).save(path)
    return grey(noise[..., 0])


def grey_with_alpha(noise: Pixels, path: Path) -> Pixels:
    Image.fromarray(noise[..., :2].copy(), "LA").save(path)
    return grey(noise[..., 0])


def colour(noise: Pixels, path: Path) -> Pixels:
    Image.fromarray(noise[..., :3].copy()).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
    return noise[..., :3]


def colour_with_alpha(noise: Pixels, path: Path) -> Pixels:
    Image.fromarray(noise.copy()).save(path, **({"lossless": True, "exact": True} if path.suffix == ".webp" else {}))
    return noise[..., :3]


def palette(noise: Pixels, path: Path, **more: Any) -> Pixels:
    colours = np.arange(48, dtype=np.uint8).reshape(16, 3) * 5
    image = Image.fromarray(noise[..., 0] % 16, "P")
    image.putpalette(colours.tobytes())
    image.save(path, **more)
    return colours[noise[..., 0] % 16]


def palette_with_transparency(noise: Pixels, path: Path) -> Pixels:
    return palette(noise, path, transparency=bytes(range(0, 160, 10)))


def cmyk(noise: Pixels, path: Path) -> Pixels:
    Image.fromarray(noise.copy(), "CMYK").save(path)
    white = 255 - noise.astype(np.float64)
    return np.rint(white[..., :3] * white[..., 3:] / 255).astype(np.uint8)


def png(bits: int, colour: int, rows: list[bytes], transparent: tuple[int, ...], width: int) -> bytes:
    """A PNG of uncompressed rows, with a transparent level (a chunk tRNS). colour: 0 for grey, 2 for RGB."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0))
    levels = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + levels + pixels + chunk(b"IEND", b"")


def sixteen_bits(noise: Pixels, path: Path, white: int = 65535, **more: Any) -> Pixels:
    levels = noise[..., 0].astype(np.uint16) * 256 + noise[..., 1]
    Image.fromarray(levels).save(path, **more)
    return grey(np.rint(levels * (255 / white)))


def sixteen_bits_white_is_zero(noise: Pixels, path: Path) -> Pixels:
    return 255 - sixteen_bits(noise, path, tiffinfo={262: 0})


def sixteen_bits_big_endian(noise: Pixels, path: Path) -> Pixels:
    levels = noise[..., 0].astype(">u2") * 256 + noise[..., 1]
    image = Image.frombytes("I;16B", levels.shape[::-1], levels.astype(">u2").tobytes())
    image.save(path)
    return grey(np.rint(levels.astype(np.float64) / 257))


def plain_pgm(noise: Pixels, path: Path) -> Pixels:
    """PGM as text, with 1,000 for white."""
    levels = (noise[..., 0].astype(int) * 256 + noise[..., 1]) % 1001
    rows = "\n".join(" ".join(map(str, row)) for row in levels)
    path.write_text(f"P2\n{levels.shape[1]} {levels.shape[0]}\n1000\n{rows}\n")
    return grey(np.rint(np.rint(levels * 65.535) / 257))


def turned(noise: Pixels, path: Path, orientation: int = 6) -> Pixels:
    """Stored lying on its side, with the tag that says so: orientation 6 is to be turned by 90 degrees clockwise."""
    undo: dict[int, Callable[[Pixels], Pixels]] = {
        1: lambda pixels: pixels,
        2: lambda pixels: pixels[:, ::-1],
        3: lambda pixels: pixels[::-1, ::-1],
        4: lambda pixels: pixels[::-1],
        5: lambda pixels: pixels.transpose(1, 0, 2),
        6: lambda pixels: np.rot90(pixels, 1),
        7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: lambda pixels: np.rot90(pixels, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo[orientation](noise[..., :3]))).save(path, exif=exif)
    return noise[..., :3]


def animated(noise: Pixels, path: Path) -> Pixels:
    frames = [Image.fromarray(np.ascontiguousarray(part)) for part in (noise[..., :3], 255 - noise[..., :3])]
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if path.suffix == ".webp" else {}))
    return noise[..., :3]


FORMS: dict[str, Form] = {
    **{f"1 {ending}": Form(ending, one_bit) for ending in (".png", ".bmp", ".tif", ".pgm")},
    **{f"L {ending}": Form(ending, eight_bits) for ending in (".png", ".bmp", ".tiff", ".pgm", ".PNG")},
    **{f"LA {ending}": Form(ending, grey_with_alpha) for ending in (".png", ".tif")},
    **{f"P {ending}": Form(ending, palette) for ending in (".png", ".bmp", ".tif")},
    "P with transparency": Form(".png", palette_with_transparency),
    **{f"RGB {ending}": Form(ending, colour) for ending in (".png", ".bmp", ".tif", ".ppm", ".webp", ".Tif")},
    **{f"RGBA {ending}": Form(ending, colour_with_alpha) for ending in (".png", ".tif", ".webp")},
    "CMYK": Form(".tif", cmyk),
    **{f"16 bits {ending}": Form(ending, sixteen_bits) for ending in (".png", ".tif", ".pgm")},
    "16 bits, white is zero": Form(".tif", sixteen_bits_white_is_zero),
    "16 bits, big-endian": Form(".tif", sixteen_bits_big_endian),
    "plain PGM of 1,000 levels": Form(".pgm", plain_pgm),
    "turned .png": Form(".png", turned),
    "turned .tif": Form(".tif", turned),
    **{f"animated {ending}": Form(ending, animated) for ending in (".png", ".webp", ".tiff")},
}


def noise(height: int, width: int, seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 4)).astype(np.uint8)
