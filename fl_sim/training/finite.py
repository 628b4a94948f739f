"""Whether all numbers of an update are finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """Whether no number of a tensor is infinite or not a number; values whose sum exceeds float64 count as infinite.

    A sum without an infinity has no such term, and costs a tenth of `isfinite().all()`. Finite float32 values may add up to infinity: then
    they are added again in float64, which takes ten times as long.
    """
    return math.isfinite(float(torch.sum(values))) or math.isfinite(float(torch.sum(values, dtype=torch.float64)))
