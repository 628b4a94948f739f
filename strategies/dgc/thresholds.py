"""DGC's thresholds: what clean rounds tell about the scores that a guard judges by.

Source: Zhu et al. 2023, section 4.1, for a threshold that grows with the rounds; the fit and the running means are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fl_sim.config.keys import Strategy

MEMORY = 20  # rounds that a running mean looks back on: two memories of a server momentum of 0.9
DISCREPANCIES = ("history", "fixed")
GROWING = ("fixed",)  # with the rounds, as a clean model learns: only the distance from the burnt-in model
LEAST_LEVEL = {"kl": 0.003, "js": 0.0004}  # nats, about the same change: a well-trained model goes on becoming surer of what it says


class Line(NamedTuple):
    """A threshold that grows with the rounds: `P0 + growth * t` (Zhu et al. 2023, section 4.1)."""

    start: float
    growth: float

    def at(self, round_: int) -> float:
        return self.start + self.growth * round_


class Level(NamedTuple):
    """A running mean of a score: where it begins, and the most that is no drift."""

    usual: float
    most: float


class Calibration(NamedTuple):
    """What clean rounds told: by score a threshold, one during a probation, and what is typical; by discrepancy the level of its running
    mean; the upper quartile of the norms of clients' updates."""

    thresholds: Mapping[str, Line]
    during_probation: Mapping[str, Line]
    typical: Mapping[str, Line]
    levels: Mapping[str, Level]
    upper_norm: float

    def usual(self) -> dict[str, float]:
        """Where the running means begin."""
        return {name: level.usual for name, level in self.levels.items()}


def fitted(
    settings: Strategy, scores: Mapping[str, Sequence[float]], rehearsed: Sequence[int], *, least_rise: float, upper_norm: float
) -> Calibration:
    """What the scores of clean rounds 1..R tell.

    A threshold lies `strategy.margin` times above what they reached, outside a probation in the rounds outside the rehearsed one, during
    one in all of them. A drift begins at `strategy.drift` times the highest running mean outside it.

    Args: scores, of R rounds each; rehearsed, the rounds of the rehearsed probation; least_rise, what counts as the least clean rise.
    """
    thresholds, during_probation, typical, levels = dict[str, Line](), dict[str, Line](), dict[str, Line](), dict[str, Level]()
    for name, values in scores.items():
        by_round = dict(enumerate(values, start=1))
        outside = {round_: score for round_, score in by_round.items() if round_ not in rehearsed}
        growth, least = growth_of(outside) if name in GROWING else 0.0, least_rise if name == "rise" else 0.0
        thresholds[name] = threshold_line(outside, settings.margin, growth=growth, least=least)
        during_probation[name] = threshold_line(by_round, settings.margin, growth=growth, least=least)
        typical[name] = threshold_line(outside, 1.0, growth=growth, quantile=0.5)
        if name in DISCREPANCIES and settings.drift < math.inf:
            highest = max(*running_means(outside).values(), LEAST_LEVEL[settings.divergence])
            levels[name] = Level(sum(outside.values()) / len(outside), settings.drift * highest)
    return Calibration(thresholds, during_probation, typical, levels, upper_norm)


def within(scores: Mapping[str, float], lines: Mapping[str, Line], round_: int) -> bool:
    """Whether every score is at most its line's value in a round; a score that is not a number is not."""
    return all(score <= lines[name].at(round_) for name, score in scores.items())


def growth_of(scores: Mapping[int, float]) -> float:
    """The least-squares slope of scores by round, at least 0."""
    t, y = torch.tensor(list(scores), dtype=torch.float64), torch.tensor(list(scores.values()), dtype=torch.float64)
    return max(0.0, float(((t - t.mean()) * (y - y.mean())).sum() / (t - t.mean()).square().sum()))


def threshold_line(scores: Mapping[int, float], margin: float, *, growth: float = 0.0, quantile: float = 1.0, least: float = 0.0) -> Line:
    """A line for a score, by round, of clean rounds: `margin * (P0 + growth * t)`.

    P0 is such that the share `quantile` of the clean rounds lies on or under the line without its margin: 1 for a threshold, 0.5 for what
    is typical; but at least `least`.
    """
    start = torch.tensor([score - growth * round_ for round_, score in scores.items()], dtype=torch.float64).quantile(quantile)
    return Line(margin * max(float(start), least), margin * growth)


def running_mean(before: float, score: float) -> float:
    """A running mean after one more round, which counts `1 / MEMORY`."""
    return before + (score - before) / MEMORY


def running_means(scores: Mapping[int, float]) -> dict[int, float]:
    """The running mean after each round of a score; it begins at the mean of all."""
    level, found = sum(scores.values()) / len(scores), dict[int, float]()
    for round_, score in scores.items():
        level = running_mean(level, score)
        found[round_] = level
    return found


def upper_quartile(norms: Tensor) -> float:
    """The upper quartile of norms (n,), above 0. Of a well-trained model most updates are next to nothing: a clip at their median stops
    learning.
    """
    return max(float(norms.quantile(0.75)), torch.finfo(torch.float32).tiny)
