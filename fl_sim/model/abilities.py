"""Whether a model can be vectorised, and whether clients may share a batch: known for our models, tested for others."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fl_sim.model.flat_model import FlatModel
from fl_sim.model.vectors import flat_parameters
from fl_sim.rng.streams import torch_stream

TOLERANCE = {False: 0.01, True: 0.1}  # float32, bfloat16: relative difference that counts as rounding (TF32 on a GPU included)
NOISE = 0.01  # added to each parameter, because a layer that starts at zero would hide the layers before it


class Abilities(NamedTuple):
    """`no_vmap`: why `torch.func.vmap` cannot compute the model's gradients, empty if it can. `separate`: whether the logits of an example
    do not depend on the rest of the batch, so that batches of several clients may be joined or padded.
    """

    no_vmap: str
    separate: bool


def abilities(model: FlatModel, image_shape: tuple[int, ...]) -> Abilities:
    """The abilities of a model. The same in every process: they depend on the module and its initial state alone."""
    return Abilities("", separate=True) if model.plain else _trial(model, image_shape)


@lru_cache(maxsize=16)
def _trial(model: FlatModel, image_shape: tuple[int, ...]) -> Abilities:
    """Test a model with three clients of two random images each: one by one, and together (a process-wide cache by model and shape)."""
    theta, draws = flat_parameters(model.module), torch_stream(0, "trial")
    theta = theta + NOISE * torch.randn(len(theta), generator=draws, dtype=theta.dtype).to(theta.device)
    inputs = torch.randn(3, 2, *image_shape, generator=draws, dtype=theta.dtype).to(theta.device)
    with torch.no_grad():
        logits = model.logits(theta, inputs[0])
    labels = torch.randint(logits.shape[1], (3, 2), generator=draws).to(theta.device)
    reference = torch.stack([model.gradient(theta, *client) for client in zip(inputs, labels, strict=True)])
    separate = _is_separate(model, theta, inputs[0], logits)
    if not separate:
        return Abilities("in eval mode its logits of an example depend on the rest of the batch", separate=False)
    weights = theta.new_full((3, 2), 0.5)
    try:
        results = [model.gradients(place, inputs, labels, weights) for place in (theta, theta.expand(3, -1))]
    except Exception as raised:  # a model may do anything
        error = raised.__cause__ or raised
        return Abilities(f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}", separate)
    same = all(_near(gradients, reference, TOLERANCE[model.bfloat16]) for gradients in results)
    return Abilities("" if same else "it gives other gradients", separate)


def _is_separate(model: FlatModel, theta: Tensor, inputs: Tensor, joint: Tensor) -> bool:
    try:
        with torch.no_grad():
            alone = torch.cat([model.logits(theta, example.unsqueeze(0)) for example in inputs])
    except Exception:  # for example a batch norm without running statistics, for a batch of one
        return False
    return _near(alone, joint, TOLERANCE[model.bfloat16])


def _near(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return float((one - other).norm()) <= tolerance * float(other.norm())
