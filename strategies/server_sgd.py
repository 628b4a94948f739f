"""The server's optimiser: SGD with momentum on combined updates."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ServerState(NamedTuple):
    """The global model theta (d,) and the velocity (d,), 0 at the start."""

    theta: Tensor
    velocity: Tensor


def server_step(state: ServerState, combined: Tensor, learning_rate: float, momentum: float) -> ServerState:
    """`velocity = momentum * velocity + combined`, `theta = theta - server_lr * velocity`.

    Source: Pang et al. 2021, Eq. 4, with momentum.
    """
    velocity = momentum * state.velocity + combined
    return ServerState(state.theta - learning_rate * velocity, velocity)
