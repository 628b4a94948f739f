"""One number that is not finite is found, and large finite ones pass."""

from __future__ import annotations

import pytest
import torch

from fl_sim.training.finite import all_finite

LARGE = 3e38  # four of them exceed float32


@pytest.mark.parametrize("odd", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_odd_number_is_found(odd: float, dtype: torch.dtype) -> None:
    values = torch.randn(7, 1001, dtype=dtype)
    assert all_finite(values)
    values[3, 500] = odd
    assert not all_finite(values)
    values[5, 2] = -odd
    assert not all_finite(values)


def test_values_whose_float32_sum_is_infinite_are_finite() -> None:
    values = torch.full((4, 10), LARGE)
    assert not values.sum().isfinite()
    assert all_finite(values)


def test_nothing_is_finite() -> None:
    assert all_finite(torch.zeros(0, 5))
