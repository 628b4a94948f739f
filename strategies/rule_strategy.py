"""The Flower Strategy that hosts a rule and the server optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from logging import INFO
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_sim.config import Config
from fl_sim.params import from_record, to_record
from strategies.rules import RULES, Combined, Rule, finish, stacked_mean
from strategies.server_sgd import ServerState, server_step


class RuleStrategy(Strategy):
    """Samples clients, sends them the model, applies a `Rule` and server SGD with momentum.

    The model travels as one flat array `theta` (d,) in float32. `sample(round)` gives the client ids; the state is the
    server's and is replaced, never written into. A round without any finite update leaves the model as it is.
    """

    def __init__(self, rule: Rule, theta: Tensor, *, learning_rate: float, momentum: float, sample: Callable[[int], Sequence[int]]) -> None:
        self.rule, self._learning_rate, self._momentum, self._sample = rule, learning_rate, momentum, sample
        self.state = ServerState(theta, torch.zeros_like(theta))

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """One message per sampled client, all with the same content; `config` may bring the `phase` of the round."""
        before = self.rule.before if self.rule.reducible else None
        settings = ConfigRecord(
            {
                "phase": "",
                **config,
                "round": server_round,
                "stacked": not self.rule.reducible,
                "clip-norm": before.norm if before else "",
                "clip-bound": before.bound if before else 0.0,
            }
        )
        content = RecordDict({"arrays": arrays, "config": settings})
        return [Message(content, client + 1, "train") for client in self._sample(server_round)]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model from the grid's packed reply, and what the rule reports."""
        combined = self._combine(next(iter(replies)).content)
        if combined is None:
            return to_record({"theta": self.state.theta}), MetricRecord({"combined-norm": 0.0, "applied-norm": 0.0})
        self.state = server_step(self.state, combined.update, self._learning_rate, self._momentum)
        return to_record({"theta": self.state.theta}), MetricRecord(dict(combined.metrics))

    def _combine(self, content: RecordDict) -> Combined | None:
        clients = content.config_records["clients"]
        weights = torch.tensor(cast(list[float], clients["weights"]))
        norms = torch.tensor(cast(list[float], clients["norms"]))
        if not len(weights):
            return None
        if self.rule.reducible:
            total = from_record(content.array_records["sum"])["sum"]
            return finish(self.rule, total / weights.sum(), norms)
        updates = from_record(content.array_records["rows"])["rows"]
        return finish(self.rule, stacked_mean(self.rule, updates, weights), norms)

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Nothing: the ServerApp evaluates centrally."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        log(INFO, "%s, server learning rate %g, momentum %g", self.rule, self._learning_rate, self._momentum)


def build_strategy(config: Config, theta: Tensor, sample: Callable[[int], Sequence[int]]) -> RuleStrategy:
    """The strategy of `strategy.name` around the initial model theta (d,)."""
    rule = RULES[config.strategy.name](config.strategy)
    return RuleStrategy(rule, theta, learning_rate=config.server.learning_rate, momentum=config.server.momentum, sample=sample)
