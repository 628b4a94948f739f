"""The transport `ray`: our own Ray actors, called directly, on the Ray runtime that we or Flower's simulation started or joined."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy.typing as npt
import ray
import ray.exceptions
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fl_sim.config.resolve import ConfigError
from fl_sim.grid.gpu_shares import gpu_problem, workers_and_share
from fl_sim.grid.transports import Answer, CellTransport, InlineTransport, WorkerDiedError, call_worker, claim_identity
from fl_sim.signals import swallowed_signals_raise
from fl_sim.waits import PATIENCE, ProcessError
from fl_sim.wire.arrays import as_tensor
from fl_sim.wire.messages import Order
from fl_sim.wire.object_state import State, pack, unpack

STARTS = 3  # attempts to start a worker; after the last its next order is sent anyway, and fails
NOTICE = 300.0  # seconds from one line about a worker that is late to the next
LATE = "worker %d did not answer in time (client.timeout)"
LOSS = 60.0  # seconds in which a cluster notices that a node is lost, after its workers ended
AHEAD = 4  # values of a remote cell that may wait to be read; then the cell waits
SMALL = 64 * 1024  # bytes; Ray carries a smaller array inside the call, which is faster than its object store


Arrays = Mapping[str, npt.NDArray[Any]]  # Ray carries them without copying


class Server:
    """Runs in an actor: answers orders with the worker's function."""

    def __init__(self, target: str) -> None:
        torch.set_num_threads(1)
        self._answer = _import(target)

    def call(self, order: Any, arrays: Arrays) -> tuple[Any, Arrays, str]:
        """The reply as JSON and arrays, and if there is none the reason."""
        answer = call_worker(self._answer, _unpack(order, arrays), worker=0)
        return (*_pack(answer.reply), answer.failure)

    def run_cell(self, target: str, arguments: Sequence[Any]) -> Generator[Any]:
        claim_identity()
        yield from _import(target)(InlineTransport(self._answer), *arguments)


def _pack(value: Any) -> tuple[Any, dict[str, npt.NDArray[Any]]]:
    state = pack(value)
    return state.json, {name: tensor.detach().cpu().numpy() for name, tensor in state.tensors.items()}


def _unpack(json: Any, arrays: Arrays) -> Any:
    return unpack(State(json, {name: as_tensor(values) for name, values in arrays.items()}))


def _patient_get(worker: int, call: Any, until: float) -> Any:
    """What a worker returns. Prints a line every `NOTICE` seconds of waiting. Raises GetTimeoutError after `until`."""
    start = time.monotonic()
    while (left := until - time.monotonic()) > NOTICE:
        with suppress(ray.exceptions.GetTimeoutError):
            return ray.get(call, timeout=NOTICE)
        waited, limit = time.monotonic() - start, until - start
        print(
            f"fl-sim: waiting for worker {worker}, which has computed for {waited:.0f} s; limit {limit:.0f} s (client.timeout)", flush=True
        )
    return ray.get(call, timeout=max(left, 0.0))


def _free_gpus() -> float:
    return float(ray.available_resources().get("GPU", 0.0))


def _import(target: str) -> Any:
    """The object of "module:name"."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def spread(count: int, cpus: Mapping[str, float]) -> list[str]:
    """The node of each of `count` workers. cpus: the CPUs of each node, at least one node. Each worker goes to the node that then has the
    most CPUs per worker (D'Hondt's method). A node without CPUs gets no worker if another node has CPUs."""
    workers = {node: 0 for node, number in cpus.items() if number > 0} or dict.fromkeys(cpus, 0)
    places: list[str] = []
    for _ in range(count):
        places.append(max(workers, key=lambda node: cpus[node] / (workers[node] + 1)))
        workers[places[-1]] += 1
    return places


def actor_class() -> type:
    """The actor's class. Ray sends a local class by value, so it can set the import path before any module of ours is imported. That is
    needed because Ray puts the driver's working directory first, and under plain `flwr run` that is where the SuperLink was started.
    """

    class Worker:
        def __init__(self, target: str, path: list[str]) -> None:
            import importlib
            import sys

            sys.path[:] = [*path, *(folder for folder in sys.path if folder not in path)]
            self._server = importlib.import_module("fl_sim.grid.ray_workers").Server(target)

        def ready(self) -> str:
            """The id of its node."""
            import ray

            return ray.get_runtime_context().get_node_id()

        def call(self, order: Any, **arrays: Any) -> Any:
            return self._server.call(order, arrays)

        def run_cell(self, target: str, arguments: Any) -> Any:
            yield from self._server.run_cell(target, arguments)

    return Worker


class RayTransport(CellTransport):
    """Actors that answer orders. The model, which all orders share, is put into the object store once per wave. A worker that died is
    replaced at once.

    Args: num_workers, gpus_per_worker, 0 for our choice (`workers_and_share`); start_timeout, seconds in which Ray, and later all workers
    that are needed, must be ready. Raises ConfigError if the cluster has no place for the workers, ProcessError if Ray does not run.
    """

    @swallowed_signals_raise()
    def __init__(
        self, target: str, num_workers: int, gpus_per_worker: float, *, on_gpu: bool = False, start_timeout: float = 120.0
    ) -> None:
        until = time.monotonic() + start_timeout
        while not ray.is_initialized():
            if time.monotonic() > until:
                raise ProcessError(f"Flower's simulation did not start Ray within {start_timeout:g} s (ray.start-timeout)")
            time.sleep(0.05)
        nodes: dict[str, dict[str, float]] = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        cpus, node_gpus = ({node: has.get(name, 0.0) for node, has in nodes.items()} for name in ("CPU", "GPU"))
        total, each = sum(cpus.values()), [*node_gpus.values()]
        if on_gpu and not sum(each):
            raise ConfigError([f"expected device to be 'cpu' (the Ray cluster: {total:g} cores and 0 GPUs), got a GPU for the server"])
        count, gpus = workers_and_share(num_workers, gpus_per_worker, total, each, on_gpu=on_gpu)
        if problem := gpu_problem(count, gpus, total, each, "the Ray cluster"):
            raise ConfigError([problem])
        actor: Any = ray.remote(num_cpus=0, num_gpus=gpus, scheduling_strategy="SPREAD")(actor_class())  # Flower's actors reserve the CPUs
        # Ray puts an actor that reserves nothing on a random node, SPREAD or not, unless it is bound to a node.
        places: list[Any] = ["SPREAD"] * count
        if not gpus:
            places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in spread(count, cpus)]
        self._start_timeout, self._start = start_timeout, lambda: actor.remote(target, sys.path)
        self._resources = f"the Ray cluster has {total:g} cores and {sum(each):g} GPUs; each of {count} workers reserves {gpus:g} of a GPU"
        self._actors = [actor.options(scheduling_strategy=place).remote(target, sys.path) for place in places]
        self._busy, self._nodes = [0] * count, [""] * count  # the id of each worker's node
        self._addresses: dict[str, str] = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        self._lost, self._look_until, self._looked = set[str](), 0.0, 0.0
        self._lock = threading.Lock()
        self._doubtful = False
        self._starting = {i: worker.ready.remote() for i, worker in enumerate(self._actors)}  # they start during the burn-in

    @property
    def num_workers(self) -> int:
        return len(self._actors)

    @swallowed_signals_raise()
    def exchange(self, orders: Sequence[Order], avoid: int | None = None, timeout: float | None = None) -> list[Answer]:
        references_by_address: dict[int, Any] = {}
        calls: list[tuple[int, Any, Any]] = []
        workers = self._reserve(len(orders), avoid)
        self._name_lost_nodes()
        try:
            for order, worker in zip(orders, workers, strict=True):
                json, arrays = _pack(order)
                for values in arrays.values():
                    if values.nbytes > SMALL and values.ctypes.data not in references_by_address:
                        references_by_address[values.ctypes.data] = ray.put(values)
                arguments = {name: references_by_address.get(values.ctypes.data, values) for name, values in arrays.items()}
                actor = self._actors[worker]
                calls.append((worker, actor, actor.call.remote(json, **arguments)))
            limit = timeout or PATIENCE
            reason = f"worker %d did not answer within {limit:g} s (client.timeout)" if timeout is None else LATE
            until = time.monotonic() + limit
            return [self._result(*call, until, reason) for call in calls]
        finally:
            with self._lock:
                for worker in workers:
                    self._busy[worker] -= 1

    def run_cell(self, target: str, *arguments: Any) -> Generator[Any]:
        (worker,) = self._reserve(1, None)
        actor = self._actors[worker]
        try:
            streaming: Any = {"num_returns": "streaming", "_generator_backpressure_num_objects": AHEAD}
            values = actor.run_cell.options(**streaming).remote(target, arguments)
            while True:
                if not ray.wait([values], timeout=PATIENCE)[0]:
                    raise ray.exceptions.GetTimeoutError
                try:
                    value = next(values)
                except StopIteration:
                    return
                yield ray.get(value, timeout=PATIENCE)
                self._name_lost_nodes()
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except GeneratorExit:  # nobody wants the rest
            with self._lock:
                ray.kill(actor)
                self._replace(worker, actor)
            raise
        except ray.exceptions.RayError as error:  # dead, out of memory, silent, or not reachable
            with self._lock:
                place = f" on {self._addresses[self._nodes[worker]]}" if len(self._addresses) > 1 and self._nodes[worker] else ""
                ray.kill(actor)
                self._replace(worker, actor)
            raise WorkerDiedError(f"worker {worker}{place} died ({type(error).__name__})") from None
        finally:
            with self._lock:
                self._busy[worker] -= 1

    def _reserve(self, count: int, avoid: int | None) -> list[int]:
        """The least busy workers, one per order; `avoid` only if there is no other. Each counts as busy from now on."""
        with self._lock:
            if self._doubtful:  # a worker died, perhaps with its node: check that the idle workers still answer
                idle = [worker for worker, busy in enumerate(self._busy) if not busy and worker not in self._starting]
                self._starting |= {worker: self._actors[worker].ready.remote() for worker in idle}
                self._doubtful = False
            until = time.monotonic() + self._start_timeout
            for worker in self._starting:
                self._await(worker, until)
            self._starting = {}
            order = sorted(range(len(self._actors)), key=lambda worker: (worker == avoid, self._busy[worker], worker))
            workers = [order[i % len(order)] for i in range(count)]
            for worker in workers:
                self._busy[worker] += 1
            return workers

    def _replace(self, worker: int, actor: Any) -> None:
        """Start a new actor in place of this one, unless another thread did. The next order waits until it is ready, so that its start does
        not count against a timeout."""
        if self._actors[worker] is actor:
            self._actors[worker] = self._start()
            self._starting[worker] = self._actors[worker].ready.remote()
            self._doubtful = True
            self._look_until = time.monotonic() + LOSS

    def _name_lost_nodes(self) -> None:
        """Print a line for each node that the cluster has lost. It looks once a second for `LOSS` seconds after a worker died."""
        now = time.monotonic()
        with self._lock:
            if len(self._addresses) == 1 or now > self._look_until or now < self._looked + 1.0:
                return
            self._looked = now
            lost = {node["NodeID"] for node in ray.nodes() if not node["Alive"]} & self._addresses.keys() - self._lost
            self._lost |= lost
        for node in sorted(lost):
            print(f"fl-sim: the cluster has lost the node {self._addresses[node]}; its workers are started on others", flush=True)

    def _await(self, worker: int, until: float) -> None:
        """Wait until a worker is ready. It is started again if its node is gone. Raises ProcessError after `until`."""
        for _ in range(STARTS):
            try:
                self._nodes[worker] = ray.get(self._starting[worker], timeout=max(until - time.monotonic(), 0.0))
                return
            except ray.exceptions.GetTimeoutError:
                limit = f"{self._start_timeout:g} s (ray.start-timeout)"
                raise ProcessError(
                    f"worker {worker} did not start within {limit}: {self._resources}, and {_free_gpus():g} GPUs are free"
                ) from None
            except ray.exceptions.RayError:
                pass
            self._actors[worker] = self._start()
            self._starting[worker] = self._actors[worker].ready.remote()

    def _result(self, worker: int, actor: Any, call: Any, until: float, late: str) -> Answer:
        try:
            json, arrays, failure = _patient_get(worker, call, until)
            return Answer(worker, _unpack(json, arrays), failure)
        except ray.exceptions.GetTimeoutError:
            with self._lock:
                ray.kill(actor)  # else its next order would wait for this one
                self._replace(worker, actor)
            return Answer(worker, None, late % worker)
        except ray.exceptions.RayActorError:
            with self._lock:
                self._replace(worker, actor)
            return Answer(None, None, f"worker {worker} died")
        except ray.exceptions.RayError as error:
            return Answer(worker, None, f"worker {worker}: {type(error).__name__}: {str(error).strip().splitlines()[-1]}")
        except Exception as error:  # a reply may hold anything
            return Answer(worker, None, f"the reply cannot be read ({type(error).__name__}: {error})")

    def close(self) -> None:
        for worker in self._actors:
            ray.kill(worker)
