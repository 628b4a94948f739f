"""Our own Ray actors on the Ray runtime that Flower's simulation has started or joined, called directly."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import ray
import ray.exceptions
import torch
from flwr.app import Message, RecordDict

from fl_sim.params import array_record
from fl_sim.transports import Answer, Transport, call_app

SMALL = 64 * 1024  # bytes; below, Ray carries an array inside the call, which is faster than its object store


class Server:
    """Runs in an actor: holds the ClientApp and answers orders."""

    def __init__(self, app: str) -> None:
        torch.set_num_threads(1)
        module, _, name = app.partition(":")
        self._app: Any = getattr(importlib.import_module(module), name)

    def call(self, message: Message, worker: int, model: Mapping[str, npt.NDArray[Any]]) -> Answer:
        message.content["model"] = array_record(model)
        return call_app(self._app, message, worker)


def actor_class() -> type:
    """The actor. A local class travels by value, so it can set the import path before anything of ours is imported: Ray puts
    the driver's working directory first, and under plain `flwr run` that is where the SuperLink happened to be started.
    """

    class Worker:
        def __init__(self, app: str, path: list[str]) -> None:
            import importlib
            import sys

            sys.path[:] = [*path, *(folder for folder in sys.path if folder not in path)]
            self._server = importlib.import_module("fl_sim.ray_workers").Server(app)

        def ready(self) -> bool:
            return True

        def call(self, message: Any, worker: int, **model: Any) -> Any:
            return self._server.call(message, worker, model)

    return Worker


class RayTransport(Transport):
    """`num_workers` actors (0: one per CPU of the cluster). The model goes to the object store once a wave."""

    def __init__(self, app: str, num_workers: int, gpus_per_worker: float, timeout: float = 120.0) -> None:
        until = time.monotonic() + timeout
        while not ray.is_initialized():
            if time.monotonic() > until:
                raise TimeoutError(f"Flower's simulation did not start Ray within {timeout:.0f} s")
            time.sleep(0.05)
        count = num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        # num_cpus=0: Flower's own actors reserve the CPUs; max_restarts: a killed worker comes back for later rounds.
        actor: Any = ray.remote(num_cpus=0, num_gpus=gpus_per_worker, max_restarts=3)(actor_class())
        self._actors = [actor.remote(app, sys.path) for _ in range(count)]
        self._busy = [0] * count
        self._lock = threading.Lock()
        ray.get([worker.ready.remote() for worker in self._actors])

    @property
    def num_workers(self) -> int:
        return len(self._actors)

    def exchange(self, contents: Sequence[RecordDict], avoid: int | None = None) -> list[Answer]:
        shared: dict[int, Any] = {}
        calls: list[tuple[int, Any]] = []
        taken = self._take(len(contents), avoid)
        try:
            for content, worker in zip(contents, taken, strict=True):
                model = {name: array.numpy() for name, array in content.array_records["model"].items()}
                for values in model.values():
                    if values.nbytes > SMALL and id(values) not in shared:
                        shared[id(values)] = ray.put(values)
                references = {name: shared.get(id(values), values) for name, values in model.items()}
                rest = RecordDict({name: record for name, record in content.items() if name != "model"})
                message = Message(rest, worker + 1, "train")
                calls.append((worker, self._actors[worker].call.remote(message, worker, **references)))
            return [self._result(worker, call) for worker, call in calls]
        finally:
            with self._lock:
                for worker in taken:
                    self._busy[worker] -= 1

    def _take(self, count: int, avoid: int | None) -> list[int]:
        """The least busy workers, one an order; a failed worker only when there is no other."""
        with self._lock:
            order = sorted(range(len(self._actors)), key=lambda worker: (worker == avoid, self._busy[worker], worker))
            taken = [order[i % len(order)] for i in range(count)]
            for worker in taken:
                self._busy[worker] += 1
            return taken

    @staticmethod
    def _result(worker: int, call: Any) -> Answer:
        try:
            return ray.get(call)
        except ray.exceptions.RayError as error:
            return Answer(worker, None, f"{type(error).__name__}: worker {worker} died")

    def close(self) -> None:
        for worker in self._actors:
            ray.kill(worker)
