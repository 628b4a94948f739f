"""Clipping: oracle, closed forms and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_sim.training.clipping import Clip, clip, norms
from tests.support import oracles

updates = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 6)),
    elements=st.floats(-1e6, 1e6, width=32).map(lambda x: 0.0 if abs(x) < 1e-6 else x),
)
rules = st.builds(Clip, st.sampled_from(["l2", "linf"]), st.floats(1e-3, 1e4))


@given(updates, rules)
def test_clip_is_the_oracle_row_by_row(rows: np.ndarray, rule: Clip) -> None:
    clipped, _ = clip(torch.from_numpy(rows), rule)
    expected = np.stack([oracles.clip(row, rule.bound, rule.norm) for row in rows])
    np.testing.assert_allclose(clipped.numpy(), expected, rtol=2e-6, atol=1e-30)


@given(updates, rules)
def test_rows_inside_the_ball_are_untouched_and_the_input_is_not_modified(rows: np.ndarray, rule: Clip) -> None:
    given_rows = torch.from_numpy(rows.copy())
    clipped, before = clip(given_rows, rule)
    inside = before <= rule.bound
    assert torch.equal(clipped[inside], given_rows[inside])
    assert torch.equal(given_rows, torch.from_numpy(rows))
    assert bool((norms(clipped, rule.norm) <= rule.bound * (1 + 1e-6)).all())


@given(updates, rules)
def test_clipping_twice_is_clipping_once(rows: np.ndarray, rule: Clip) -> None:
    once, _ = clip(torch.from_numpy(rows), rule)
    twice, _ = clip(once, rule)
    torch.testing.assert_close(twice, once, rtol=1e-6, atol=0.0)


@given(updates, st.sampled_from(["l2", "linf"]))
def test_an_infinite_bound_changes_nothing_bit_for_bit(rows: np.ndarray, norm: str) -> None:
    clipped, _ = clip(torch.from_numpy(rows), Clip(norm, math.inf))  # type: ignore[arg-type]
    assert torch.equal(clipped, torch.from_numpy(rows))


@pytest.mark.parametrize(("norm", "expected"), [("l2", [0.6, -0.8]), ("linf", [0.75, -1.0])])
def test_the_whole_vector_is_rescaled(norm: str, expected: list[float]) -> None:
    clipped, before = clip(torch.tensor([[3.0, -4.0], [0.0, 0.0]]), Clip(norm, 1.0))  # type: ignore[arg-type]
    torch.testing.assert_close(clipped, torch.tensor([expected, [0.0, 0.0]]))
    torch.testing.assert_close(before, torch.tensor([5.0 if norm == "l2" else 4.0, 0.0]))
