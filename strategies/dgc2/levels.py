"""What clean rounds say: the bound of a clip, how persistent each honest client is, how much each class fluctuates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fl_sim.config.keys import Strategy
from strategies.dgc2.classes import follow
from strategies.dgc2.persistence import largest_persistence

FORGET = 100.0  # rounds over which the references of losses and accuracies follow
OWN = 1.25  # of its largest clean persistence: what a client may reach
LEAST_CUT = 2.0  # what any client may reach: about the 99 % quantile of the persistence of independent gradients of one image
ALIKE = (
    0.5  # of the largest persistence that there can be: above it a client's clean updates are all alike, and its persistence says nothing
)
RISE = 1.5  # of the largest clean value: by how much the loss of a class may rise, and how much accuracy may be lost
LEAST_RISE = 0.1  # nats
LEAST_FALL = 1.0  # points of confidence
LEAST_SHARE = 0.75  # of the usual loss, besides: hard classes fluctuate more, and the clean rounds of a calibration are few


class Levels(NamedTuple):
    """bound: of the clip of each update; cuts (N,): the largest persistence of each client; joint: what all clients together may have
    pushed in one direction in the long run; joint_early (r,): at least in the first r rounds; turnout: the share of its clients that a
    round has; usual_losses (c,) of each class, usual_accuracies (c + 1,) of each class and of all together; rises (c,): by how many nats
    the loss of a class may exceed its reference; lost (c + 1,): how many points of accuracy may be below their reference."""

    bound: float
    cuts: Tensor
    joint: float
    joint_early: Tensor
    turnout: float
    usual_losses: Tensor
    usual_accuracies: Tensor
    rises: Tensor
    lost: Tensor
    usual_confidences: Tensor
    falls: Tensor

    def joint_in(self, round_: int, beta: float) -> float:
        """What all clients together may have pushed in one direction by the end of a round, from 1: it grows as the squares of sums of
        independent updates do, and in the first rounds is not less than what clean rounds pushed by then. Where clients come rarely, a
        thousand rounds are few."""
        early = float(self.joint_early[min(round_, len(self.joint_early)) - 1])
        return max(early, self.joint * (1.0 - beta ** (2.0 * self.turnout * round_)))


def no_limits(num_clients: int, bound: float = float("inf")) -> Levels:
    """Levels that restrict nothing but the length of updates, for the clean rounds."""
    cuts, one = torch.full((num_clients,), float("inf")), torch.full((1,), float("inf"))
    return Levels(bound, cuts, float("inf"), torch.zeros(1), float("inf"), -one, one, one, one, one, one)


def bound_of(norms: Sequence[float], quantile: float) -> float:
    """The `quantile` of honest norms, above 0."""
    return max(float(torch.tensor(norms, dtype=torch.float64).quantile(quantile)), torch.finfo(torch.float32).tiny)


def fit_levels(record: Mapping[str, Any], num_clients: int, settings: Strategy) -> Levels:
    """The levels that follow from a record of clean rounds.

    record: its `bound`; `persistence`, by client id the values of R; `joint`, in each round the most that all together had pushed in one
    direction; `losses`, `confidences` and `means`, in each round the loss and the confidence of each class (c,), and the running means of
    the accuracies of each class and of all together (c + 1,).

    A client is compared with its own clean level, because one whose examples are all alike pushes in one direction without any malice:
    cut = 1.25 times its largest R, at least 2; no cut (infinity) where that is above half of the largest R that there can be. Usual are
    the means over the second half of the rounds. The loss of a class may exceed its reference by 1.5 times what it did in clean rounds, at
    least by 0.1 nats and three quarters of the usual loss. As many points may be lost as `strategy.most-lost` and
    `strategy.most-lost-class` say, or 1.5 times as many as clean rounds lost.
    """
    cuts = torch.full((num_clients,), LEAST_CUT)
    for client, values in record["persistence"].items():
        cuts[int(client)] = max(OWN * max(values), LEAST_CUT)
    cuts[cuts > ALIKE * largest_persistence(settings.persistence_memory)] = float("inf")
    losses, means, confidences = (torch.tensor(record[name]) for name in ("losses", "means", "confidences"))
    usual_losses, usual_accuracies, usual_confidences = (values[len(values) // 2 :].mean(dim=0) for values in (losses, means, confidences))
    rises = RISE * _largest_excess(losses, usual_losses)
    rises = torch.maximum(rises, LEAST_RISE + LEAST_SHARE * usual_losses)
    lost = RISE * _largest_excess(-means, -usual_accuracies)
    least = torch.tensor([settings.most_lost_class] * (len(lost) - 1) + [settings.most_lost])
    return Levels(
        record["bound"],
        cuts,
        *_joint(record, num_clients, settings.persistence_memory),
        usual_losses,
        usual_accuracies,
        rises,
        torch.maximum(lost, least),
        usual_confidences,
        _largest_excess(-confidences, -usual_confidences).clamp(min=LEAST_FALL),
    )


def _joint(record: Mapping[str, Any], num_clients: int, beta: float) -> tuple[float, Tensor, float]:
    """1.25 times the most that all together had pushed in one direction: in the end, had the clean rounds gone on, and by each of them.

    Squares of sums of k independent updates grow with `1 - beta^(2 k)`, and if few clients are sampled, a client was in k rounds only.
    The share of its clients that a round had comes with it.
    """
    early = OWN * torch.tensor(record["joint"]).cummax(dim=0).values
    rounds = sum(len(values) for values in record["persistence"].values()) / num_clients
    return float(early[-1]) / (1.0 - beta ** (2.0 * rounds)), early, rounds / len(early)


def _largest_excess(values: Tensor, usual: Tensor) -> Tensor:
    """By how much values (rounds, c) exceeded their reference at most (c,)."""
    reference, largest = torch.maximum(values[0], usual), torch.zeros_like(usual)
    for now in values:
        reference = follow(reference, now, usual, FORGET)
        largest = torch.maximum(largest, now - reference)
    return largest


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
