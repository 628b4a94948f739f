"""Randomness as an argument: every draw comes from a named stream, never from a global generator."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


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


def torch_stream(seed: int, *key: int | str) -> torch.Generator:
    """The same stream as a CPU `torch.Generator`, for code that draws tensors."""
    generator = torch.Generator()
    generator.manual_seed(int(stream(seed, *key).integers(2**63)))
    return generator
