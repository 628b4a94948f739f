"""How the model does on the coalition's own validation set, now and when the coalition first saw it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from clients.knowledge import Knowledge
from fl_sim.wire.messages import AttackState


class Appraisal(NamedTuple):
    """Mean cross-entropy and accuracy (percent) on S_val, now and at the start."""

    loss: float
    accuracy: float
    start_loss: float
    start_accuracy: float


def appraise(knowledge: Knowledge, start: dict[str, Tensor]) -> Appraisal:
    """Appraise the model on this round's draw of S_val, as a control variate: the difference from the first model on the same
    examples, added to the first model's figure on all of S_val. Exact where the draw is the whole set, and far less noisy than
    the bare draw where it is not. Ours.

    Args: start, `losses` and `hits` (e,) of the first model, see `first_look`.
    """
    losses, hits = knowledge.model.examples(knowledge.theta, *knowledge.validation_draw)
    start_loss, start_accuracy = float(start["losses"].mean()), 100.0 * float(start["hits"].mean())
    rise = float((losses - start["losses"][knowledge.drawn]).mean())
    gain = 100.0 * float((hits - start["hits"][knowledge.drawn]).mean())
    return Appraisal(start_loss + rise, start_accuracy + gain, start_loss, start_accuracy)


def first_look(knowledge: Knowledge, state: AttackState) -> dict[str, Tensor]:
    """Per-example losses and hits (e,) on S_val of the first model that the coalition saw; remembered in its state."""
    if "losses" in state.arrays:
        return {name: state.arrays[name] for name in ("losses", "hits")}
    losses, hits = knowledge.model.examples(knowledge.theta, *knowledge.validation)
    return {"losses": losses, "hits": hits}
