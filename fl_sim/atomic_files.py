"""Files that are there whole or not at all, and one clear error where a disk is full or cannot be written."""

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

ENTRY, DIGEST = "record", "sha256"  # the one entry of the metadata (several would come in any order), and the digest in it of all the rest


class CannotWriteError(OSError):
    """A file could not be written: the disk is full, or nobody may."""


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Raises CannotWriteError "PATH could not be written: REASON" for any OSError inside."""
    try:
        yield
    except CannotWriteError:
        raise
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CannotWriteError(f"{path} could not be written: {reason}") from error


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """A path to write to. At the end of the block what stands there is on the disk and gets the name `path`; if the block raises, nothing
    is left of it. A process that is killed leaves a `.*.part` (see `remove_parts`). Raises CannotWriteError.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with writing(path):
            yield part
            _sync(part)  # the content before the name,
            part.replace(path)
            _sync(path.parent)  # the name before anything that relies on it
    finally:
        with suppress(OSError):  # it is not there, or the disk cannot be written
            part.unlink()


def write_whole(path: Path, text: str) -> None:
    """All of the text or none of it."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def remove_parts(path: Path) -> None:
    """Remove what killed processes left unfinished of a file, or of all files below a folder, that nobody else writes now."""
    for part in [*path.parent.glob(f".{path.name}.*.part"), *path.rglob(".*.part")]:
        part.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, str] | None = None) -> None:
    """Write tensors by name, with texts by name, as safetensors with a digest, all or nothing. Raises CannotWriteError."""
    held, texts = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(record or {})
    with whole_file(path) as part:
        save_file(held, part, {ENTRY: json.dumps({**texts, DIGEST: _digest(texts, held)}, sort_keys=True)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `save_tensors` wrote. Raises ValueError where it is damaged in any bit, OSError where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            texts: dict[str, str] = json.loads((file.metadata() or {}).get(ENTRY, "{}"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if texts.pop(DIGEST, "") != _digest(texts, tensors):
        raise ValueError(f"{path} is damaged: its digest is that of other content")
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
    """Raises OSError; not for a folder on a file system that cannot do it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
