"""How a model does on each class of the server's probe set, and when a class gets worse."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from fl_sim.data.batches import Batch
from fl_sim.model.flat_model import FlatModel


class ByClass(NamedTuple):
    """Mean cross-entropy (c,) and accuracy in percent (c,) of each class that the probe set holds."""

    losses: Tensor
    accuracies: Tensor


@dataclass(frozen=True)
class ClassProbe:
    """A model on the server's probe set: examples with labels, on the device where models run."""

    model: FlatModel
    probe: Batch

    @cached_property
    def members(self) -> Tensor:
        """Which examples are of which class, 1 or 0 (c, e): the classes that the probe set holds, ascending."""
        labels = self.probe.labels
        return (labels.unique().unsqueeze(1) == labels).to(self.probe.inputs.dtype)

    def by_class(self, theta: Tensor) -> ByClass:
        """The losses and accuracies of a model theta (d,)."""
        scores = torch.stack(self.model.examples(theta.to(self.probe.inputs.device), *self.probe))  # (2, e)
        losses, shares = (scores @ self.members.T / self.members.sum(dim=1)).to(theta.device)
        return ByClass(losses, 100.0 * shares)

    def gradient(self, theta: Tensor, classes: Tensor) -> Tensor:
        """The gradient (d,) at theta of the mean loss over the probe examples of some classes, bool (c,)."""
        device = self.probe.inputs.device
        chosen = self.members[classes.to(device)].any(dim=0)
        return self.model.gradient(theta.to(device), self.probe.inputs[chosen], self.probe.labels[chosen]).to(theta.device)


def follow(reference: Tensor, values: Tensor, usual: Tensor, memory: float) -> Tensor:
    """A reference (c,) of values of which less is better: their slow running mean, but never above the usual ones.

    A reference that is above them (a model at the beginning of its training) falls with the values at once. The lowest value so far would
    never forget a lucky round; a running mean alone would follow a patient attacker up.
    """
    fallen = torch.maximum(torch.minimum(reference, values), torch.minimum(reference, usual))
    return torch.minimum(fallen + (values - fallen) / memory, torch.maximum(fallen, usual))
