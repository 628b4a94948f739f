"""A plain function of somebody's as the combination of a rule: `(updates (n, d), weights (n,), **options) -> (d,)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fl_sim.data.batches import Batch

ASKED = ("clients", "server_data", "state")  # parameters that get more than the updates and their weights


class OutsideRuleError(RuntimeError):
    """A rule from outside returned something that is no combined update."""


@dataclass
class OwnCombine:
    """Calls `function`, with what its parameters ask for.

    clients: the ids (n,) of who sent each row; server_data: a clean batch of the server's own; state: a dict of tensors, empty in round 1,
    that is kept from round to round and in checkpoints.
    """

    name: str
    function: Callable[..., Any]
    options: Mapping[str, Any]
    probe: Callable[[], Batch]
    state: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __call__(self, updates: Tensor, weights: Tensor, clients: Tensor) -> Tensor:
        """The combined update (d,). Raises OutsideRuleError."""
        asked, given = asked_for(self.function), dict[str, Any]()
        if "clients" in asked:
            given["clients"] = clients.clone()
        if "server_data" in asked:
            given["server_data"] = self.probe()
        if "state" in asked:
            given["state"] = self.state
        combined = self.function(updates.clone(), weights.clone(), **given, **self.options)
        expected = f"expected {self.name} to return a tensor of shape ({updates.shape[1]},)"
        if not isinstance(combined, Tensor):
            raise OutsideRuleError(f"{expected}, got {type(combined).__name__}")
        if combined.shape != updates.shape[1:]:
            raise OutsideRuleError(f"{expected}, got {tuple(combined.shape)}")
        if not bool(torch.isfinite(combined).all()):
            raise OutsideRuleError(f"{expected} of finite numbers, got one with NaN or infinity")
        for key, value in self.state.items():
            if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise OutsideRuleError(f"expected {self.name} to keep tensors in its state, got {type(value).__name__} as {key!r}")
        return combined.detach().to(updates)


def asked_for(function: Callable[..., Any]) -> tuple[str, ...]:
    """Which of `ASKED` a function has among its parameters."""
    parameters = inspect.signature(function).parameters
    return tuple(name for name in ASKED if name in parameters)
