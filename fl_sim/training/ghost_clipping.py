"""The norms of single clients' updates and the weighted sum of the clipped updates, from one backward pass without forming any update.

Let a_j be a layer's input and delta_j the derivative of the loss with respect to its output, for example j. A linear layer's gradient for
the examples of one client is `sum_j delta_j a_j^T`, and its squared norm is `sum_jk (delta_j . delta_k)(a_j . a_k)`. For the clipped sum
each client's delta is multiplied by its clip factor; then one contraction sums over all examples.
Source: Goodfellow 2015, "Efficient per-example gradient computations"; Li et al. 2022, "Large language models can be strong
differentially private learners" (ghost clipping); Bu et al. 2023, "Differentially private optimization on large model at small cost"
(one backward pass).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from fl_sim.data.batches import CohortBatches
from fl_sim.model.flat_model import FlatModel
from fl_sim.training.clipping import Clip

LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.BatchNorm2d)


class Trace(NamedTuple):
    """One layer's input and output, (k * b, ...) each."""

    name: str
    layer: nn.Module
    input: Tensor
    output: Tensor


def wins(model: FlatModel, theta: Tensor, batches: CohortBatches, before: Clip) -> bool:
    """Whether ghost clipping is possible and faster than forming single updates: an l2 clip, and layer inputs that are small next to d.

    A fixed rule, so that a run gives the same bytes wherever it is repeated. Measured on one core, the time of single updates over that of
    ghost clipping; in parentheses the numbers in the layers' inputs of one client's batch (for a convolution: its patches) over d.
    ResNet-18, 8x8, 1 image (0.03) 13, 10 images (0.3) 2.7; MLP, 10 images (0.26) 1.9; CNN, 8x8, 1 image (0.23) 1.7; CNN, 28x28,
    1 image (0.35) 0.9, 10 images (3.5) 0.6.
    """
    if before.norm != "l2":
        return False
    return 3 * batches.labels.shape[2] * _input_numbers(model, tuple(batches.inputs.shape[3:]), theta.device) <= len(theta)


@lru_cache(maxsize=16)
def _input_numbers(model: FlatModel, image_shape: tuple[int, ...], device: torch.device) -> float:
    """The numbers in the layers' inputs for one example; infinite if a parameter belongs to a layer of an unsupported type, or is used
    other than by one call of its layer (a process-wide cache).
    """
    owners = {name: layer for name, layer in model.module.named_modules() if next(layer.parameters(recurse=False), None) is not None}
    if not model.plain or not all(map(_is_supported, owners.values())):
        return float("inf")
    theta = torch.zeros(sum(shape.numel() for shape in model.layout.values()), device=device)
    label = torch.zeros(1, dtype=torch.long, device=device)
    traces, _ = _trace(model, theta, torch.zeros(1, *image_shape, device=device), label, torch.ones(1, device=device))
    flat = all(trace.input.dim() == 2 for trace in traces if isinstance(trace.layer, nn.Linear))
    if not flat or sorted(trace.name for trace in traces) != sorted(owners):
        return float("inf")
    return float(sum(_rows(trace, trace.output)[0].numel() for trace in traces if isinstance(trace.layer, nn.Linear | nn.Conv2d)))


def _is_supported(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        numbers = isinstance(layer.padding, tuple)  # and not "same"
        return numbers and layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    return isinstance(layer, LAYERS)


def clipped_sum(model: FlatModel, theta: Tensor, batches: CohortBatches, weights: list[float], before: Clip) -> tuple[Tensor, Tensor]:
    """`sum_i w_i * clip(g_i)` (d,) for one local step and an l2 clip, and the norms (k,) of the g_i before clipping.

    Args: batches of k clients, of which the first local step is used; weights (k,).
    """
    k, b = batches.labels.shape[0], batches.labels.shape[2]
    first = batches.inputs[:, 0].flatten(0, 1), batches.labels[:, 0].flatten(), batches.weights[:, 0].flatten()
    traces, loss = _trace(model, theta, *first)
    deltas = [delta.to(theta.dtype) for delta in torch.autograd.grad(loss, [trace.output for trace in traces])]
    squares = torch.stack([_square(trace, delta, k, b) for trace, delta in zip(traces, deltas, strict=True)]).sum(dim=0)
    lengths = squares.clamp(min=0.0).sqrt()
    factors = theta.new_tensor(weights) * torch.clamp(before.bound / lengths, max=1.0)
    gradients: dict[str, Tensor] = {}
    for trace, delta in zip(traces, deltas, strict=True):
        delta_scaled = delta * factors.repeat_interleave(b).view(-1, *(1,) * (delta.dim() - 1))
        gradients |= {f"{trace.name}.{name}": value for name, value in _gradients(trace, delta_scaled).items()}
    return torch.cat([gradients[name].flatten() for name in model.layout]), lengths


def _trace(model: FlatModel, theta: Tensor, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[list[Trace], Tensor]:
    """The inputs and outputs of the layers for a batch, and its weighted loss, with an autograd graph from the first layer's output on."""
    traces = list[Trace]()

    def keep(name: str) -> Callable[..., Tensor]:
        def hook(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                output = output.detach().requires_grad_(True)
            traces.append(Trace(name, layer, arguments[0].detach().to(theta.dtype), output))
            return output

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in model.module.named_modules() if isinstance(layer, LAYERS)]
    try:
        return traces, model.loss(theta.detach(), inputs, labels, weights)
    finally:
        for handle in handles:
            handle.remove()


def _square(trace: Trace, delta: Tensor, k: int, b: int) -> Tensor:
    """The squared norm (k,) of each client's gradient in one layer."""
    layer = trace.layer
    if isinstance(layer, nn.GroupNorm | nn.BatchNorm2d):
        scale, shift = _affine(trace, delta)
        return sum((part.view(k, b, -1).sum(dim=1).square().sum(dim=1) for part in (scale, shift)), delta.new_zeros(k))
    inputs, rows = _rows(trace, delta)
    inputs, rows = inputs.reshape(k, -1, inputs.shape[-1]), rows.reshape(k, -1, rows.shape[-1])
    shift = rows.sum(dim=1).square().sum(dim=1) if _has_bias(layer) else delta.new_zeros(k)
    count, width_in, width_out = inputs.shape[1], inputs.shape[2], rows.shape[2]
    if count * (width_in + width_out) < width_in * width_out:
        return (torch.bmm(inputs, inputs.mT) * torch.bmm(rows, rows.mT)).sum(dim=(1, 2)) + shift
    return torch.bmm(rows.mT, inputs).square().sum(dim=(1, 2)) + shift


def _gradients(trace: Trace, delta: Tensor) -> dict[str, Tensor]:
    """The gradients of one layer's parameters, summed over all examples."""
    layer = trace.layer
    if isinstance(layer, nn.GroupNorm | nn.BatchNorm2d):
        scale, shift = _affine(trace, delta)
        return {"weight": scale.sum(dim=0), "bias": shift.sum(dim=0)}
    if isinstance(layer, nn.Conv2d):
        stride, padding = layer.stride, layer.padding
        weight = conv2d_weight(trace.input, layer.weight.shape, delta, stride, padding)  # pyright: ignore[reportArgumentType]
        gradients = {"weight": weight, "bias": delta.sum(dim=(0, 2, 3))}
    else:
        gradients = {"weight": delta.mT @ trace.input, "bias": delta.sum(dim=0)}
    return gradients if _has_bias(layer) else {"weight": gradients["weight"]}


def _has_bias(layer: nn.Module) -> bool:
    return "bias" in dict(layer.named_parameters(recurse=False))


def _rows(trace: Trace, delta: Tensor) -> tuple[Tensor, Tensor]:
    """A layer as a linear one: its input (k * b * places, inputs) and its delta (k * b * places, outputs)."""
    layer = trace.layer
    if not isinstance(layer, nn.Conv2d):
        return trace.input, delta
    patches = F.unfold(trace.input, layer.kernel_size, padding=layer.padding, stride=layer.stride)  # pyright: ignore[reportArgumentType]
    return patches.mT.reshape(-1, patches.shape[1]), delta.flatten(2).mT.reshape(-1, delta.shape[1])


def _affine(trace: Trace, delta: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients (k * b, channels) of a norm layer's weight and bias by example."""
    layer = trace.layer
    if isinstance(layer, nn.GroupNorm):
        normalised = F.group_norm(trace.input, layer.num_groups, eps=layer.eps)
    else:
        assert isinstance(layer, nn.BatchNorm2d)
        normalised = F.batch_norm(trace.input, layer.running_mean, layer.running_var, eps=layer.eps)
    return (delta * normalised).flatten(2).sum(dim=2), delta.flatten(2).sum(dim=2)
