"""Accumulation against one class, or from one class to another (`attack.class`, `attack.to-class`)."""

from __future__ import annotations

import torch

from clients.success import SuccessView
from fl_sim.data.batches import Batch


def pair_taken(view: SuccessView) -> Batch | None:
    """Test images of `attack.class`; success is `attack.to-class`. None unless both are set: then accuracy by class says it all."""
    if view.settings.class_ < 0 or view.settings.to_class < 0:
        return None
    inputs = view.victims().inputs
    return Batch(inputs, torch.full((len(inputs),), view.to_class, device=inputs.device))
