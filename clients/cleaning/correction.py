"""Cleanings that move pixels along the gradient of the loss: discrepancy-aware sample correction and its baselines."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.cleaning.images import Context, Images, log_probabilities
from fl_sim.training.divergence import kl


def dsc(batch: Images, context: Context) -> Images:
    """Images corrected while their Memorization Discrepancy is above the threshold of the round.

    Up to `cleaning.steps` times, where `D(x) > P0 + growth * round`: `x <- Pi(x - step * sign grad_x l(x, y; theta))`, loss *down* with the
    image's own label; Pi clips to the ball of `cleaning.epsilon` around the original and to [0, 1]. `cleaning.unit`: batch compares the
    mean of D over a local batch and corrects it as a whole, as the released code does. A discrepancy that is not a number counts as above.
    scores: D before the first step.

    Source: Zhu et al. 2023, Eq. 6 and Algorithm 1. Where we differ: the threshold is calibrated on clean rounds (docs/cleaning.md).
    """
    inputs, first = batch.inputs.clone(), None
    for _ in range(context.settings.steps):
        scores = discrepancy(context, inputs)
        first = scores if first is None else first
        wrong = ~((owner_means(scores, batch.owners) if context.settings.unit == "batch" else scores) <= context.limit)
        if not bool(wrong.any()):
            break
        inputs[wrong] = _step(context, inputs[wrong], batch.labels[wrong], batch.inputs[wrong], sign=-1.0)
    return batch._replace(inputs=inputs, scores=first)


def correct_all(batch: Images, context: Context) -> Images:
    """All images corrected `cleaning.steps` times: `x <- Pi(x - step * sign grad_x l(x, y; theta))`, whatever their discrepancy.

    Source: Zhu et al. 2023, the baseline that they call adversarial training. Where we differ: their released code adds a divergence from
    the uncorrected output to the loss.
    """
    return _all_steps(batch, context, sign=-1.0)


def adversarial(batch: Images, context: Context) -> Images:
    """Adversarial examples to train on: `x <- Pi(x + step * sign grad_x l(x, y; theta))`, loss *up*, `cleaning.steps` times.

    Source: Madry et al. 2018, section 2. Where we differ: no random start.
    """
    return _all_steps(batch, context, sign=1.0)


def discrepancy(context: Context, inputs: Tensor) -> Tensor:
    """D (e,) of inputs (e, C, H, W): `KL(p(. | x; theta_h) || p(. | x; theta))`, theta_h the earlier model.

    Source: Zhu et al. 2023, Eq. 5."""
    earlier, now = (log_probabilities(context.model, theta, inputs) for theta in (context.history, context.theta))
    return kl(earlier, now)


def owner_means(scores: Tensor, owners: Tensor) -> Tensor:
    """For each image (e,) the mean score of the local batch that it belongs to. Args: scores (e,); owners (e,), from 0."""
    sums = scores.new_zeros(int(owners.max()) + 1).index_add(0, owners, scores)
    return (sums / torch.bincount(owners))[owners]


def _all_steps(batch: Images, context: Context, sign: float) -> Images:
    inputs = batch.inputs
    for _ in range(context.settings.steps):
        inputs = _step(context, inputs, batch.labels, batch.inputs, sign)
    return batch._replace(inputs=inputs)


def _step(context: Context, inputs: Tensor, labels: Tensor, original: Tensor, sign: float) -> Tensor:
    """Inputs (e, C, H, W) after one step, within the ball around the original."""
    unit, black, white = (part.to(inputs) for part in context.scale)
    leaf = inputs.detach().requires_grad_(True)
    loss = context.model.loss(context.theta.detach(), leaf, labels, torch.ones_like(labels, dtype=inputs.dtype))
    (gradient,) = torch.autograd.grad(loss, leaf)
    moved = inputs + sign * context.settings.step * unit * gradient.sign()
    low = torch.maximum(original - context.settings.epsilon * unit, black)
    high = torch.minimum(original + context.settings.epsilon * unit, white)
    return torch.minimum(torch.maximum(moved, torch.minimum(low, original)), torch.maximum(high, original))
