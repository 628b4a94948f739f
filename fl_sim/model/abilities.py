"""What can be done with a model besides one gradient after the other: known of ours, found out for others, once a model and shape."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fl_sim.model.flat_model import FlatModel
from fl_sim.model.vectors import flat_parameters
from fl_sim.rng.streams import torch_stream

TOLERANCE = {False: 0.01, True: 0.1}  # of a gradient's length, in float32 and in bfloat16: what rounding may change (a GPU has TF32)
NOISE = 0.01  # on each parameter: a layer that starts at zero hides what those before it do


class Abilities(NamedTuple):
    """`no_vmap`: why its gradients cannot be taken by `torch.func.vmap`, empty if they can. `separate`: whether what it says of an example
    is the same whatever else is in the batch, so that batches of several clients may be joined or padded.
    """

    no_vmap: str
    separate: bool


def abilities(model: FlatModel, image_shape: tuple[int, ...]) -> Abilities:
    """What can be done with a model. The same answer in every process: it depends on the module and its initial state alone."""
    return Abilities("", separate=True) if model.plain else _tried(model, image_shape)


@lru_cache(maxsize=16)
def _tried(model: FlatModel, image_shape: tuple[int, ...]) -> Abilities:
    """Three clients with two random images each, one after the other and together (a process-wide cache keyed by what it depends on)."""
    theta, draws = flat_parameters(model.module), torch_stream(0, "trial")
    theta = theta + NOISE * torch.randn(len(theta), generator=draws, dtype=theta.dtype).to(theta.device)
    inputs = torch.randn(3, 2, *image_shape, generator=draws, dtype=theta.dtype).to(theta.device)
    with torch.no_grad():
        logits = model.logits(theta, inputs[0])
    labels = torch.randint(logits.shape[1], (3, 2), generator=draws).to(theta.device)
    wanted = torch.stack([model.gradient(theta, *client) for client in zip(inputs, labels, strict=True)])
    separate = _is_separate(model, theta, inputs[0], logits)
    if not separate:
        return Abilities("in eval mode its logits of an example depend on the rest of the batch", separate=False)
    weights = theta.new_full((3, 2), 0.5)
    try:
        found = [model.gradients(place, inputs, labels, weights) for place in (theta, theta.expand(3, -1))]
    except Exception as error:  # a model may do anything
        return Abilities(f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}", separate)
    same = all(_near(gradients, wanted, TOLERANCE[model.bfloat16]) for gradients in found)
    return Abilities("" if same else "it gives other gradients", separate)


def _is_separate(model: FlatModel, theta: Tensor, inputs: Tensor, together: Tensor) -> bool:
    try:
        with torch.no_grad():
            alone = torch.cat([model.logits(theta, example.unsqueeze(0)) for example in inputs])
    except Exception:  # a batch norm without running statistics refuses a batch of one
        return False
    return _near(alone, together, TOLERANCE[model.bfloat16])


def _near(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return float((one - other).norm()) <= tolerance * float(other.norm())
