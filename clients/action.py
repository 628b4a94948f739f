"""The result of an attack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from fl_sim.data.batches import CohortBatches
from fl_sim.wire.messages import AttackState


class Action(NamedTuple):
    """The result of an attack in a round: updates (m, d) in gradient units, one per sampled member in the order of `Knowledge.members`;
    its state for the next round; figures for the round's record; and if the attack could not act in this round, why (for the record).

    images: in place of the updates, images for the members' batches, of the shape and in the units of `Knowledge.batches.inputs`. The
    caller keeps them within `attack.epsilon` and `attack.image-fraction` (`clients.images.enforcement`), and computes the updates itself.
    batches: the batches that the updates are honest gradients of, if the attack only chooses images: with a cleaning the caller computes
    the updates from them, as the members' honest software does.
    `metrics["fired"]`: 1 if this was the trigger, else 0. Without it the schedule decides; with a `reason` it is 0.
    """

    updates: Tensor
    state: AttackState = AttackState()
    metrics: Mapping[str, float] = {}
    reason: str = ""
    images: Tensor | None = None
    batches: CohortBatches | None = None
