"""Projected gradient steps on pixels, so that the gradient of a batch points to a vector.

Source: Pang et al. 2021, Algorithm 1: `x <- Pi(x + alpha * sign grad_x <g(x), v>)`, g(x) the gradient of the loss with respect to theta.
Ours: the residual form, v minus the gradient of the moved batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fl_sim.model.flat_model import FlatModel


class Examples(NamedTuple):
    """Images (e, C, H, W), labels (e,), and weights (e,) of their losses."""

    images: Tensor
    labels: Tensor
    weights: Tensor


def product_gradient(model: FlatModel, theta: Tensor, examples: Examples, aim: Callable[[Tensor], Tensor], difference: float) -> Tensor:
    """`grad_x <g(x), v>` (e, C, H, W) with `v = aim(g(x))` constant and `g(x) = grad_theta sum_j w_j l(x_j, y_j; theta)`.

    difference 0: exact, by a backward pass through the backward pass. Else the central difference
    `(grad_x l(x; theta + h v) - grad_x l(x; theta - h v)) / 2h` with `h = difference / |v|`: two ordinary passes, but with kinks (ReLU,
    max-pooling) other signs.

    Args: theta (d,); aim, from g (d,) to v (d,).
    """
    images, labels, weights = examples
    if difference:
        v = aim(model.gradient(theta, images, labels, weights))
        step = difference / torch.linalg.vector_norm(v).clamp(min=torch.finfo(v.dtype).tiny)
        ahead, behind = (_image_gradient(model, theta + sign * step * v, examples) for sign in (1.0, -1.0))
        return (ahead - behind) / (2.0 * step)
    leaf, place = images.detach().requires_grad_(True), theta.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.loss(place, leaf, labels, weights), place, create_graph=True)
    (result,) = torch.autograd.grad(torch.dot(gradient, aim(gradient.detach())), leaf, materialize_grads=True)
    return result


def _image_gradient(model: FlatModel, theta: Tensor, examples: Examples) -> Tensor:
    leaf = examples.images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.loss(theta, leaf, examples.labels, examples.weights), leaf)
    return gradient


def ascend(gradient: Callable[[Tensor], Tensor], images: Tensor, bounds: tuple[Tensor, Tensor], size: Tensor, steps: int) -> Tensor:
    """Images (e, C, H, W) after `steps` steps of `x <- clip(x + size * sign(gradient(x)))`.

    Args: bounds, the lowest and the highest inputs; size (C, 1, 1), of a step, in the units of inputs.
    """
    low, high = bounds
    for _ in range(steps):
        images = torch.minimum(torch.maximum(images + size.to(images) * gradient(images).sign(), low), high)
    return images


def cosine_pull(gradient: Tensor, wanted: Tensor, sizes: Sequence[int]) -> Tensor:
    """u (d,) with `grad_x <g(x), u> = grad_x sum_t cos(g_t(x), w_t)` over the parameter tensors t:
    `u_t = (unit(w_t) - cos(g_t, w_t) unit(g_t)) / |g_t|`, the derivative of the cosine with respect to g_t. 0 where g_t is 0.

    Source: Pang et al. 2021, the released code, where every tensor of a gradient has length 1. There the wanted one is the sum of two such
    gradients; here it is normalised as a whole.
    """
    pulls: list[Tensor] = []
    for g, w in zip(gradient.split(list(sizes)), wanted.split(list(sizes)), strict=True):
        unit, target = F.normalize(g, dim=0), F.normalize(w, dim=0)
        pulls.append(((target - torch.dot(unit, target) * unit) / torch.linalg.vector_norm(g)).nan_to_num(0.0, 0.0, 0.0))
    return torch.cat(pulls)
