"""The streams of many members at once are NumPy's own, draw for draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_sim.data.batches import draw_batches
from fl_sim.rng.member_streams import generator_of, member_states, shuffle_rows
from fl_sim.rng.streams import stream

MEMBERS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4)


@given(seed=st.integers(0, 2**140), members=MEMBERS, round_=st.integers(0, 2**40), name=st.text())
def test_the_streams_of_many_members_are_those_of_each(seed: int, members: list[int], round_: int, name: str) -> None:
    for member, state in zip(members, member_states(seed, name, members, round_), strict=True):
        np.testing.assert_array_equal(generator_of(state).permutation(20), stream(seed, name, member, round_).permutation(20))


@given(seed=st.integers(0, 2**40), lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_rows_shuffled_side_by_side_are_those_that_numpy_shuffles(seed: int, lengths: list[int]) -> None:
    table = np.arange(len(lengths) * max(lengths)).reshape(len(lengths), -1)
    before = table.copy()
    states = member_states(seed, "rows", range(len(lengths)), 1)
    for row, length in enumerate(lengths):
        found = shuffle_rows(table, np.array(lengths), states)[row]
        np.testing.assert_array_equal(found[:length], stream(seed, "rows", row, 1).permutation(table[row, :length]))
        np.testing.assert_array_equal(found[length:], table[row, length:])
    np.testing.assert_array_equal(table, before)


def test_a_row_that_refuses_too_many_draws_is_left_to_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = np.uint64(0xFFFFFFFF)  # all bits set: beyond every position that is not one less than a power of two
    monkeypatch.setattr("fl_sim.rng.member_streams._pcg64_words", lambda states, count: np.full((len(states), count), refused))
    found = shuffle_rows(np.arange(9)[None], np.array([9]), member_states(1, "rows", [5], 1))[0]
    np.testing.assert_array_equal(found, stream(1, "rows", 5, 1).permutation(9))


@pytest.mark.parametrize(("steps", "batch_size"), [(1, 4), (2, 3), (3, 5), (1, 20)])
@pytest.mark.parametrize("lengths", [[6] * 60, [1, 5, 9, 30] * 40, [7]])
def test_batches_are_passes_over_each_clients_shuffled_share(lengths: list[int], steps: int, batch_size: int) -> None:
    shares = [np.arange(100 * i, 100 * i + length) for i, length in enumerate(lengths)]
    where, sizes = draw_batches(shares, member_states(3, "batch", range(len(shares)), 2), steps, batch_size)
    for client, share in enumerate(shares):
        size = min(batch_size, len(share))
        generator = stream(3, "batch", client, 2)
        wanted = [share[i % size] for i in range(steps * size)]  # a whole share in each batch keeps its order
        if size < len(share):
            wanted = [example for _ in range(steps) for example in generator.permutation(share)][: steps * size]
        assert sizes[client] == size
        np.testing.assert_array_equal(where[client, :, :size].ravel(), wanted)
        assert not where[client, :, size:].any()
