"""The interface of a server's strategy, ours or one of Flower, to the grid and to a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from fl_sim.wire.messages import PublicRule
from fl_sim.wire.object_state import State


class Needs(NamedTuple):
    """What a strategy requires: clean examples of the server, the client id of each update, a calibration on clean rounds, the model."""

    server_data: bool = False
    client_ids: bool = False
    calibration: bool = False
    model: bool = False


class ServerStrategy(Protocol):
    """A strategy that describes itself. `step_size`: how far the model moves for a combined update of length 1, without momentum.
    `skipped`: why the last round did not change the model; empty if it did. `left_out`: the clients that the strategy left out of the last
    round, None if it is none that selects."""

    step_size: float
    needs: Needs
    skipped: str
    left_out: tuple[int, ...] | None

    @property
    def theta(self) -> Tensor:
        """The global model (d,)."""
        ...

    def save(self) -> State:
        """Everything that the next round depends on. Raises UnsavableError."""
        ...

    def load(self, state: State) -> None:
        """Restore a saved state, in this or in a new strategy of the same configuration."""
        ...

    def public_rule(self) -> PublicRule:
        """What a coalition that knows the rule may know about it in this round."""
        ...

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """The messages of a round, as Flower's `Strategy` gives them."""
        ...

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model and the round's figures, as Flower's `Strategy` gives them."""
        ...
