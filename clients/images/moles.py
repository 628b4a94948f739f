"""Mole recruitment: the members send true gradients of unaltered images of one class that look like another class.

Source: Wisdom et al. 2023, "Mole Recruitment: Poisoning of Image Classifiers via Selective Batch Sampling", section 3. Where we differ:
there one model is trained on moles alone; here each member exchanges the images of the confounding class in its batch for moles, in every
round, beside honest clients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.action import Action
from clients.knowledge import Knowledge
from fl_sim.data.batches import Batch, CohortBatches
from fl_sim.rng.streams import stream
from fl_sim.training.local import block_updates
from fl_sim.wire.messages import AttackState

SLOPE, INTERCEPT = 0.765, 0.101  # Wisdom et al. 2023, section 3: the wanted mean of p(a | x) is 0.765 rho + 0.101
NO_IMAGE = "the coalition has no image of the confounding class"


class Pair(NamedTuple):
    """An attacked and a confounding class."""

    attacked: int
    confounding: int


def moles(knowledge: Knowledge, state: AttackState) -> Action:
    """`grad L` of the members' batches, in which moles replace the images of the confounding class.

    The classes are those of the settings, or of the first round (`choose_pair`): the state keeps them. The images come from the coalition's
    own set, or with `attack.data = "members"` from each member's own share. A member without an image of the confounding class is honest.
    Raises ValueError for a class that the data set does not have.
    """
    pools = _pools(knowledge)
    pair = _remembered(state) or _first_pair(knowledge, [pool for _, pool in pools])
    if pair is None:
        return Action(knowledge.updates, state, {"moles": 0.0}, NO_IMAGE)
    places = mole_places(knowledge.batches, pair.confounding)
    inputs, labels = knowledge.batches.inputs.clone(), knowledge.batches.labels.clone()
    scores: list[Tensor] = []
    for rows, pool in pools:
        images = Batch(*(values[pool.labels == pair.confounding] for values in pool))
        if not len(images.labels):
            continue
        p = probabilities(knowledge, images)
        chosen = choose(p, pair, knowledge.settings.choice, knowledge.settings.moles)
        where = torch.zeros_like(places)
        where[rows] = places[rows]
        turn = chosen[_turns(knowledge, rows[0], len(chosen), int(where.sum())).to(chosen.device)]
        inputs[where], labels[where] = images.inputs[turn], pair.confounding
        scores.append(p[turn, pair.attacked])
    sent = torch.cat(scores) if scores else knowledge.theta.new_zeros(0)
    figures = {"attacked": float(pair.attacked), "confounding": float(pair.confounding), "moles": float(len(sent))}
    figures |= {"mole_score": float(sent.mean())} if len(sent) else {}
    remembered = AttackState(scalars=dict(pair._asdict()))
    if not len(sent):
        return Action(knowledge.updates, remembered, figures, NO_IMAGE)
    batches = knowledge.batches._replace(inputs=inputs, labels=labels)
    return Action(block_updates(knowledge.model, knowledge.theta, batches, knowledge.client), remembered, figures, batches=batches)


def choose_pair(p: Tensor, labels: Tensor, attacked: int = -1, confounding: int = -1) -> Pair | None:
    """The pair (a, c) of different classes with the highest 99th percentile of p(a | x) over the images of class c; of equal ones the
    first. None if no image is of a class that fits.

    Args: p (e, classes), the probabilities of each image; labels (e,); attacked, confounding: a class that is given, or -1.
    Raises ValueError for a class that there is not.
    """
    classes = p.shape[1]
    for key, value in (("attack.attacked", attacked), ("attack.confounding", confounding)):
        if value >= classes:
            raise ValueError(f"expected {key} to be a class from 0 to {classes - 1}, or -1, got {value}")
    pairs = [
        Pair(a, c)
        for c in ([confounding] if confounding >= 0 else range(classes))
        for a in ([attacked] if attacked >= 0 else range(classes))
        if a != c and bool((labels == c).any())
    ]
    return max(pairs, key=lambda pair: percentile(p[labels == pair.confounding, pair.attacked]), default=None)


def percentile(likeness: Tensor) -> float:
    """rho: the 99th percentile of p(a | x) (e,), interpolated linearly."""
    return float(torch.quantile(likeness.double(), 0.99))


def choose(p: Tensor, pair: Pair, choice: str, count: int) -> Tensor:
    """Positions (k,) of the chosen ones among images (e,) of the confounding class.

    moles: the highest p(a | x); highest-loss: the lowest p(c | x), as many as there are moles; random: all of them. Args: p (e, classes);
    count, `attack.moles`.
    """
    if choice == "random":
        return torch.arange(len(p), device=p.device)
    likeness = p[:, pair.attacked]
    order = (likeness if choice == "moles" else -p[:, pair.confounding]).argsort(descending=True, stable=True)
    return order[: count or mole_count(likeness)]


def mole_count(likeness: Tensor) -> int:
    """The smallest k for which the mean of the k highest of p(a | x) (e,) is at most `0.765 rho + 0.101`; all of them if it never is."""
    highest = likeness.double().sort(descending=True).values
    means = highest.cumsum(0) / torch.arange(1, len(highest) + 1, device=highest.device)
    return min(int((means > SLOPE * percentile(likeness) + INTERCEPT).sum()) + 1, len(highest))


def mole_places(batches: CohortBatches, confounding: int) -> Tensor:
    """Which examples (k, steps, b) become moles: those of the confounding class, and in a batch without any the first one."""
    places = (batches.labels == confounding) & (batches.weights > 0)
    places[..., 0] |= ~places.any(dim=-1)
    return places


@torch.no_grad()
def probabilities(knowledge: Knowledge, images: Batch, batch: int = 200) -> Tensor:
    """p(. | x) (e, c) of images under the global model, in batches."""
    logits = [knowledge.model.logits(knowledge.theta, part) for part in images.inputs.split(batch)]
    return F.softmax(torch.cat(logits), dim=1)


def _pools(knowledge: Knowledge) -> list[tuple[list[int], Batch]]:
    """The images that members may send: rows of members in `knowledge.batches`, and their pool."""
    if knowledge.settings.data == "members":
        return [([row], knowledge.share(member)) for row, member in enumerate(knowledge.members)]
    own = Batch(*(torch.cat(parts) for parts in zip(knowledge.trigger_batch, knowledge.validation, strict=True)))
    return [(list(range(len(knowledge.members))), own)]


def _first_pair(knowledge: Knowledge, pools: list[Batch]) -> Pair | None:
    images = Batch(*(torch.cat(parts) for parts in zip(*pools, strict=True)))
    return choose_pair(probabilities(knowledge, images), images.labels, knowledge.settings.attacked, knowledge.settings.confounding)


def _remembered(state: AttackState) -> Pair | None:
    scalars = state.scalars
    return Pair(int(scalars["attacked"]), int(scalars["confounding"])) if "attacked" in scalars else None


def _turns(knowledge: Knowledge, row: int, images: int, places: int) -> Tensor:
    """Which of the images goes to each place (places,): a random order, again and again if there are more places than images."""
    order = torch.from_numpy(stream(knowledge.own_seed, "moles", row).permutation(images))
    return order[torch.arange(places) % images]
