"""Randomness as an argument: every draw comes from a named stream, never from a global generator."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
from collections.abc import Generator

import numpy as np
import torch


def key_word(part: int | str) -> int:
    """A non-negative integer for one part of a key; text goes through SHA-256, so it does not depend on PYTHONHASHSEED."""
    if isinstance(part, str):
        return int.from_bytes(hashlib.sha256(part.encode()).digest()[:4], "big")
    if part < 0:
        raise ValueError(f"expected non-negative integers or text in a stream key, got {part}")
    return int(part)


def stream(seed: int, *key: int | str) -> np.random.Generator:
    """The NumPy generator of the stream named by `key`.

    Streams with different keys are independent. The same seed and key always give the same draws, in any process and in any order:
    `stream(1, "batch", client, round)`.

    Raises ValueError for a negative seed or integer key part.
    Source: NumPy `SeedSequence` with a spawn key.
    """
    sequence = np.random.SeedSequence(key_word(seed), spawn_key=tuple(key_word(part) for part in key))
    return np.random.Generator(np.random.PCG64(sequence))


def torch_stream(seed: int, *key: int | str) -> torch.Generator:
    """The same stream as a CPU `torch.Generator`, for code that draws tensors."""
    generator = torch.Generator()
    generator.manual_seed(int(stream(seed, *key).integers(2**63)))
    return generator


_GLOBAL = threading.RLock()  # outside code may call a rule from outside


@contextlib.contextmanager
def seeded_global_generators(seed: int, *key: int | str) -> Generator[None]:
    """For other people's code that draws from global generators. Inside the block Python's, NumPy's and PyTorch's global generators are
    seeded from the stream `(seed, *key)`; afterwards they are as before. One thread at a time.
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
