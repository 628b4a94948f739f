"""A user's plain function as the combination of a rule: `(updates (n, d), weights (n,), **options) -> (d,)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fl_sim.data.batches import Batch
from fl_sim.grid.server_strategy import Needs
from fl_sim.outside_code import OutsideCodeError, error_report, outside_call, with_place
from fl_sim.rng.streams import seeded_global_generators

OPTIONAL = ("clients", "server_data", "state")  # inputs of a function besides the updates and their weights, if it has such parameters


class OutsideRuleError(OutsideCodeError):
    """A rule from outside raised, or did not return a combined update."""


@dataclass
class OwnCombine:
    """Calls `function` with the updates, their weights, and the `OPTIONAL` inputs that are among its parameters.

    clients: the client id of each row (n,); server_data: a clean batch of the server; state: a dict of tensors, empty in round 1, that is
    kept from round to round and in checkpoints. The function gets copies, and the global generators are seeded from `seed` and the number
    of the call, which is kept in checkpoints too.
    """

    name: str
    function: Callable[..., Any]
    options: Mapping[str, Any]
    probe: Callable[[], Batch]
    seed: int = 0
    calls: int = 0
    state: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def needs(self) -> Needs:
        """What the function asks for."""
        names = optional_parameters(self.function)
        return Needs(server_data="server_data" in names, client_ids="clients" in names)

    def __call__(self, updates: Tensor, weights: Tensor, clients: Tensor) -> Tensor:
        """The combined update (d,). Raises OutsideRuleError."""
        names, arguments = optional_parameters(self.function), dict[str, Any]()
        if "clients" in names:
            arguments["clients"] = clients.clone()
        if "server_data" in names:
            arguments["server_data"] = self.probe()
        if "state" in names:
            arguments["state"] = self.state
        self.calls += 1
        with seeded_global_generators(self.seed, "rule", self.calls), outside_call(self._failure):
            combined = self.function(updates.clone(), weights.clone(), **arguments, **self.options)
            return self._checked(combined, updates)

    def _failure(self, error: BaseException) -> Exception:
        return error if isinstance(error, OutsideRuleError) else OutsideRuleError(f"{self.name}: {error_report(error, self.function)}")

    def _checked(self, combined: Any, updates: Tensor) -> Tensor:
        """What the function returned, as a new tensor of the updates' type; its state without graphs. Raises OutsideRuleError."""
        whose = with_place(self.name, self.function)
        expected = f"expected {whose} to return a tensor of shape ({updates.shape[1]},)"
        if not isinstance(combined, Tensor):
            raise OutsideRuleError(f"{expected}, got {type(combined).__name__}")
        if combined.shape != updates.shape[1:]:
            raise OutsideRuleError(f"{expected}, got {tuple(combined.shape)}")
        if combined.is_meta or combined.layout != torch.strided or combined.is_complex() or combined.is_quantized:
            form = "one on the meta device" if combined.is_meta else f"{combined.dtype} in {combined.layout}"
            raise OutsideRuleError(f"{expected}, dense and of real numbers, got {form}")
        combined = combined.detach().to(updates, copy=True)
        if not bool(torch.isfinite(combined).all()):
            raise OutsideRuleError(f"{expected} of finite numbers, got one with NaN or infinity")
        for key, value in self.state.items():
            if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise OutsideRuleError(f"expected {whose} to keep tensors in its state, got {type(value).__name__} as {key!r}")
            self.state[key] = value.detach()
        return combined


def optional_parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The `OPTIONAL` inputs that are among the parameters of a function."""
    parameters = inspect.signature(function).parameters
    return tuple(name for name in OPTIONAL if name in parameters)
