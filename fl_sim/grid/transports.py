"""How a wave of orders reaches workers: in this process, or through Flower's own message engine. (Ray: `fl_sim.grid.ray_workers`.)

A worker is a function from an order to a reply. Only what leaves the process is written down, by `fl_sim.wire.object_state`.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fl_sim.wire.arrays import from_record, to_record
from fl_sim.wire.messages import Order, Reply
from fl_sim.wire.object_state import State, packed, unpacked

Worker = Callable[[Order], Reply]


@dataclass(frozen=True)
class Answer:
    """What came back for one order: a reply, or the reason why there is none; and the worker that was asked (None: it is gone)."""

    worker: int | None
    reply: Reply | None
    failure: str = ""


class Transport(ABC):
    """Workers that each answer orders, and a way to send each of them at most one order a wave."""

    slow_waves: bool = False  # a wave costs more than computing a round twice: prefer one wave

    @property
    @abstractmethod
    def num_workers(self) -> int:
        """How many workers there are."""

    @abstractmethod
    def exchange(self, orders: Sequence[Order], avoid: int | None = None, timeout: float | None = None) -> list[Answer]:
        """Send at most `num_workers` orders, each to another worker, and wait for all answers, in the order of `orders`.

        `avoid` names a worker that failed and is not to be asked, if there is another. After `timeout` seconds the answers that are not
        there are given up.
        """

    def close(self) -> None:  # noqa: B027  (most transports start nothing)
        """Release what the transport started."""


class HostingTransport(Transport):
    """A transport whose workers can also run something whole."""

    hosts: bool  # whether they can now

    @abstractmethod
    def host(self, target: str, *arguments: str) -> Iterator[Any]:
        """What the generator `target` ("module:function") yields in a worker, called with an `InlineTransport` of it and `arguments`.

        Raises what it raises, and `WorkerDiedError`.
        """


class WorkerDiedError(RuntimeError):
    """The worker that hosted a run is gone."""


class InlineTransport(Transport):
    """No other process: the worker is called in this one, and nothing is written down."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    @property
    def num_workers(self) -> int:
        return 1

    def exchange(self, orders: Sequence[Order], avoid: int | None = None, timeout: float | None = None) -> list[Answer]:
        return [call_worker(self._worker, order, worker=0) for order in orders]


class FlowerTransport(Transport):
    """Flower's SuperNodes, through the grid that Flower gave to the ServerApp."""

    slow_waves = True  # Flower's simulation engine looks for messages every 0.1 s

    def __init__(self, grid: Grid, timeout: float = 60.0) -> None:
        self._grid = grid
        until = time.monotonic() + timeout
        while not (nodes := sorted(grid.get_node_ids())):
            if time.monotonic() > until:
                raise TimeoutError(f"no SuperNode connected within {timeout:.0f} s")
            time.sleep(0.1)
        self._nodes = nodes

    @property
    def num_workers(self) -> int:
        return len(self._nodes)

    def exchange(self, orders: Sequence[Order], avoid: int | None = None, timeout: float | None = None) -> list[Answer]:
        workers = [worker for worker in range(len(self._nodes)) if worker != avoid] or [0]
        messages = [Message(to_content(order), self._nodes[workers[i]], "train") for i, order in enumerate(orders)]
        replies = {reply.metadata.src_node_id: reply for reply in self._grid.send_and_receive(messages, timeout=timeout)}
        return [_answer_of(replies.get(self._nodes[workers[i]]), workers[i]) for i in range(len(messages))]


def to_content(value: Order | Reply) -> RecordDict:
    """An order or a reply as the content of a Flower message."""
    state = packed(value)
    return RecordDict({"tensors": to_record(dict(state.tensors)), "rest": ConfigRecord({"json": json.dumps(state.json)})})


def from_content(content: RecordDict) -> Any:
    """The inverse of `to_content`."""
    rest = cast(str, content.config_records["rest"]["json"])
    return unpacked(State(json.loads(rest), from_record(content.array_records["tensors"])))


def claim_identity() -> None:
    """Let this process build Flower messages without a Flower runtime: `Message` asks for the task that it runs in."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 0, 0, 0


def call_worker(answer: Worker, order: Order, worker: int) -> Answer:
    """Let a worker of this process answer; an exception becomes the answer's failure."""
    try:
        return Answer(worker, answer(order))
    except Exception as error:  # a worker may raise anything: it becomes the reason in the round's record
        return Answer(worker, None, f"{type(error).__name__}: {error}")


def _answer_of(message: Message | None, worker: int) -> Answer:
    """A Flower reply as an answer."""
    if message is None:
        return Answer(worker, None, "no reply")
    if message.has_error():
        return Answer(worker, None, message.error.reason or f"error {message.error.code}")
    try:
        return Answer(worker, from_content(message.content))
    except Exception as error:  # a reply may hold anything
        return Answer(worker, None, f"the reply cannot be read ({type(error).__name__}: {error})")
