"""How a wave of orders reaches workers: in this process, or through Flower's own message engine. (Ray: `fl_sim.grid.ray_workers`.)"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

App = Callable[[Message, Context], Message]


@dataclass(frozen=True)
class Answer:
    """What came back for one order: content, or the reason why there is none; and the worker that was asked (None: it is gone)."""

    worker: int | None
    content: RecordDict | None
    failure: str = ""


class Transport(ABC):
    """Workers that each run the ClientApp, and a way to send each of them at most one order a wave."""

    slow_waves: bool = False  # a wave costs more than computing a round twice: prefer one wave

    @property
    @abstractmethod
    def num_workers(self) -> int:
        """How many workers there are."""

    @abstractmethod
    def exchange(self, contents: Sequence[RecordDict], avoid: int | None = None, timeout: float | None = None) -> list[Answer]:
        """Send at most `num_workers` orders, each to another worker, and wait for all answers, in the order of `contents`.

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
    """No workers: the ClientApp is called in this process."""

    def __init__(self, app: App) -> None:
        self._app = app

    @property
    def num_workers(self) -> int:
        return 1

    def exchange(self, contents: Sequence[RecordDict], avoid: int | None = None, timeout: float | None = None) -> list[Answer]:
        return [call_app(self._app, Message(content, 1, "train"), worker=0) for content in contents]


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

    def exchange(self, contents: Sequence[RecordDict], avoid: int | None = None, timeout: float | None = None) -> list[Answer]:
        workers = [worker for worker in range(len(self._nodes)) if worker != avoid] or [0]
        messages = [Message(content, self._nodes[workers[i]], "train") for i, content in enumerate(contents)]
        replies = {reply.metadata.src_node_id: reply for reply in self._grid.send_and_receive(messages, timeout=timeout)}
        return [answer_of(replies.get(self._nodes[workers[i]]), workers[i]) for i in range(len(messages))]


def claim_identity() -> None:
    """Let this process build Flower messages without a Flower runtime: `Message` asks for the task that it runs in."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 0, 0, 0


def call_app(app: App, message: Message, worker: int) -> Answer:
    """Run the ClientApp on a message; an exception becomes the answer's failure."""
    context = Context(run_id=0, node_id=worker + 1, node_config={}, state=RecordDict(), run_config={})
    try:
        return answer_of(app(message, context), worker)
    except Exception as error:  # a ClientApp may raise anything: it becomes the reason in the round's record
        return Answer(worker, None, f"{type(error).__name__}: {error}")


def answer_of(reply: Message | None, worker: int) -> Answer:
    """A Flower reply as an answer."""
    if reply is None:
        return Answer(worker, None, "no reply")
    if reply.has_error():
        return Answer(worker, None, reply.error.reason or f"error {reply.error.code}")
    return Answer(worker, reply.content)
