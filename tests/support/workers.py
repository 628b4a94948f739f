"""Workers in this process, and one round played over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, RecordDict

from clients.client_app import answer
from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.data.sampling import malicious_clients
from fl_sim.grid.grid import ClientGrid, RoundOutcome
from fl_sim.grid.transports import Answer, Transport, call_worker, from_content, to_content
from fl_sim.model.module import new_module
from fl_sim.model.vectors import flat_parameters
from fl_sim.training.clipping import Clip
from fl_sim.wire.arrays import from_record, to_record
from fl_sim.wire.messages import Order, PublicRule, Reply


def encoded_answer(order: Order) -> Reply:
    """The worker's answer to an order that went through Flower's messages, and back through them."""
    return from_content(to_content(answer(from_content(to_content(order)))))


class Workers(Transport):
    """Several workers in this process; `broken` ones answer nothing, as a killed actor does."""

    def __init__(self, count: int, broken: Sequence[int] = (), slow_waves: bool = False) -> None:
        self._count, self._broken, self.slow_waves = count, broken, slow_waves
        self.sent: list[int] = []

    @property
    def num_workers(self) -> int:
        return self._count

    def exchange(self, orders: Sequence[Order], avoid: int | None = None, timeout: float | None = None) -> list[Answer]:
        self.sent.append(len(orders))
        workers = [worker for worker in range(self._count) if worker != avoid]
        answers = [
            Answer(workers[i], None, "worker died") if workers[i] in self._broken else call_worker(answer, orders[i], workers[i])
            for i in reversed(range(len(orders)))  # arrival order is not sending order
        ]
        return answers[::-1]


def play(
    config: Config, transport: Transport, *, phase: str = "accumulate", stacked: bool = False, clip: Clip | None = None, **more: Any
) -> tuple[RecordDict, RoundOutcome]:
    """One round of all clients: the packed reply, and what the grid saw."""
    module = new_module(config, load_federation(config))
    grid = ClientGrid(transport, config, torch.zeros(0), malicious=malicious_clients(config), **more)
    settings = {"clients": list(range(config.data.num_clients)), "phase": phase, "round": 1, "stacked": stacked}
    settings |= {"clip-norm": clip.norm if clip else "", "clip-bound": clip.bound if clip else 0.0}
    content = RecordDict({"arrays": to_record({"theta": flat_parameters(module)}), "config": ConfigRecord(settings)})
    rule = PublicRule("mean", clip, step_size=config.server.learning_rate)
    (reply,), outcome = grid.play([Message(content, 1, "train")], rule)
    return reply.content, outcome


def total(content: RecordDict) -> torch.Tensor:
    """The weighted sum (d,) in a packed reply."""
    return from_record(content.array_records["sum"])["sum"]
