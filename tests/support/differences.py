"""A gradient by central differences, in float64: the oracle of every direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

STEP = 1e-5  # cube root of float64's epsilon: truncation and rounding error are about equal


def central_differences(value: Callable[[Tensor], Tensor], theta: Tensor) -> Iterator[tuple[int, float]]:
    """Every seventh coordinate of theta (d,) with `(value(theta + STEP) - value(theta - STEP)) / (2 STEP)` along it."""
    for j in range(0, len(theta), 7):
        values: list[float] = []
        for sign in (1.0, -1.0):
            moved = theta.clone()
            moved[j] += sign * STEP
            moved.requires_grad_(True)
            values.append(float(value(moved).detach()))
        yield j, (values[0] - values[1]) / (2 * STEP)
