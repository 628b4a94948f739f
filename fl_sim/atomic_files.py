"""Files that are written whole or not at all, with one clear error if the disk is full or cannot be written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# All metadata is in one entry, because safetensors stores several in any order; DIGEST is the key in it of the digest of everything else.
ENTRY, DIGEST = "record", "sha256"


class CannotWriteError(OSError):
    """A file could not be written: the disk is full, or permission is missing."""


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn any OSError inside the block into CannotWriteError "PATH could not be written: REASON"."""
    try:
        yield
    except CannotWriteError:
        raise
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CannotWriteError(f"{path} could not be written: {reason}") from error


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """Yields a temporary path to write to. At the end of the block its content is flushed to the disk and renamed to `path`; if the block
    raises, it is deleted. A process that is killed leaves a `.*.part` file (see `remove_parts`). Raises CannotWriteError.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with writing(path):
            yield part
            _sync(part)  # the content must be on the disk before the name,
            part.replace(path)
            _sync(path.parent)  # and the name before anything relies on it
    finally:
        with suppress(OSError):  # renamed already, or the disk cannot be written
            part.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises CannotWriteError."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path may hold bytes that are no text


def remove_parts(path: Path) -> None:
    """Remove the unfinished parts of a file, or of all files below a folder, that killed processes left. Nobody may be writing there."""
    for part in [*path.parent.glob(f".{path.name}.*.part"), *path.rglob(".*.part")]:
        part.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, str] | None = None) -> None:
    """Write named tensors and named texts as safetensors with a digest, whole or not at all. Raises CannotWriteError."""
    contiguous, texts = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(record or {})
    with whole_file(path) as part:
        save_file(contiguous, part, {ENTRY: json.dumps({**texts, DIGEST: _digest(texts, contiguous)}, sort_keys=True)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `save_tensors` wrote. Raises ValueError if a bit of it is damaged, OSError if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            texts: dict[str, str] = json.loads((file.metadata() or {}).get(ENTRY, "{}"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if texts.pop(DIGEST, "") != _digest(texts, tensors):
        raise ValueError(f"{path} is damaged: its content does not have the digest that it states")
    return tensors, texts


def _digest(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(texts):
        digest.update(f"{name}\n{texts[name]}\n".encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk. Raises OSError, but not for a folder on a file system that cannot flush folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
