"""Which clients a rule leaves out of a round: its own documented choice, computed again from the updates, because ByzFL and Flower do not
say whom they chose.

`left_out` of the updates (n, d) is a mask (n,), or None for a rule that drops nobody. Not covered: CAF, which weighs softly, and SMEA,
whose choice comes from a random power iteration; clips and coordinate-wise rules leave out no client.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from strategies.byzfl_rules import ByzflCombine
from strategies.fast.distances import nearest_neighbours, squared_distances
from strategies.own_rule import OwnCombine


def left_out_by(rule: object, updates: Tensor) -> Tensor | None:
    """The clients, bool (n,), that a combination or a Flower strategy left out of updates (n, d); None if it is none that selects.

    A combination of our own says it itself: with an attribute `left_out`, or, a function, with the tensor `left_out` in its `report` (or in
    its `state`).
    """
    if isinstance(rule, ByzflCombine):
        return _byzfl(rule, updates)
    reported = rule.report.get("left_out", rule.state.get("left_out")) if isinstance(rule, OwnCombine) else getattr(rule, "left_out", None)
    if isinstance(reported, Tensor) and tuple(reported.shape) == (len(updates),):
        return reported.bool()
    select = _FLOWER.get(type(rule).__name__)
    return select(rule, updates) if select else None


def krum_scores(updates: Tensor, neighbours: int) -> Tensor:
    """The sum of the squared distances (n,) of each update to its nearest `neighbours` others.

    Source: Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", section 4.
    """
    return squared_distances(updates).sort(dim=1).values[:, 1 : neighbours + 1].sum(dim=1)


def but_the_lowest(scores: Tensor, count: int) -> Tensor:
    """All (n,) but the `count` with the lowest scores; of equal ones the first count as lower."""
    mask = torch.ones_like(scores, dtype=torch.bool)
    mask[scores.sort(stable=True).indices[:count]] = False
    return mask


def smallest_diameter(updates: Tensor, f: int) -> Tensor:
    """The f clients outside the n - f whose largest distance is the smallest, bool (n,); of equal subsets the first counts.

    Source: El Mhamdi et al. 2018 and ByzFL's MDA (minimum diameter averaging).
    """
    distances, n = squared_distances(updates), len(updates)
    subsets = torch.tensor(list(itertools.combinations(range(n), n - f)))
    diameters = torch.stack([distances[subset][:, subset].max() for subset in subsets])
    mask = torch.ones(n, dtype=torch.bool, device=updates.device)
    mask[subsets[int(diameters.argmin())]] = False
    return mask


def rarely_a_neighbour(updates: Tensor, f: int) -> Tensor:
    """The clients, bool (n,), that are among the n - f nearest neighbours (itself included) of less than half of the clients.

    Ours, for NNM, which replaces each update by the mean of these neighbours: what such a client sends is in few of the means.
    """
    n = len(updates)
    return torch.bincount(nearest_neighbours(updates, n - f).flatten(), minlength=n) < n / 2


def _byzfl(rule: ByzflCombine, updates: Tensor) -> Tensor | None:
    """The choice of the first stage: behind another pre-aggregator rows are no clients any more, but behind Clipping and ARC, which change
    their lengths, they are; for these nothing is said either."""
    (name, stage), *_ = rule.stages
    f, n = int(getattr(stage, "f", 0)), len(updates)
    if name == "NNM":
        return rarely_a_neighbour(updates, f)
    if name == "MoNNA" and rule.trusted is not None:  # the trusted row is one of the n + 1 - f, the nearest to itself
        return but_the_lowest((updates.double() - rule.trusted.double()).square().sum(dim=1), n - f)
    if name in ("Krum", "MultiKrum"):
        return but_the_lowest(krum_scores(updates, n - f - 1), 1 if name == "Krum" else n - f)
    return smallest_diameter(updates, f) if name == "MDA" else None


def _flower_krum(rule: Any, updates: Tensor) -> Tensor:
    """Krum and MultiKrum of Flower."""
    f = int(rule.num_malicious_nodes)
    return but_the_lowest(krum_scores(updates, max(1, len(updates) - f - 2)), int(getattr(rule, "num_nodes_to_select", 1)))


def _flower_bulyan(rule: Any, updates: Tensor) -> Tensor | None:
    """The clients that Bulyan's selection leaves out; None if there are too few for it, or if the selection is the user's own."""
    f, n = int(rule.num_malicious_nodes), len(updates)
    if n < 4 * f + 3 or rule.selection_rule.__name__ != "select_multikrum":
        return None
    return but_the_lowest(krum_scores(updates, max(1, n - f - 2)), n - 2 * f)


_FLOWER: Mapping[str, Callable[[Any, Tensor], Tensor | None]] = {
    "Krum": _flower_krum,
    "MultiKrum": _flower_krum,
    "Bulyan": _flower_bulyan,
}
