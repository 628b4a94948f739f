"""The directions h_t (d,) along which the server is made to descend in the accumulative phase (MATH section 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fl_sim.federation import Batch
from fl_sim.flat_model import FlatModel

# (model, theta (d,), validation draw, trigger batch, trigger vector P_t (d,), server_lr, reversed trigger?) -> scalar to descend
Objective = Callable[[FlatModel, Tensor, Batch, Batch, Tensor, float, bool], Tensor]


def inner(
    model: FlatModel, theta: Tensor, validation: Batch, trigger_batch: Batch, trigger: Tensor, server_lr: float, is_reversed: bool
) -> Tensor:
    """`<grad L(S_val; theta), P_t>` with P_t constant; its gradient is one Hessian-vector product.

    Source: Pang et al. 2021, Algorithm 2. Unbounded below.
    """
    return torch.dot(_differentiable_gradient(model, theta, validation), trigger)


def cosine(
    model: FlatModel, theta: Tensor, validation: Batch, trigger_batch: Batch, trigger: Tensor, server_lr: float, is_reversed: bool
) -> Tensor:
    """`-cos(grad L(S_T; theta), grad L(S_val; theta))` for a reversed trigger, `+cos` for a clean one, through both gradients.

    Source: Pang et al. 2021, the released code.
    """
    similarity = F.cosine_similarity(
        _differentiable_gradient(model, theta, trigger_batch), _differentiable_gradient(model, theta, validation), dim=0
    )
    return -similarity if is_reversed else similarity


def lookahead(
    model: FlatModel, theta: Tensor, validation: Batch, trigger_batch: Batch, trigger: Tensor, server_lr: float, is_reversed: bool
) -> Tensor:
    """`M(S_val; theta - server_lr * P_t)` with P_t constant and `M = mean(-log(1 - p_y))`.

    Prepares a model that misclassifies after the trigger. M is bounded below, so the pull dies once the look-ahead point
    is broken. Ours.
    """
    log_p = F.log_softmax(model.logits(theta - server_lr * trigger, validation.inputs), dim=1)
    # log(1 - p_y) as the log of the sum of the other classes' probabilities: exact where p_y rounds to 1.
    others = log_p.scatter(1, validation.labels.unsqueeze(1), float("-inf")).logsumexp(dim=1)
    return -others.mean()


OBJECTIVES: dict[str, Objective] = {"lookahead": lookahead, "cosine": cosine, "inner": inner}


def direction(
    objective: Objective,
    model: FlatModel,
    theta: Tensor,
    validation: Batch,
    trigger_batch: Batch,
    trigger: Tensor,
    server_lr: float,
    is_reversed: bool,
) -> Tensor:
    """h_t (d,): the gradient of an objective with respect to theta."""
    leaf = theta.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(model, leaf, validation, trigger_batch, trigger, server_lr, is_reversed), leaf)
    return gradient


def _differentiable_gradient(model: FlatModel, theta: Tensor, batch: Batch) -> Tensor:
    (gradient,) = torch.autograd.grad(model.loss(theta, batch.inputs, batch.labels), theta, create_graph=True)
    return gradient
