"""The streams `stream(seed, name, member, round)` of all members of a round at once: hundreds in the time of a few.

The numbers are those of NumPy's own `SeedSequence`, `PCG64` and `Generator.permutation`, computed for all members in each step.
Source: NumPy; O'Neill 2014, "PCG: a family of simple fast space-efficient statistically good algorithms for random number generation".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from numpy.random.bit_generator import ISeedSequence

from fl_sim.rng.streams import key_word

Words = npt.NDArray[np.uint32]
Longs = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
Pair = tuple[Longs, Longs]  # integers of 128 bits: their upper and their lower halves

_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def member_states(seed: int, name: str, members: Sequence[int], round_: int) -> Longs:
    """The state (k, 4) with which the seed sequence of each `stream(seed, name, member, round_)` seeds its generator.

    `SeedSequence` mixes the words of a key one after the other into a pool of four. So the pool up to the members is mixed once, and the
    rest for all members (k,) together. Members must be below 2**32.
    """
    pool, constant = _pool(key_word(seed), key_word(name))
    for column in (np.array(members, dtype=np.uint32), *_words(key_word(round_))):
        words, constant = _hash(np.broadcast_to(column, (4, *column.shape)), constant, 0x931E8875)
        pool = _mix(pool, words)
    return np.ascontiguousarray(_hash(np.concatenate([pool, pool]), 0x8B51F9DD, 0x58F38DED)[0].T).view(np.uint64)


def generator_of(state: Longs) -> np.random.Generator:
    """The generator of one of `member_states` (4,): equal to `stream(seed, name, member, round_)`."""
    return np.random.Generator(np.random.PCG64(cast(Any, _FixedState(state))))


def shuffle_rows(table: Indices, lengths: Indices, states: Longs) -> Indices:
    """Row i of table (k, n) with its first lengths_i entries as `generator_of(states[i]).permutation` returns them.

    Fisher-Yates from the last position down: a random number with as many bits as the position is accepted if it is at most the position.
    Each step is one number for every row, about 1.4 n steps for any k. Entries beyond a row's length stay.
    """
    width = table.shape[1]
    flat, start = table.flatten(), np.arange(len(table)) * width
    masks = np.array([(1 << position.bit_length()) - 1 for position in range(width + 1)])
    last = np.maximum(lengths - 1, 0)
    for draw in _pcg64_words(states, 3 * width // 2 + 6 if width > 1 else 0).T.astype(np.int64):
        other = draw & masks[last]
        accepts = other <= last
        here, there = start + last, start + np.where(accepts, other, last)
        flat[here], flat[there] = flat[there], flat[here]
        last = np.maximum(last - accepts, 0)
    result = flat.reshape(table.shape)
    for row in np.flatnonzero(last):  # more than a third of its numbers were rejected: not finished yet
        result[row, : lengths[row]] = generator_of(states[row]).permutation(table[row, : lengths[row]])
    return result


def _pcg64_words(states: Longs, count: int) -> Longs:
    """The first `count` draws (k, count) of 32 bits of a PCG64 seeded with each of states (k, 4).

    Its state after j steps is `M^j x + (M^(j-1) + ... + 1) c`, so two products give all steps of all generators.
    """
    high, low = states.T[::2, :, None], states.T[1::2, :, None]
    increment = (high[1] << np.uint64(1)) | (low[1] >> np.uint64(63)), (low[1] << np.uint64(1)) | np.uint64(1)
    powers, sums = _jumps(-(-count // 2))
    high, low = _sum(_product(_sum((high[0], low[0]), increment), powers), _product(increment, sums))
    turn, folded = high >> np.uint64(58), high ^ low
    longs = (folded >> turn) | (folded << ((np.uint64(64) - turn) & np.uint64(63)))
    return np.stack([longs & _LOW, longs >> _HALF], axis=-1).reshape(len(states), -1)[:, :count]


@lru_cache(maxsize=64)
def _jumps(count: int) -> tuple[Pair, Pair]:
    """M^j and M^(j-1) + ... + 1, (count,) each, for the states of the first draws: seeding takes one step, and so does each draw."""
    power, total = 0x2360ED051FC65DA44385DF649FCCF645, 1
    powers, sums, multiplier = list[int](), list[int](), power
    for _ in range(count):
        power, total = power * multiplier % 2**128, (total * multiplier + 1) % 2**128
        powers.append(power)
        sums.append(total)
    return _pair(powers), _pair(sums)


def _pair(numbers: Sequence[int]) -> Pair:
    return np.array([n >> 64 for n in numbers], dtype=np.uint64), np.array([n % 2**64 for n in numbers], dtype=np.uint64)


def _sum(a: Pair, b: Pair) -> Pair:
    low = a[1] + b[1]
    return a[0] + b[0] + (low < a[1]), low


def _product(a: Pair, b: Pair) -> Pair:
    """a * b modulo 2**128, by long multiplication of the 32-bit parts."""
    (a1, a0), (b1, b0) = ((low >> _HALF, low & _LOW) for _, low in (a, b))
    first = a1 * b0 + (a0 * b0 >> _HALF)
    second = a0 * b1 + (first & _LOW)
    carry = a1 * b1 + (first >> _HALF) + (second >> _HALF)
    return a[0] * b[1] + a[1] * b[0] + carry, a[1] * b[1]


@lru_cache(maxsize=64)
def _pool(seed: int, name: int) -> tuple[Words, int]:
    """The pool (4, 1) after a seed and the first word of a key, and the constant of the next hash."""
    words = _words(seed)
    words += [np.zeros(1, dtype=np.uint32)] * (4 - len(words)) + _words(name)
    pool, constant = _hash(np.stack(words[:4]), 0x43B0D7E5, 0x931E8875)
    for source in range(4):
        others = [target for target in range(4) if target != source]
        values, constant = _hash(np.stack([pool[source]] * 3), constant, 0x931E8875)
        pool[others] = _mix(pool[others], values)
    for word in words[4:]:
        values, constant = _hash(np.stack([word] * 4), constant, 0x931E8875)
        pool = _mix(pool, values)
    return pool, constant


def _words(number: int) -> list[Words]:
    """A number as 32-bit words (1,), lowest first."""
    return [np.array([number >> shift & 0xFFFFFFFF], dtype=np.uint32) for shift in range(0, max(number.bit_length(), 1), 32)]


def _hash(words: Words, constant: int, factor: int) -> tuple[Words, int]:
    """The hash of each row of words (n, k), each row with its own constant; and the constant after the last."""
    constants = [constant]
    for _ in words:
        constants.append(constants[-1] * factor & 0xFFFFFFFF)
    column = np.array(constants, dtype=np.uint32)[:, None]
    value = (words ^ column[:-1]) * column[1:]
    return value ^ (value >> np.uint32(16)), constants[-1]


def _mix(one: Words, other: Words) -> Words:
    value = one * np.uint32(0xCA01F9DD) - other * np.uint32(0x4973F715)
    return value ^ (value >> np.uint32(16))


class _FixedState(ISeedSequence):
    """A seed sequence that returns 256 bits of state, computed before: as many as PCG64 needs."""

    def __init__(self, state: npt.NDArray[np.uint64]) -> None:
        self._state = state

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return self._state
