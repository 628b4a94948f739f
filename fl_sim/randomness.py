"""Randomness as an argument: every draw comes from a named stream, never from a global generator."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
from collections.abc import Generator, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from numpy.random.bit_generator import ISeedSequence


def _word(part: int | str) -> int:
    """A non-negative integer for one part of a key; text goes through SHA-256, so it does not depend on PYTHONHASHSEED."""
    if isinstance(part, str):
        return int.from_bytes(hashlib.sha256(part.encode()).digest()[:4], "big")
    if part < 0:
        raise ValueError(f"expected non-negative integers or text in a stream key, got {part}")
    return int(part)


def stream(seed: int, *key: int | str) -> np.random.Generator:
    """The NumPy generator of the stream named by `key`.

    Streams with different keys are independent, and the same seed and key always give the same draws,
    in any process and in any order of asking: `stream(1, "batch", client, round)`.

    Raises ValueError for a negative seed or integer key part.
    Source: NumPy `SeedSequence` with a spawn key.
    """
    sequence = np.random.SeedSequence(_word(seed), spawn_key=tuple(_word(part) for part in key))
    return np.random.Generator(np.random.PCG64(sequence))


def member_streams(seed: int, name: str, members: Sequence[int], round_: int) -> list[np.random.Generator]:
    """`[stream(seed, name, member, round_) for member in members]` at a tenth of its price: a round asks for hundreds.

    `SeedSequence` mixes the words of a key one after the other into a pool of four, so the pool before the members is mixed once, and the
    rest for all members (k,) side by side. Members must be below 2**32. Source: NumPy, `SeedSequence`.
    """
    pool, constant = _pool(_word(seed), _word(name))
    for column in (np.array(members, dtype=np.uint32), *_words(_word(round_))):
        hashed, constant = _hashed(np.broadcast_to(column, (4, *column.shape)), constant, 0x931E8875)
        pool = _mixed(pool, hashed)
    states = np.ascontiguousarray(_hashed(np.concatenate([pool, pool]), 0x8B51F9DD, 0x58F38DED)[0].T).view(np.uint64)
    return [np.random.Generator(np.random.PCG64(cast(Any, _Mixed(state)))) for state in states]


Words = npt.NDArray[np.uint32]


@lru_cache(maxsize=64)
def _pool(seed: int, name: int) -> tuple[Words, int]:
    """The pool (4, 1) after a seed and the first word of a key, and the constant of the next hash."""
    words = _words(seed)
    words += [np.zeros(1, dtype=np.uint32)] * (4 - len(words)) + _words(name)
    pool, constant = _hashed(np.stack(words[:4]), 0x43B0D7E5, 0x931E8875)
    for source in range(4):
        others = [target for target in range(4) if target != source]
        hashed, constant = _hashed(np.stack([pool[source]] * 3), constant, 0x931E8875)
        pool[others] = _mixed(pool[others], hashed)
    for word in words[4:]:
        hashed, constant = _hashed(np.stack([word] * 4), constant, 0x931E8875)
        pool = _mixed(pool, hashed)
    return pool, constant


def _words(number: int) -> list[Words]:
    """A number as 32-bit words (1,), lowest first."""
    return [np.array([number >> shift & 0xFFFFFFFF], dtype=np.uint32) for shift in range(0, max(number.bit_length(), 1), 32)]


def _hashed(words: Words, constant: int, factor: int) -> tuple[Words, int]:
    """Each row of words (n, k) hashed with a constant of its own, and the constant after the last."""
    constants = [constant]
    for _ in words:
        constants.append(constants[-1] * factor & 0xFFFFFFFF)
    column = np.array(constants, dtype=np.uint32)[:, None]
    value = (words ^ column[:-1]) * column[1:]
    return value ^ (value >> np.uint32(16)), constants[-1]


def _mixed(left: Words, right: Words) -> Words:
    value = left * np.uint32(0xCA01F9DD) - right * np.uint32(0x4973F715)
    return value ^ (value >> np.uint32(16))


class _Mixed(ISeedSequence):
    """A seed sequence that was mixed already: 256 bits of state, what PCG64 asks for."""

    def __init__(self, state: npt.NDArray[np.uint64]) -> None:
        self._state = state

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return self._state


def torch_stream(seed: int, *key: int | str) -> torch.Generator:
    """The same stream as a CPU `torch.Generator`, for code that draws tensors."""
    generator = torch.Generator()
    generator.manual_seed(int(stream(seed, *key).integers(2**63)))
    return generator


_GLOBAL = threading.Lock()


@contextlib.contextmanager
def lent_generators(seed: int, *key: int | str) -> Generator[None]:
    """For somebody else's code that draws from global generators: within it Python's, NumPy's and PyTorch's are at the start of
    the stream `(seed, *key)`; afterwards they are as before. One thread at a time.
    """
    with _GLOBAL, torch.random.fork_rng(devices=[]):
        python, numpy_state = random.getstate(), np.random.get_state()
        word = int(stream(seed, *key).integers(2**32))
        random.seed(word)
        np.random.seed(word)
        torch.default_generator.manual_seed(word)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
