"""A plain function `(updates (n, d), weights (n,), **options) -> (d,)` as the combination of a rule: a published defence, or a user's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from fl_sim.grid.server_strategy import Needs
from fl_sim.outside_code import OutsideCodeError, error_report, outside_call, with_place
from fl_sim.rng.streams import seeded_global_generators, torch_stream
from strategies.rule import CannotCombineError, OptionError, RuleView

OF_THE_MODEL = ("theta", "model", "server_data", "server_update", "server_lr", "server_momentum", "client_lr")  # `ServerInputs` makes them
OPTIONAL = ("clients", "state", "generator", "report", "view", *OF_THE_MODEL)  # inputs besides updates and weights, by parameter name

ServerInputs = Mapping[str, Callable[[Tensor], Any]]  # what the server can give of `OF_THE_MODEL`, as functions of the model theta (d,)


class OutsideRuleError(OutsideCodeError):
    """A rule from outside raised, or did not return a combined update."""


@dataclass
class OwnCombine:
    """Calls `function` with the updates, their weights, and the `OPTIONAL` inputs that are among its parameters.

    clients: the client id of each row (n,); state: a dict of tensors, empty in round 1, that is kept from round to round and in
    checkpoints; generator: a new torch.Generator of each call; report: an empty dict, in which the function may put `left_out` (n,), true
    for a client that it left out, and numbers by name for the round's record; the others: see docs/contributing.md, section 2.2.
    The function gets copies, and the global generators are seeded from `seed` and the number of the call, which is kept in checkpoints too.

    Args: server, what the server can give; weighted, whether the function reads the weights; public, whether this is the coalition's copy
    of a rule that it knows: its generator draws other numbers than the server's.
    """

    name: str
    function: Callable[..., Any]
    options: Mapping[str, Any]
    server: ServerInputs = field(default_factory=dict[str, Callable[[Tensor], Any]])
    seed: int = 0
    weighted: bool = True
    public: bool = False
    calls: int = 0
    state: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    theta: Tensor | None = None

    @property
    def needs(self) -> Needs:
        """What the function asks for."""
        names = set(optional_parameters(self.function))
        return Needs(
            server_data=bool(names & {"server_data", "server_update", "view"}),
            client_ids=bool(names & {"clients", "view"}),
            model=bool(names & {"theta", "model", "view"}),
        )

    @property
    def figures(self) -> dict[str, float]:
        """The numbers that the function reported in the last round."""
        return {name: float(value) for name, value in self.report.items() if name != "left_out"}

    def see(self, theta: Tensor) -> None:
        """Remember the model theta (d,) for the next call."""
        self.theta = theta

    def __call__(self, updates: Tensor, weights: Tensor, clients: Tensor) -> Tensor:
        """The combined update (d,). Raises OutsideRuleError, and CannotCombineError and OptionError of a rule of ours."""
        self.calls += 1
        self.report = {}
        given = self._given(clients)
        arguments = {name: given[name]() for name in optional_parameters(self.function)}
        self.theta = None  # it is in the strategy's state: no checkpoint needs it twice
        with seeded_global_generators(self.seed, "rule", self.calls), outside_call(self._failure):
            combined = self.function(updates.clone(), weights.clone(), **arguments, **self.options)
            return self._checked(combined, updates)

    def _given(self, clients: Tensor) -> dict[str, Callable[[], Any]]:
        """What makes each of the `OPTIONAL` inputs."""
        theta = torch.zeros(0) if self.theta is None else self.theta
        whose = "public" if self.public else "server"
        given: dict[str, Callable[[], Any]] = {
            "clients": clients.clone,
            "state": lambda: self.state,
            "generator": lambda: torch_stream(self.seed, "rule", whose, self.calls),
            "report": lambda: self.report,
            **{name: lambda name=name: self.server[name](theta) for name in OF_THE_MODEL},
        }
        return {**given, "view": lambda: RuleView(**{part.name: given[part.name]() for part in fields(RuleView)})}

    def _failure(self, error: BaseException) -> Exception:
        if isinstance(error, OutsideRuleError | CannotCombineError | OptionError):
            return error
        return OutsideRuleError(f"{self.name}: {error_report(error, self.function)}")

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
        self._check_report(whose, len(updates))
        return combined

    def _check_report(self, whose: str, n: int) -> None:
        """Raises OutsideRuleError for a report that cannot be recorded."""
        for name, value in self.report.items():
            if name == "left_out":
                if not isinstance(value, Tensor) or tuple(value.shape) != (n,):
                    raise OutsideRuleError(f"expected {whose} to report left_out as a tensor of shape ({n},), got {value!r}")
                self.report[name] = value.detach().bool().cpu()
                continue
            number = isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
            if not number or not math.isfinite(value):
                raise OutsideRuleError(f"expected {whose} to report finite numbers, got {value!r} as {name!r}")
            self.report[name] = float(value)


def optional_parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The `OPTIONAL` inputs that are among the parameters of a function."""
    parameters = inspect.signature(function).parameters
    return tuple(name for name in OPTIONAL if name in parameters)


def options_taken(function: Callable[..., Any]) -> tuple[str, ...]:
    """The parameters of a function that are options: neither the updates and their weights, nor `OPTIONAL` inputs."""
    names = list(inspect.signature(function).parameters)[2:]
    return tuple(name for name in names if name not in OPTIONAL)
