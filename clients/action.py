"""What an attack returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from fl_sim.wire.messages import AttackState


class Action(NamedTuple):
    """What an attack does in a round: updates (m, d) in gradient units, one a sampled member in the order of
    `Knowledge.members`; its state for the next round; figures for the round's record.

    `metrics["fired"]` says whether this was the trigger; without it, it was if the schedule says so.
    """

    updates: Tensor
    state: AttackState = AttackState()
    metrics: Mapping[str, float] = {}
