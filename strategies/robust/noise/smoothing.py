"""CRFL's smoothed test: what most noisy copies of a model say about an image."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fl_sim.data.batches import Batch
from fl_sim.model.flat_model import FlatModel

COPIES = 100  # M; the paper takes 1,000
ERROR = 0.001  # alpha


class SmoothedTest(NamedTuple):
    """Shares of images, percent. accuracy: most copies name the label; certain: also their lead is too large to be chance."""

    accuracy: float
    certain: float


def smoothed_test(model: FlatModel, theta: Tensor, examples: Batch, noise: float, generator: torch.Generator) -> SmoothedTest:
    """The votes of `COPIES` models `theta + N(0, noise^2)` on examples (e,).

    `p_1`, `p_2` = the shares of votes for the first and the second class; certain: `p_1 - r > p_2 + r`, with
    Hoeffding's `r = sqrt(ln(1 / ERROR) / (2 COPIES))`. Of equally many votes the smaller class counts as first.

    Source: Xie et al. 2021, "CRFL", Algorithm 2. Its certified radius needs a bound on how the gradient changes with the data, which the
    paper has for multi-class logistic regression only: we report no radius.
    """
    shares = votes(model, theta, examples.inputs, noise, generator).double() / COPIES
    best = shares.topk(2, dim=1).values
    right = shares.argmax(dim=1) == examples.labels
    certain = right & (best[:, 0] - best[:, 1] > 2.0 * math.sqrt(math.log(1.0 / ERROR) / (2.0 * COPIES)))
    return SmoothedTest(*(100.0 * int(hits.sum()) / len(right) for hits in (right, certain)))


@torch.no_grad()
def votes(model: FlatModel, theta: Tensor, inputs: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """How many of `COPIES` noisy models name each class (e, c) for inputs (e, C, H, W)."""
    classes = model.logits(theta.to(inputs.device), inputs[:1]).shape[1]
    counts = torch.zeros(len(inputs), classes, dtype=torch.int64, device=inputs.device)
    nobody = counts[:, 0].clone()  # the labels do not matter
    for _ in range(COPIES):
        noisy = theta + noise * torch.randn(len(theta), generator=generator).to(theta)
        _, named = model.predictions(noisy.to(inputs.device), inputs, nobody)
        counts.scatter_add_(1, named.unsqueeze(1), torch.ones_like(counts[:, :1]))
    return counts
