"""How a wave of orders reaches the workers: in this process, or through Flower's own message engine. (Ray: `fl_sim.grid.ray_workers`.)

A worker is a function from an order to a reply. Only messages that leave the process are encoded, by `fl_sim.wire.object_state`.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fl_sim.outside_code import error_words, is_interrupt
from fl_sim.waits import PATIENCE, ProcessError
from fl_sim.wire.arrays import from_record, to_record
from fl_sim.wire.messages import Order, Reply
from fl_sim.wire.object_state import State, pack, unpack

Worker = Callable[[Order], Reply]
SCRATCH = "FL_SIM_SCRATCH"  # the environment variable with the folder for temporary ones of a worker, if it is not the system's


@dataclass(frozen=True)
class Answer:
    """The result of one order: a reply, or the reason why there is none; and the worker that was asked (None: it died)."""

    worker: int | None
    reply: Reply | None
    failure: str = ""


class Transport(ABC):
    """Workers that answer orders, at most one order per worker and wave."""

    slow_waves: bool = False  # a wave takes longer than computing a round twice, so one wave is better than two

    @property
    @abstractmethod
    def num_workers(self) -> int:
        """How many workers there are."""

    @abstractmethod
    def exchange(self, orders: Sequence[Order], avoid: int | None = None, timeout: float | None = None) -> list[Answer]:
        """Send at most `num_workers` orders, each to a different worker, and return all answers, in the order of `orders`.

        `avoid`: a worker that failed and is asked only if there is no other. After `timeout` seconds (None: `PATIENCE`) a missing answer
        counts as a failure.
        """

    def close(self) -> None:  # noqa: B027  (most transports start nothing)
        """Release what the transport started."""


class CellTransport(Transport):
    """A transport whose workers can also run whole cells of a sweep."""

    @abstractmethod
    def run_cell(self, target: str, *arguments: Any) -> Generator[Any]:
        """Run the generator `target` ("module:function") in a worker and return what it yields. It is called with an `InlineTransport` to
        that worker, and with `arguments`. If the result is closed early, the worker ends.

        Raises what the generator raises, and `WorkerDiedError`.
        """


class WorkerDiedError(RuntimeError):
    """The worker that ran a whole cell died."""


class InlineTransport(Transport):
    """No other process: the worker is called in this one, and messages are not encoded."""

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
                raise ProcessError(f"no SuperNode connected within {timeout:.0f} s")
            time.sleep(0.1)
        self._nodes = nodes

    @property
    def num_workers(self) -> int:
        return len(self._nodes)

    def exchange(self, orders: Sequence[Order], avoid: int | None = None, timeout: float | None = None) -> list[Answer]:
        workers = [worker for worker in range(len(self._nodes)) if worker != avoid] or [0]
        messages = [Message(to_content(order), self._nodes[workers[i]], "train") for i, order in enumerate(orders)]
        replies = {reply.metadata.src_node_id: reply for reply in self._grid.send_and_receive(messages, timeout=timeout or PATIENCE)}
        return [_answer_of(replies.get(self._nodes[workers[i]]), workers[i]) for i in range(len(messages))]


def to_content(value: Order | Reply) -> RecordDict:
    """An order or a reply as the content of a Flower message."""
    state = pack(value)
    return RecordDict({"tensors": to_record(dict(state.tensors)), "rest": ConfigRecord({"json": json.dumps(state.json)})})


def from_content(content: RecordDict) -> Any:
    """The inverse of `to_content`."""
    rest = cast(str, content.config_records["rest"]["json"])
    return unpack(State(json.loads(rest), from_record(content.array_records["tensors"])))


def claim_identity() -> None:
    """Let this process build Flower messages without a Flower runtime: `Message` requires a task identity. Flower's own stays."""
    try:
        _ = TaskIdentity.run_id
    except RuntimeError:  # there is none
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 0, 0, 0


def call_worker(answer: Worker, order: Order, worker: int) -> Answer:
    """Call a worker in this process; an exception becomes the answer's failure."""
    try:
        return Answer(worker, answer(order))
    except BaseException as error:  # a worker may raise anything: it becomes the reason in the round's record
        if is_interrupt(error):
            raise
        return Answer(worker, None, error_words(error))


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
