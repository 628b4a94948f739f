"""DGC's thresholds, fitted to the scores of clean rounds.

Source: Zhu et al. 2023, section 4.1, for a threshold that grows with the rounds; the fit and the running means are ours
(docs/mathematics.md, section 8.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fl_sim.config.keys import Strategy

MEMORY = 20  # rounds over which a running mean averages: two memories of a server momentum of 0.9
DISCREPANCIES = ("history", "fixed")
GROWING = ("fixed",)  # scores that grow with the rounds of a clean run: only the distance from the burnt-in model does
LEAST_LEVEL = {"kl": 0.003, "js": 0.0004}  # nats, about the same change for both: a well-trained model still becomes more confident


class Threshold(NamedTuple):
    """A threshold that grows with the rounds: `P0 + growth * t` (Zhu et al. 2023, section 4.1)."""

    start: float
    growth: float

    def at(self, round_: int) -> float:
        """The threshold in a round, numbered from 1."""
        return self.start + self.growth * round_


class Level(NamedTuple):
    """The running mean of a score: its first value `usual`, and the largest value `most` that does not count as a drift."""

    usual: float
    most: float


class Calibration(NamedTuple):
    """What was fitted to clean rounds.

    thresholds: by score, for normal rounds; during_probation: by score, for the rounds of a probation; typical: by score, what a step
    that was halved must reach; levels: by discrepancy, of its running mean; upper_norm: the upper quartile of the norms of the clients'
    updates.
    """

    thresholds: Mapping[str, Threshold]
    during_probation: Mapping[str, Threshold]
    typical: Mapping[str, Threshold]
    levels: Mapping[str, Level]
    upper_norm: float

    def usual(self) -> dict[str, float]:
        """The first values of the running means."""
        return {name: level.usual for name, level in self.levels.items()}


def fit_calibration(
    settings: Strategy, scores: Mapping[str, Sequence[float]], rehearsed: Sequence[int], *, least_rise: float, upper_norm: float
) -> Calibration:
    """The thresholds that follow from the scores of clean rounds 1..R.

    Normally: `strategy.margin` times the largest score outside the rehearsed probation. During a probation: `strategy.margin` times the
    largest score of all clean rounds. A drift: `strategy.drift` times the largest running mean outside the rehearsed probation.

    Args: scores, R values per score; rehearsed, the rounds of the rehearsed probation; least_rise, the smallest value that the largest
    clean rise is taken for; upper_norm, see `Calibration`.
    """
    thresholds, during_probation, typical = dict[str, Threshold](), dict[str, Threshold](), dict[str, Threshold]()
    levels = dict[str, Level]()
    for name, values in scores.items():
        by_round = dict(enumerate(values, start=1))
        outside = {round_: score for round_, score in by_round.items() if round_ not in rehearsed}
        growth, least = growth_of(outside) if name in GROWING else 0.0, least_rise if name == "rise" else 0.0
        thresholds[name] = fit_threshold(outside, settings.margin, growth=growth, least=least)
        during_probation[name] = fit_threshold(by_round, settings.margin, growth=growth, least=least)
        typical[name] = fit_threshold(outside, 1.0, growth=growth, quantile=0.5)
        if name in DISCREPANCIES and settings.drift < math.inf:
            highest = max(*running_means(outside).values(), LEAST_LEVEL[settings.divergence])
            levels[name] = Level(sum(outside.values()) / len(outside), settings.drift * highest)
    return Calibration(thresholds, during_probation, typical, levels, upper_norm)


def all_below(scores: Mapping[str, float], thresholds: Mapping[str, Threshold], round_: int) -> bool:
    """Whether every score is at most its threshold in a round. False if a score is NaN."""
    return all(score <= thresholds[name].at(round_) for name, score in scores.items())


def growth_of(scores: Mapping[int, float]) -> float:
    """The least-squares slope of scores by round, at least 0."""
    t, y = torch.tensor(list(scores), dtype=torch.float64), torch.tensor(list(scores.values()), dtype=torch.float64)
    return max(0.0, float(((t - t.mean()) * (y - y.mean())).sum() / (t - t.mean()).square().sum()))


def fit_threshold(
    scores: Mapping[int, float], margin: float, *, growth: float = 0.0, quantile: float = 1.0, least: float = 0.0
) -> Threshold:
    """`margin * (P0 + growth * t)` for the scores of clean rounds, by round.

    P0 is the `quantile` of `score - growth * t` over the clean rounds (1: the largest; 0.5: the median), but at least `least`.
    """
    start = torch.tensor([score - growth * round_ for round_, score in scores.items()], dtype=torch.float64).quantile(quantile)
    return Threshold(margin * max(float(start), least), margin * growth)


def running_mean(before: float, score: float) -> float:
    """A running mean after one more round. The new round counts `1 / MEMORY`."""
    return before + (score - before) / MEMORY


def running_means(scores: Mapping[int, float]) -> dict[int, float]:
    """The running mean after each round. It starts at the mean of all scores."""
    level, means = sum(scores.values()) / len(scores), dict[int, float]()
    for round_, score in scores.items():
        level = running_mean(level, score)
        means[round_] = level
    return means


def upper_quartile(norms: Tensor) -> float:
    """The upper quartile of norms (n,), above 0.

    Not the median: most updates of a well-trained model are close to zero, and a clip at their median would stop the training.
    """
    return max(float(norms.quantile(0.75)), torch.finfo(torch.float32).tiny)
