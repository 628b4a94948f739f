"""Memorization Discrepancy: the divergence between an earlier model's and the current model's predictions for the same inputs.

Source: Zhu et al. 2023, "Exploring Model Dynamics for Accumulative Poisoning Discovery", Definition 3.3 and Eq. 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fl_sim.training.divergence import js, kl

Divergence = Literal["kl", "js"]

DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl, "js": js}


def memorization_discrepancy(
    historical: Callable[[Tensor], Tensor], current: Callable[[Tensor], Tensor], inputs: Tensor, divergence: Divergence = "kl"
) -> Tensor:
    """`D(x; theta_hist, theta) = KL(p(. | x, theta_hist) || p(. | x, theta))` per input, or the Jensen-Shannon divergence.

    For any two models that map inputs to logits. The paper compares the mean over a probe set with a threshold.

    Args: historical and current, models (`nn.Module` or function) from inputs (e, ...) to logits (e, c); historical is an earlier
    checkpoint of the same model or a fixed auxiliary model, current the model under suspicion; inputs (e, ...).
    Returns: (e,) in nats, in float32 or wider. KL is at least 0 and unbounded; Jensen-Shannon lies between 0 and log 2.
    Raises ValueError if the two models' logits differ in shape.
    Source: Zhu et al. 2023, Definition 3.3 and Eq. 5.

    Example: `memorization_discrepancy(yesterday, today, probe_images).mean()`
    """
    before, after = historical(inputs), current(inputs)
    if before.shape != after.shape:
        raise ValueError(f"expected both models to give logits of one shape, got {tuple(before.shape)} and {tuple(after.shape)}")
    return DIVERGENCES[divergence](log_probabilities(before), log_probabilities(after))


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-probabilities of logits (..., c), in float32 or wider: half-precision outputs are widened first."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.log_softmax(wide, dim=-1)
