"""A module's parameters and buffers as flat vectors: the form in which they travel, are trained and are combined."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name, in definition order. One that is used twice has its first name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def parameter_places(module: nn.Module) -> dict[str, str]:
    """Each place in a module that holds a trained parameter, with the parameter's name in `trained_parameters`: for a `functional_call`
    without `tie_weights`. A part that is there under two names has its places once: swapped twice, its parameters would not come back."""
    names = {id(parameter): name for name, parameter in trained_parameters(module).items()}
    places = {
        f"{where}.{name}".lstrip("."): names.get(id(parameter), "")
        for where, part in module.named_modules()
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False)
    }
    return {place: name for place, name in places.items() if name}


def flat_parameters(module: nn.Module) -> Tensor:
    """`trained_parameters` as one vector theta (d,)."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in trained_parameters(module).values()])


def flat_buffers(module: nn.Module) -> Tensor:
    """All buffers (batch-norm statistics, counters, masks) in definition order as one float32 vector (s,), s = 0 without any."""
    parts = [buffer.detach().reshape(-1).to(torch.float32) for buffer in module.buffers()]
    return torch.cat(parts) if parts else torch.zeros(0)


def load_buffers(module: nn.Module, flat: Tensor) -> None:
    """Write the vector of `flat_buffers` back into a module."""
    targets = list(module.buffers())
    for target, part in zip(targets, flat.split([target.numel() for target in targets]), strict=True):
        target.copy_(part.view_as(target))
