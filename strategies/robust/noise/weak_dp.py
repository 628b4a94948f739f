"""Norm bound and weak differential privacy: clips each update, and adds a little noise to the mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strategies.robust.ranges import number
from strategies.robust.vectors import clipped, lengths, median


def weak_dp(
    updates: Tensor, weights: Tensor, generator: torch.Generator, report: dict[str, Any], bound: float = 1.0, noise: float = 0.001
) -> Tensor:
    """The weighted mean of the clipped updates, with Gaussian noise: `sum_i w_i clip(g_i, bound) / sum_i w_i + N(0, noise^2)`.

    Args: updates (n, d); weights (n,); bound > 0, an l2 norm; noise >= 0, the standard deviation per coordinate, in the unit of the
    updates. Raises OptionError.
    Source: Sun et al. 2019, "Can You Really Backdoor Federated Learning?", section 4. The noise is too small for a privacy guarantee. Both
    defaults are ours: the paper chooses them per task.
    """
    number("bound", bound, above=0.0)
    number("noise", noise, least=0.0)
    norms = lengths(updates)
    report |= {"clipped": int((norms > bound).sum()), "median_norm": median(norms)}
    mean = (weights @ clipped(updates, bound)) / weights.sum()
    return mean + noise * torch.randn(len(mean), generator=generator)
