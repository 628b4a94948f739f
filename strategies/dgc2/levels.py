"""What clean rounds say: the bound of a clip, how persistent each honest client is, how much each class fluctuates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fl_sim.config.keys import Strategy
from strategies.dgc2.persistence import largest_persistence

OWN = 1.25  # of its largest clean persistence: what a client may reach
LEAST_CUT = 2.0  # what any client may reach: about the 99 % quantile of the persistence of independent gradients of one image
ALIKE = (
    0.5  # of the largest persistence that there can be: above it a client's clean updates are all alike, and its persistence says nothing
)
RISE = 1.5  # of the largest clean value: by how much the loss of a class may rise, and how much accuracy may be lost
LEAST_RISE = 0.1  # nats, if the loss of the class hardly rose in the clean rounds


class Levels(NamedTuple):
    """bound: of the clip of each update; cuts (N,): the largest persistence of each client; joint: what all clients together may have
    pushed in one direction; rises (c,): by how many nats the loss of a
    class may exceed its reference; lost (c + 1,): how many points of accuracy each class, and all together, may be below their best."""

    bound: float
    cuts: Tensor
    joint: float
    rises: Tensor
    lost: Tensor


def no_limits(num_clients: int, bound: float = float("inf")) -> Levels:
    """Levels that restrict nothing but the length of updates, for the clean rounds."""
    cuts, rises, lost = (torch.full((size,), float("inf")) for size in (num_clients, 1, 1))
    return Levels(bound, cuts, float("inf"), rises, lost)


def bound_of(norms: Sequence[float], quantile: float) -> float:
    """The `quantile` of honest norms, above 0."""
    return max(float(torch.tensor(norms, dtype=torch.float64).quantile(quantile)), torch.finfo(torch.float32).tiny)


def fit_levels(record: Mapping[str, Any], num_clients: int, settings: Strategy) -> Levels:
    """The levels that follow from a record of clean rounds.

    record: its `bound`; `persistence`, by client id the values of R; `joint`, in each round the most that all together had pushed in one
    direction; `rises`, in each round the differences (c,) between the loss of a
    class and its reference; `lost`, in each round how many points each class, and all together (c + 1), were below their best.

    A client is compared with its own clean level, because one whose examples are all alike pushes in one direction without any malice:
    cut = 1.25 times its largest R, at least 2; no cut (infinity) where that is above half of the largest R that there can be. A class may
    rise by 1.5 times its largest clean difference, at least by 0.1 nats. As many points may
    be lost as `strategy.most-lost` and `strategy.most-lost-class` say, or 1.5 times as many as clean rounds lost: in these a hard class can
    lose a third.
    """
    cuts = torch.full((num_clients,), LEAST_CUT)
    for client, values in record["persistence"].items():
        cuts[int(client)] = max(OWN * max(values), LEAST_CUT)
    cuts[cuts > ALIKE * largest_persistence(settings.persistence_memory)] = float("inf")
    rises = (RISE * torch.tensor(record["rises"]).amax(dim=0)).clamp(min=LEAST_RISE)
    lost = RISE * torch.tensor(record["lost"]).amax(dim=0)
    least = torch.tensor([settings.most_lost_class] * (len(lost) - 1) + [settings.most_lost])
    return Levels(record["bound"], cuts, OWN * max(record["joint"]), rises, torch.maximum(lost, least))


def laxness(levels: Levels, settings: Strategy) -> list[str]:
    """A sentence if more may be lost than the keys say, because clean rounds lost nearly as much."""
    *classes, total = levels.lost.tolist()
    sentences: list[str] = []
    if most := {number: points for number, points in enumerate(classes) if points > settings.most_lost_class}:
        shown = ", ".join(f"class {number} {points:.0f}" for number, points in most.items())
        sentences.append(
            f"points that may be lost, above strategy.most-lost-class = {settings.most_lost_class:g}, because clean rounds lost two thirds "
            f"of it: {shown}"
        )
    if total > settings.most_lost:
        sentences.append(
            f"{total:.0f} points of accuracy may be lost, above strategy.most-lost = {settings.most_lost:g}, because clean rounds lost two "
            "thirds of it"
        )
    return sentences
