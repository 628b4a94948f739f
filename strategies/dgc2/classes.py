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
    """Of each class that the probe set holds (c,): mean cross-entropy, accuracy, and mean probability of the true class, in percent."""

    losses: Tensor
    accuracies: Tensor
    confidences: Tensor


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
        """How a model theta (d,) does."""
        losses, hits = self.model.examples(theta.to(self.probe.inputs.device), *self.probe)
        scores = torch.stack([losses, 100.0 * hits, 100.0 * torch.exp(-losses)])  # (3, e)
        return ByClass(*(scores @ self.members.T / self.members.sum(dim=1)).to(theta.device))

    def gradient(self, theta: Tensor, classes: Tensor) -> Tensor:
        """The gradient (d,) at theta of the mean loss over the probe examples of some classes, bool (c,)."""
        device = self.probe.inputs.device
        chosen = self.members[classes.to(device)].any(dim=0)
        return self.model.gradient(theta.to(device), self.probe.inputs[chosen], self.probe.labels[chosen]).to(theta.device)

    def shortfall_gradient(self, theta: Tensor, deficits: Tensor) -> Tensor:
        """The gradient (d,) at theta of `1/2 sum_c deficit_c^2`, for deficits (c,) >= 0 of the confidences, in percent.

        With `deficit_c = reference_c - 100 mean_j p_j` it is that of `-sum_c deficit_c 100 mean_j p_j`, the deficits held constant.
        """
        shares = (deficits.to(self.members.device) / self.members.sum(dim=1)) @ self.members  # (e,)
        chosen, leaf = shares > 0.0, theta.detach().to(self.probe.inputs.device).requires_grad_()
        inputs, labels = self.probe.inputs[chosen], self.probe.labels[chosen]
        with torch.enable_grad():
            probabilities = self.model.logits(leaf, inputs).softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
            (gradient,) = torch.autograd.grad(-(100.0 * shares[chosen] * probabilities).sum(), leaf)
        return gradient.to(theta.device)


def follow(reference: Tensor, values: Tensor, usual: Tensor, memory: float) -> Tensor:
    """A reference (c,) of values of which less is better: their slow running mean, but never above the usual ones.

    A reference that is above them (a model at the beginning of its training) falls with the values at once. The lowest value so far would
    never forget a lucky round; a running mean alone would follow a patient attacker up.
    """
    fallen = torch.maximum(torch.minimum(reference, values), torch.minimum(reference, usual))
    return torch.minimum(fallen + (values - fallen) / memory, torch.maximum(fallen, usual))
