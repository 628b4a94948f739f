"""Loss and accuracy of the model on the coalition's own validation set, now and at the start."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clients.knowledge import Knowledge
from fl_sim.wire.messages import AttackState


class Appraisal(NamedTuple):
    """Mean cross-entropy and accuracy (percent) on S_val, of the present model and of the first one that the coalition got."""

    loss: float
    accuracy: float
    start_loss: float
    start_accuracy: float


def appraise(knowledge: Knowledge, start: dict[str, Tensor]) -> Appraisal:
    """Estimate loss and accuracy on S_val from this round's draw, with the first model as a control variate: the difference between the two
    models on the draw, plus the first model's figure on all of S_val. Exact if the draw is the whole set; otherwise much less noisy than
    the draw alone. Ours.

    Args: start, `losses` and `hits` (e,) of the first model, see `first_look`.
    """
    losses, hits = knowledge.model.examples(knowledge.theta, *knowledge.validation_draw)
    rise, gain = losses - start["losses"][knowledge.drawn], hits - start["hits"][knowledge.drawn]
    means: list[float] = torch.stack([values.mean() for values in (start["losses"], start["hits"], rise, gain)]).tolist()
    return Appraisal(means[0] + means[2], 100.0 * means[1] + 100.0 * means[3], means[0], 100.0 * means[1])


def first_look(knowledge: Knowledge, state: AttackState) -> dict[str, Tensor]:
    """Losses and hits (e,) of the first model that the coalition got, per example of S_val; kept in its state."""
    if "losses" in state.arrays:
        return {name: state.arrays[name] for name in ("losses", "hits")}
    losses, hits = knowledge.model.examples(knowledge.theta, *knowledge.validation)
    return {"losses": losses, "hits": hits}
