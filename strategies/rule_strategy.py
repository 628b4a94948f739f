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
from fl_sim.training.clipping import Clip, clip
from fl_sim.wire.arrays import from_record, to_record
from fl_sim.wire.messages import PublicRule
from fl_sim.wire.object_state import State, restore_state, save_state
from strategies.dgc.guard import Guard
from strategies.dgc2.defence import SecondDefence
from strategies.rule import CannotCombineError, Rule, SeesModel, finish, stacked_mean
from strategies.selection.left_out import left_out_by
from strategies.server_sgd import ServerState, server_step

PUBLIC_COMBINE = "strategies.catalogue:public_combine"  # as text, because `clients` must not import `strategies`


class RuleStrategy(Strategy):
    """Samples clients, sends them the model, applies a `Rule` and server SGD with momentum, and lets a `Guard` check the result.

    The model travels as one flat array `theta` (d,) in float32. `sample(round)` gives the client ids. A round without any finite update, or
    whose updates the rule cannot combine, does not change the model; `skipped` then says why, and is empty after any other round.
    `left_out`: the clients that the rule left out of the last round, if it is one that selects.

    Args: server, `server.*`; name, of the strategy; guard, DGC's, or the defence of its second version; report_norms, whether workers must
    report every update's norm although nothing is clipped (for the calibration).
    """

    def __init__(
        self,
        rule: Rule,
        theta: Tensor,
        server: Server,
        sample: Callable[[int], Sequence[int]],
        *,
        name: str = "",
        guard: Guard | SecondDefence | None = None,
        report_norms: bool = False,
    ) -> None:
        self.rule, self.name, self._server, self._sample = rule, name, server, sample
        self.defence = guard if isinstance(guard, SecondDefence) else None
        self._guard, self._report_norms = guard if isinstance(guard, Guard) else None, report_norms
        self.state = ServerState(theta, torch.zeros_like(theta))
        self.guard_state = self._guard.begin(theta) if self._guard else None
        self.step_size, self.needs = server.learning_rate, guard.needs if guard else rule.needs
        self.skipped = ""
        self.left_out: tuple[int, ...] | None = None

    @property
    def theta(self) -> Tensor:
        """The global model (d,)."""
        return self.state.theta

    def public_rule(self) -> PublicRule:
        """The clips of this round, a guard's included; the name of a function that makes the combination from the configuration, unless it
        needs the server's data or the model; and whether weights count."""
        hidden = self.needs.server_data or self.needs.model
        combine = "" if self.rule.combine is None else None if hidden else PUBLIC_COMBINE
        return PublicRule(self.name, self._round_rule().before, self.rule.after, combine, self.step_size, self.rule.weighted)

    def save(self) -> State:
        """Everything that the next round depends on: model, velocity, the states of the guard and of the combination."""
        combination = {"guard": self.guard_state, "combine": self.rule.combine}
        return save_state({**self.state._asdict(), **combination, "defence": self.defence.memory if self.defence else None})

    def load(self, state: State) -> None:
        """Restore a saved state, in this or in a new strategy of the same configuration."""
        like = {"guard": self.guard_state, "combine": self.rule.combine, "defence": self.defence.memory if self.defence else None}
        values = restore_state(state, like)
        device, guard = self.state.theta.device, values["guard"]
        self.state = ServerState(values["theta"].to(device), values["velocity"].to(device))
        self.guard_state = guard.to(self.guard_state.fixed.device) if guard and self.guard_state else None
        if self.defence:
            self.defence.memory = values["defence"]

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """One packed message for the `ClientGrid` with the ids of the sampled clients. `config` may hold the `phase` of the round."""
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
        """The next model from the grid's packed reply, and the figures of the rule and the guard."""
        content = next(iter(replies)).content
        clients = content.config_records["clients"]
        weights = torch.tensor(cast(list[float], clients["weights"]))
        norms = torch.tensor(cast(list[float], clients["norms"]))
        self.skipped, self.left_out = "" if len(weights) else "there is no update", None
        try:
            mean, metrics = self._mean(content, weights) if len(weights) else (None, dict[str, float]())
        except CannotCombineError as error:
            self.skipped, mean, metrics = str(error), None, dict[str, float]()
        if mean is None:
            return to_record({"theta": self.state.theta}), MetricRecord({"combined_norm": 0.0, "applied_norm": 0.0})
        combined = finish(self._round_rule(), mean, norms)
        metrics |= combined.metrics
        if self._guard and self.guard_state and self._guard.settings.scope == "aggregate":
            judgement = self._guard.judge(self.state, combined.update, self.guard_state, norms)
            self.state, self.guard_state = judgement.server, judgement.guard
            metrics |= judgement.metrics
        else:
            self.state = server_step(self.state, combined.update, self._server.learning_rate, self._server.momentum)
            if self._guard and self.guard_state:
                self.guard_state = self._guard.follow(self.state.theta, self.guard_state)
            if self.defence:
                self.state, figures = self.defence.settle(self.state)
                metrics |= figures
        return to_record({"theta": self.state.theta}), MetricRecord(dict(metrics))

    def _round_rule(self) -> Rule:
        """The rule of this round: during a guard's probation each client is clipped before combining, by a defence always."""
        before = self._guard.before(self.guard_state) if self._guard and self.guard_state else None
        if self.defence:
            before = self.defence.before()
        if before is None and self._report_norms:
            before = Clip("l2", float("inf"))
        return replace(self.rule, before=before) if before else self.rule

    def begin_probation(self, rounds: int, bound: float) -> None:
        """Clip each client's update at `bound` for the next `rounds` rounds, as after a refusal or a drift (for the calibration)."""
        if self.guard_state:
            self.guard_state = self.guard_state._replace(probation=rounds, probation_length=rounds, bound=bound)

    @property
    def _stacked(self) -> bool:
        """Whether the server needs every single update."""
        return not self.rule.reducible or self.defence is not None or (self._guard is not None and self._guard.settings.scope == "client")

    def _mean(self, content: RecordDict, weights: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The combined update (d,) before the `after` slot, and the figures of a guard that checks single updates."""
        if not self._stacked:
            return from_record(content.array_records["sum"])["sum"] / weights.sum(), {}
        rows, metrics = from_record(content.array_records["rows"])["rows"], dict[str, float]()
        updates = rows
        if self._guard and self.guard_state and self._guard.settings.scope == "client":
            updates, metrics = self._guard.sift(self.state.theta, rows, self.guard_state)
        clients, combine = torch.tensor(cast(list[int], content.config_records["clients"]["ids"])), self.rule.combine
        if isinstance(combine, SeesModel):
            combine.see(self.state.theta)
        rule = self._round_rule()
        if self.defence and rule.before:
            mean = self.defence.combine(self.state, clip(updates, rule.before)[0], weights, clients)
            self.left_out = tuple(clients[self.defence.left_out].tolist())
            return mean, dict(self.defence.figures)
        mean = stacked_mean(rule, updates, weights, clients)
        left = left_out_by(combine, clip(updates, rule.before)[0] if rule.before else updates) if combine else (updates != rows).any(dim=1)
        self.left_out = None if left is None else tuple(clients[left.cpu()].tolist())
        return mean, metrics | getattr(combine, "figures", {})

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Nothing: the ServerApp evaluates centrally."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        log(INFO, "%s, server learning rate %g, momentum %g", self.rule, self._server.learning_rate, self._server.momentum)
