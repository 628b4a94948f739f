"""Poisoned batches: a share of a member's examples is changed and gets the attacker's class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clients.knowledge import Knowledge
from clients.success import of_source, target_class
from fl_sim.data.batches import CohortBatches

Change = Callable[[Tensor, Tensor], Tensor]  # images (p, C, H, W) and the row of the member of each (p,) -> images (p, C, H, W)


def unchanged(images: Tensor, rows: Tensor) -> Tensor:
    """The images themselves: only their labels are poisoned."""
    return images


def poisoned(knowledge: Knowledge, change: Change, *, any_class: bool = False) -> CohortBatches:
    """The members' batches with the first `ceil(attack.poison-share * b)` examples of `attack.class` (-1: of any) in each batch of b
    changed and labelled `attack.to-class`. any_class: the class does not matter, because the images are replaced.
    """
    batches, settings = knowledge.batches, knowledge.settings
    eligible = batches.weights > 0.0
    if not any_class:
        eligible &= of_source(settings, batches.labels, knowledge.num_classes)
    most = torch.tensor(batches.sizes, device=eligible.device).mul(settings.poison_share).sub(1e-9).ceil().view(-1, 1, 1)
    chosen = eligible & (eligible.cumsum(dim=2) <= most)
    rows = torch.arange(len(batches.sizes), device=chosen.device).view(-1, 1, 1).expand_as(chosen)
    inputs = batches.inputs.clone()
    inputs[chosen] = change(batches.inputs[chosen], rows[chosen])
    labels = torch.where(chosen, target_class(settings, knowledge.num_classes), batches.labels)
    return batches._replace(inputs=inputs, labels=labels)
