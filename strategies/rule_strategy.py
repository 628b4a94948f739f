"""The Flower Strategy that hosts a rule and the server optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from logging import INFO
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_sim.config.keys import Server
from fl_sim.grid.server_strategy import Needs
from fl_sim.training.clipping import Clip
from fl_sim.wire.arrays import from_record, to_record
from fl_sim.wire.messages import PublicRule
from fl_sim.wire.object_state import State, restored, saved
from strategies.dgc.guard import Guard
from strategies.rule import Rule, finish, stacked_mean
from strategies.server_sgd import ServerState, server_step

PUBLIC_COMBINE = "strategies.catalogue:public_combine"  # as text, because clients may not know strategies


class RuleStrategy(Strategy):
    """Samples clients, sends them the model, applies a `Rule` and server SGD with momentum, and lets a `Guard` judge the result.

    The model travels as one flat array `theta` (d,) in float32. `sample(round)` gives the client ids; the state is the
    server's and is replaced, never written into. A round without any finite update leaves the model as it is.

    Args: server, `server.*`; name, of the strategy; guard, DGC's; norms_wanted, ask for every update's norm also where nobody clips (the
    calibration).
    """

    def __init__(
        self,
        rule: Rule,
        theta: Tensor,
        server: Server,
        sample: Callable[[int], Sequence[int]],
        *,
        name: str = "",
        guard: Guard | None = None,
        norms_wanted: bool = False,
    ) -> None:
        self.rule, self.name, self._server, self._sample = rule, name, server, sample
        self._guard, self._norms_wanted = guard, norms_wanted
        self.state = ServerState(theta, torch.zeros_like(theta))
        self.guard_state = guard.begin(theta) if guard else None
        self.step_size, self.needs = server.learning_rate, Needs(server_data=guard is not None, calibration=guard is not None)

    @property
    def theta(self) -> Tensor:
        """The global model (d,)."""
        return self.state.theta

    def public_rule(self) -> PublicRule:
        """The clips of this round, a guard's included; the combination is made anew from the configuration by whoever wants it."""
        combine = PUBLIC_COMBINE if self.rule.combine else ""
        return PublicRule(self.name, self._round_rule().before, self.rule.after, combine, self.step_size)

    def save(self) -> State:
        """All that the next round depends on: model, velocity, what the guard and a combination with a memory remember."""
        return saved({**self.state._asdict(), "guard": self.guard_state, "combine": self.rule.combine})

    def load(self, state: State) -> None:
        """Bring a saved state back, also into a strategy that was made anew."""
        found = restored(state, {"guard": self.guard_state, "combine": self.rule.combine})
        device, guard = self.state.theta.device, found["guard"]
        self.state = ServerState(found["theta"].to(device), found["velocity"].to(device))
        self.guard_state = guard.to(self.guard_state.fixed.device) if guard and self.guard_state else None

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """One packed message for the `ClientGrid` with the ids of the sampled clients; `config` may bring the `phase` of the round."""
        before = self._round_rule().before
        settings = ConfigRecord(
            {
                "phase": "",
                **config,
                "clients": list(self._sample(server_round)),
                "round": server_round,
                "stacked": self._stacked,
                "clip-norm": before.norm if before else "",
                "clip-bound": before.bound if before else 0.0,
            }
        )
        return [Message(RecordDict({"arrays": arrays, "config": settings}), 1, "train")]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model from the grid's packed reply, and what the rule and the guard report."""
        content = next(iter(replies)).content
        clients = content.config_records["clients"]
        weights = torch.tensor(cast(list[float], clients["weights"]))
        norms = torch.tensor(cast(list[float], clients["norms"]))
        if not len(weights):
            return to_record({"theta": self.state.theta}), MetricRecord({"combined_norm": 0.0, "applied_norm": 0.0})
        mean, metrics = self._mean(content, weights)
        combined = finish(self._round_rule(), mean, norms)
        metrics |= combined.metrics
        if self._guard and self.guard_state and self._guard.settings.scope == "aggregate":
            judged = self._guard.judge(self.state, combined.update, self.guard_state, norms)
            self.state, self.guard_state = judged.server, judged.guard
            metrics |= judged.metrics
        else:
            self.state = server_step(self.state, combined.update, self._server.learning_rate, self._server.momentum)
            if self._guard and self.guard_state:
                self.guard_state = self._guard.follow(self.state.theta, self.guard_state)
        return to_record({"theta": self.state.theta}), MetricRecord(dict(metrics))

    def _round_rule(self) -> Rule:
        """The rule of this round: during a guard's probation each client is clipped before combining."""
        before = self._guard.before(self.guard_state) if self._guard and self.guard_state else None
        if before is None and self._norms_wanted:
            before = Clip("l2", float("inf"))
        return replace(self.rule, before=before) if before else self.rule

    def begin_probation(self, rounds: int, bound: float) -> None:
        """Clip each client at `bound` for some rounds from now, as after a refusal or a drift (the calibration rehearses one)."""
        if self.guard_state:
            self.guard_state = self.guard_state._replace(probation=rounds, probation_length=rounds, bound=bound)

    @property
    def _stacked(self) -> bool:
        """Whether every single update is needed here."""
        return not self.rule.reducible or (self._guard is not None and self._guard.settings.scope == "client")

    def _mean(self, content: RecordDict, weights: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The combined update (d,) before the `after` slot, and what sifting the single updates reported."""
        if not self._stacked:
            return from_record(content.array_records["sum"])["sum"] / weights.sum(), {}
        updates, metrics = from_record(content.array_records["rows"])["rows"], dict[str, float]()
        if self._guard and self.guard_state and self._guard.settings.scope == "client":
            updates, metrics = self._guard.sift(self.state.theta, updates, self.guard_state)
        clients = torch.tensor(cast(list[int], content.config_records["clients"]["ids"]))
        return stacked_mean(self._round_rule(), updates, weights, clients), metrics

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Nothing: the ServerApp evaluates centrally."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        log(INFO, "%s, server learning rate %g, momentum %g", self.rule, self._server.learning_rate, self._server.momentum)
