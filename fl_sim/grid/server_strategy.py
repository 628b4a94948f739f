"""What the grid and a run ask of a server's strategy, ours or a hosted one of Flower's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from fl_sim.wire.messages import PublicRule
from fl_sim.wire.object_state import State


class Needs(NamedTuple):
    """What a strategy cannot work without: clean examples of the server's own, who sent which update, a calibration on clean rounds."""

    server_data: bool = False
    client_ids: bool = False
    calibration: bool = False


class ServerStrategy(Protocol):
    """A strategy that says what it is. `step_size`: how far the model moves for a combined update of length 1, without momentum."""

    step_size: float
    needs: Needs

    @property
    def theta(self) -> Tensor:
        """The global model (d,)."""
        ...

    def save(self) -> State:
        """All that the next round depends on. Raises UnsavableError."""
        ...

    def load(self, state: State) -> None:
        """Bring a saved state back, also into a strategy that was made anew."""
        ...

    def public_rule(self) -> PublicRule:
        """What a coalition that knows the rule may know of it in the round that is configured."""
        ...

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """The messages of a round, as Flower's `Strategy` gives them."""
        ...

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model and the round's figures, as Flower's `Strategy` gives them."""
        ...
