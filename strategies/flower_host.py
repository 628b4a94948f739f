"""Hosts any Flower strategy except ours: it gets ordinary messages and replies, one per client, with named model weights."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from logging import WARNING
from typing import Any, cast

import flwr.serverapp.strategy as flower
import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_sim.config.keys import Config
from fl_sim.grid.server_strategy import Needs
from fl_sim.outside_code import OutsideCodeError, defined_at, error_report, outside_call, with_place
from fl_sim.rng.streams import seeded_global_generators
from fl_sim.wire.arrays import TensorArray, from_record, to_record
from fl_sim.wire.messages import PublicRule
from fl_sim.wire.object_state import State, restore_state, save_state
from strategies.selection.left_out import left_out_by
from strategies.server_sgd import ServerState, server_step

PATIENCE = 5  # how often a strategy may ask for the node ids in a round
LEAST_MOVE = 1e-12  # added to one weight of a model that has not moved: its square is not 0, and float32 weights absorb it
OPTIMISERS = (flower.FedAvgM, flower.FedAdam, flower.FedAdagrad, flower.FedYogi)  # their published step is a server optimiser's
UNWEIGHTED = frozenset({flower.FedMedian, flower.FedTrimmedAvg, flower.Krum, flower.Bulyan})  # they do not read num-examples
WIDE = (flower.MultiKrum, flower.Bulyan)  # Krum's distances need float64
DROPPING = (
    flower.Krum,
    flower.MultiKrum,
)  # replies that they would drop are dropped before, by the same scores: theirs take seconds a round

Layout = Mapping[str, torch.Size]  # a model's parameters by name, in the order of theta


class FlowerHost(Strategy):
    """Runs a Flower strategy unchanged over the grid of virtual clients.

    In each round the strategy can only sample the clients of `sample(round)`, so that the sample depends on our seed. It gets an ordinary
    reply per client: weights `theta_t - client_lr * g_i` and `num-examples`.
    With `strategy.optimiser = "server"` its aggregate is the combined update `(theta_t - aggregate) / client_lr` of server SGD, as that of
    a rule of ours; all weights are then float64, because float32 would lose the digits of small updates. With "own", and always if it is an
    optimiser itself (`makes_own_step`), its aggregate is the next model.
    Five defects of Flower 1.41 are worked around. Strategies draw from global generators: these are seeded from the run's seed. Krum's and
    Bulyan's distances lose small updates in float32: their weights are float64. FedMedian and others empty the replies that they get: each
    reply is a copy. The DP wrappers divide by the norm of an update: a zero update is moved by 1e-12. Bulyan
    searches for garbage after every reply: not with our records.

    `skipped`: why the last round did not change the model; empty if it did. `left_out`: the clients that the strategy left out of it, if it
    is one that selects.

    Args: inner, the strategy; theta (d,); layout, the shapes of the named parameters in theta.
    """

    needs = Needs(client_ids=True)

    def __init__(self, inner: Strategy, theta: Tensor, config: Config, layout: Layout, sample: Callable[[int], Sequence[int]]) -> None:
        self.inner, self._layout, self._client_lr, self._server = inner, layout, config.client.learning_rate, config.server
        self._name, self._sample, self._seed = config.strategy.name, sample, config.seed
        self._own_step = config.strategy.optimiser == "own" or makes_own_step(inner)
        self._wide = not self._own_step or isinstance(core_of(inner), WIDE)
        self.step_size = self._client_lr if self._own_step else config.server.learning_rate
        self.state = ServerState(theta, torch.zeros_like(theta))
        self.skipped = ""
        self.left_out: tuple[int, ...] | None = None
        self._messages: dict[int, Message] = {}
        self._sent_theta = theta
        self._unread: frozenset[str] = frozenset()

    @property
    def theta(self) -> Tensor:
        """The global model (d,)."""
        return self.state.theta

    def public_rule(self) -> PublicRule:
        """The name, the size of a step, and whether weights count: how a Flower strategy combines models is unknown."""
        return PublicRule(self._name, combine=None, step_size=self.step_size, weighted=reads_weights(self.inner))

    def save(self) -> State:
        """Everything that the next round depends on: model, velocity, and the strategy's attributes. Raises UnsavableError."""
        return save_state({**self.state._asdict(), "inner": self.inner})

    def load(self, state: State) -> None:
        """Restore a saved state, in this or in a new strategy of the same configuration."""
        values = restore_state(state, {"inner": self.inner})
        self.state = ServerState(values["theta"], values["velocity"])

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """The strategy's messages, as one packed message for the `ClientGrid` with the flat model; the updates must be `stacked`."""
        offer = _Offer(grid, [client + 1 for client in self._sample(server_round)])
        with self._flower_context("configure", server_round):
            made = self.inner.configure_train(server_round, self._layers(self.theta), ConfigRecord(dict(config)), offer)
            messages = _checked_messages(self.inner, made, offer)
        self._messages = {message.metadata.dst_node_id: message for message in messages}
        if not messages:
            self.skipped, self.left_out = f"{type(self.inner).__name__} asked no client", None
            return []
        self._sent_theta = self._flat(_only_arrays(messages[0].content)).float()
        self._check(messages)
        settings = ConfigRecord(
            {
                "phase": "",
                **config,
                "clients": [node - 1 for node in sorted(self._messages)],
                "round": server_round,
                "stacked": True,
                "clip-norm": "",
                "clip-bound": 0.0,
            }
        )
        return [Message(RecordDict({"arrays": to_record({"theta": self._sent_theta}), "config": settings}), 1, "train")]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model, from what the strategy makes of one reply per client. If it makes nothing, the round is `skipped`.

        Raises RuntimeError if the result is not finite, because every update is.
        """
        content = next(iter(replies)).content
        clients, rows = content.config_records["clients"], from_record(content.array_records["rows"])["rows"]
        ids, weights = cast(list[int], clients["ids"]), cast(list[float], clients["weights"])
        left = left_out_by(core_of(self.inner), rows)
        dropped = left.tolist() if left is not None and type(self.inner) in DROPPING else [False] * len(rows)
        ordinary = [
            self._reply(self._messages[client + 1], row, weight)
            for client, row, weight, drop in zip(ids, rows, weights, dropped, strict=True)
            if not drop
        ]
        clipped = self._clipped(rows)  # now, because an adaptive wrapper changes its bound
        with self._flower_context("aggregate", server_round):
            arrays, metrics = _checked_aggregate(self.inner, self.inner.aggregate_train(server_round, ordinary))
        self.skipped, length = "", 0.0
        self.left_out = None if left is None else tuple(torch.tensor(ids)[left.cpu()].tolist())
        if arrays is None:
            self.skipped = f"{type(self.inner).__name__} returned no model from {len(ordinary)} replies"
        else:
            length = self._step(self._flat(arrays))
        if not bool(torch.isfinite(self.theta).all()):
            raise RuntimeError(f"round {server_round}: {_whose(self.inner)} made a model that is not finite from finite updates")
        figures: dict[str, Any] = {name: value for name, value in (metrics or {}).items() if isinstance(value, (int, float))}
        figures |= {**clipped, "combined_norm": length, "applied_norm": length}
        return to_record({"theta": self.theta}), MetricRecord(figures)

    def _step(self, aggregate: Tensor) -> float:
        """The server's step from a strategy's model (d,) in float64. Returns the norm of the combined update; of a strategy that makes its
        own step, how far it moved the model, divided by `client.learning-rate`."""
        before = self._sent_theta if not self._own_step else self.theta
        combined = ((before.double() - aggregate) / self._client_lr).float()
        if self._own_step:
            self.state = ServerState(aggregate.float(), self.state.velocity)
        else:
            self.state = server_step(self.state, combined, self._server.learning_rate, self._server.momentum)
        return float(torch.linalg.vector_norm(combined))

    def _clipped(self, rows: Tensor) -> dict[str, float]:
        """How many of the updates (n, d) a DP wrapper is about to clip, and their median norm; nothing of other strategies."""
        if core_of(self.inner) is self.inner or not (bound := getattr(self.inner, "clipping_norm", 0.0)):
            return {}
        lengths = torch.linalg.vector_norm(rows, dim=1)
        return {"clipped": float((self._client_lr * lengths > bound).sum()), "median_norm": float(lengths.median())}

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Nothing: the ServerApp evaluates centrally."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        self.inner.summary()

    def _check(self, messages: list[Message]) -> None:
        """Raise RuntimeError if clients would get different models. Warn once about settings that our clients ignore."""
        models = {id(_only_arrays(message.content)): _only_arrays(message.content) for message in messages}
        if any(not torch.equal(self._flat(arrays).float(), self._sent_theta) for arrays in models.values()):
            raise RuntimeError(f"{type(self.inner).__name__} sends different models to different clients, which is not supported")
        settings = {key for record in messages[0].content.config_records.values() for key in record} - {"phase", "server-round"}
        if settings - self._unread:
            self._unread |= settings
            log(
                WARNING,
                "%s sends its clients the settings %s: our clients ignore them",
                type(self.inner).__name__,
                ", ".join(sorted(settings)),
            )

    def _reply(self, message: Message, update: Tensor, weight: float) -> Message:
        """An ordinary reply to a message: the client's model and its weight as `num-examples`."""
        dtype = torch.float64 if self._wide else self._sent_theta.dtype
        weights = self._sent_theta.to(dtype) - self._client_lr * update.to(dtype)
        if torch.equal(weights, self._sent_theta.to(dtype)):
            weights = weights.clone()
            weights[0] = torch.maximum(torch.nextafter(weights[0], weights.new_tensor(float("inf"))), weights[0] + LEAST_MOVE)
        content = RecordDict({"arrays": self._layers(weights), "metrics": MetricRecord({"num-examples": int(weight)})})
        return Message(content, reply_to=message)

    def _layers(self, theta: Tensor) -> ArrayRecord:
        """theta (d,) as named parameters; copies, because a strategy may write into them."""
        parts = theta.cpu().split([shape.numel() for shape in self._layout.values()])
        layers = _Layers() if core_of(self.inner) is self.inner else ArrayRecord()  # a DP wrapper puts one in its place
        for (name, shape), part in zip(self._layout.items(), parts, strict=True):
            layers[name] = TensorArray(part.view(shape).numpy().copy())
        return layers

    def _flat(self, arrays: ArrayRecord) -> Tensor:
        """Named parameters as one vector (d,) in float64. Raises RuntimeError if one is missing."""
        missing = [name for name in self._layout if name not in arrays]
        if missing:
            raise RuntimeError(f"{_whose(self.inner)} returned a model without {', '.join(missing)}")
        for name, shape in self._layout.items():
            if tuple(arrays[name].numpy().shape) != tuple(shape):
                got = tuple(arrays[name].numpy().shape)
                raise RuntimeError(f"expected {_whose(self.inner)} to return {name} with shape {tuple(shape)}, got {got}")
        return torch.cat([torch.from_numpy(np.array(arrays[name].numpy(), dtype=np.float64)).flatten() for name in self._layout])

    @contextlib.contextmanager
    def _flower_context(self, what: str, round_: int) -> Generator[None]:
        """Inside the block global generators are seeded from the run's seed, and Flower logs warnings only. What a strategy of the user
        raises becomes OutsideCodeError."""
        logger, is_own = logging.getLogger("flwr"), bool(defined_at(type(self.inner)))
        guard = outside_call(self._failure) if is_own else contextlib.nullcontext()
        with seeded_global_generators(self._seed, "strategy", what, round_), guard:
            level = logger.level
            logger.setLevel(logging.WARNING)
            try:
                yield
            finally:
                logger.setLevel(level)

    def _failure(self, error: BaseException) -> Exception:
        return OutsideCodeError(f"strategy.name = {self._name!r}: {error_report(error, type(self.inner))}")


def _whose(strategy: Strategy) -> str:
    return with_place(type(strategy).__name__, type(strategy))


def _checked_messages(strategy: Strategy, messages: Any, offer: _Offer) -> list[Message]:
    """What `configure_train` returned. Raises RuntimeError unless it is messages, at most one for each client of the round."""
    expected = f"expected configure_train of {_whose(strategy)} to return"
    if not isinstance(messages, Iterable):
        raise RuntimeError(f"{expected} messages, got {type(messages).__name__}")
    made: list[Any] = list(messages)
    if strange := [type(message).__name__ for message in made if not isinstance(message, Message)]:
        raise RuntimeError(f"{expected} messages, got {strange[0]}")
    nodes = [message.metadata.dst_node_id for message in made]
    if beyond := set(nodes) - set(offer.nodes):
        raise RuntimeError(f"{expected} messages to nodes of the grid, got one to node {min(beyond)}")
    if len(set(nodes)) < len(nodes):
        raise RuntimeError(f"{expected} one message to a client, got {len(nodes)} to {len(set(nodes))} clients")
    return made


def _checked_aggregate(strategy: Strategy, result: Any) -> tuple[ArrayRecord | None, MetricRecord | None]:
    """What `aggregate_train` returned. Raises RuntimeError unless it is a pair of records or None."""
    pair = result if isinstance(result, tuple) and len(result) == 2 else (result, "")
    if not isinstance(pair[0], ArrayRecord | None) or not isinstance(pair[1], MetricRecord | None):
        got = ", ".join(type(part).__name__ for part in result) if isinstance(result, tuple) else type(result).__name__
        raise RuntimeError(f"expected aggregate_train of {_whose(strategy)} to return an ArrayRecord or None and a MetricRecord, got {got}")
    return pair[0], pair[1]


def core_of(strategy: Strategy) -> Strategy:
    """The strategy inside a DP wrapper, or the strategy itself."""
    inner = getattr(strategy, "strategy", None)
    return core_of(inner) if isinstance(inner, Strategy) else strategy


def makes_own_step(strategy: Strategy) -> bool:
    """Whether a strategy is a server optimiser itself (FedAvgM, FedAdam, FedAdagrad, FedYogi, their subclasses and wrappers): a second
    optimiser after its own would be another method than the published one."""
    return isinstance(core_of(strategy), OPTIMISERS)


def reads_weights(strategy: Strategy) -> bool:
    """Whether `num-examples` can change what a strategy aggregates. A strategy of a user may read them."""
    return type(core_of(strategy)) not in UNWEIGHTED


class _Layers(ArrayRecord):
    """Named parameters that may be emptied without a search for garbage, which Flower's Bulyan starts for every reply: 0.3 s each."""

    def to_numpy_ndarrays(self, *, keep_input: bool = True) -> list[Any]:
        return [array.numpy() for array in self.values()]


class _Offer(Grid):
    """The grid that a Flower strategy gets in a round: it has the sampled nodes only."""

    def __init__(self, grid: Grid, nodes: list[int]) -> None:
        self._grid, self.nodes, self._looks = grid, nodes, 0

    def get_node_ids(self) -> list[int]:
        self._looks += 1
        if self._looks > PATIENCE:  # Flower's sample_nodes would ask once per second for ever
            raise RuntimeError(f"the strategy waits for more nodes than the {len(self.nodes)} clients of a round")
        return list(self.nodes)

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)


def _only_arrays(content: RecordDict) -> ArrayRecord:
    """The model in a strategy's message. Raises RuntimeError unless there is exactly one."""
    records = list(content.array_records.values())
    if len(records) != 1:
        raise RuntimeError(f"expected one ArrayRecord in a strategy's message, got {len(records)}")
    return records[0]
