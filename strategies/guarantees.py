"""How many malicious clients a rule of ByzFL or Flower is told to expect, and how many updates its published guarantee then needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

MOST_SUBSETS = 100_000  # that a rule may go through in a round: minutes
SUBSETS = ("MDA", "SMEA")  # go through all subsets of n - f updates

# What the guarantee needs: at least a * f + b updates. Sources: docs/defences.md, "What a rule needs".
NEEDS: Mapping[str, tuple[int, int]] = {
    "byzfl.TrMean": (2, 1),
    "byzfl.Krum": (2, 3),
    "byzfl.MultiKrum": (2, 3),
    "byzfl.MDA": (2, 1),
    "byzfl.MoNNA": (2, 1),
    "byzfl.Meamed": (2, 1),
    "byzfl.CAF": (2, 1),
    "byzfl.SMEA": (2, 1),
    "byzfl.NNM": (2, 1),
    "byzfl.ARC": (2, 1),
    "flwr.Krum": (2, 3),
    "flwr.MultiKrum": (2, 3),
    "flwr.Bulyan": (4, 3),
}
MEDIANS = ("byzfl.Median", "byzfl.GeometricMedian", "flwr.FedMedian")  # need no number: they hold against any minority


class Guarantee(NamedTuple):
    """f: the malicious clients that a rule is made for. least: the fewest updates for them; formula: the same as text."""

    f: int
    least: int
    formula: str


def guarantees(name: str, options: Mapping[str, Any], n: int) -> list[tuple[str, int, Guarantee]]:
    """What each part of a strategy needs: its name, the updates that it gets when the server has n, and its guarantee. Parts without one
    (means, clips, Bucketing) are left out."""
    package, _, rest = name.partition(".")
    if package == "flwr" and rest == "FedTrimmedAvg":
        f = int(float(options.get("beta", 0.2)) * n)  # as Flower rounds: 0.29 of 100 is 28
        return [(name, n, Guarantee(f, 2 * f + 1, "2f + 1"))]
    result, updates = list[tuple[str, int, Guarantee]](), n
    for part in rest.split("+") if package in ("byzfl", "flwr") else ():
        full = f"{package}.{part}"
        if part == "Bucketing":
            updates = math.ceil(updates / max(_whole(options.get("s", 1)), 1))
        elif full in NEEDS:
            a, b = NEEDS[full]
            f = _whole(options.get("num_malicious_nodes" if package == "flwr" else "f", 0))
            result.append((full, updates, Guarantee(f, a * f + b, f"{a}f + {b}")))
        elif full in MEDIANS:
            f = (updates - 1) // 2
            result.append((full, updates, Guarantee(f, 2 * f + 1, "2f + 1")))
    return result


def tolerated(name: str, options: Mapping[str, Any], n: int) -> int | None:
    """f, the malicious clients among n that a strategy is made for; None if it promises nothing about a number of them."""
    parts = guarantees(name, options, n)
    aggregator = name.rpartition(".")[2].split("+")[-1]
    holds = any(part.rpartition(".")[2] == aggregator for part, _, _ in parts)
    return min(guarantee.f for _, _, guarantee in parts) if holds else None


def guarantee_problem(name: str, options: Mapping[str, Any], n: int) -> str:
    """Why no guarantee of a strategy can hold with n updates, as a sentence; empty if it can."""
    for part, updates, guarantee in guarantees(name, options, n):
        f, among = guarantee.f, "" if updates == n else f" ({n} clients in {updates} buckets)"
        if f < 0:
            return f"expected a number of malicious clients >= 0 with {part}, got {f}"
        if updates < guarantee.least:
            return (
                f"expected at least {guarantee.formula} = {guarantee.least} updates a round with {part} and f = {f}, got {updates}{among}"
            )
        if (count := subsets(part, updates, f)) > MOST_SUBSETS:
            return f"expected at most {MOST_SUBSETS:,} subsets of {updates} - f updates with {part}, got {count:.2g} with f = {f}{among}"
    selected, honest = options.get("num_nodes_to_select", 1), n - _whole(options.get("num_malicious_nodes", 0))
    if name == "flwr.MultiKrum" and not 1 <= _whole(selected) <= honest:
        return f"expected num_nodes_to_select from 1 to {honest} = {n} - num_malicious_nodes with flwr.MultiKrum, got {selected}"
    return ""


def subsets(part: str, n: int, f: int) -> int:
    """How many subsets of n updates a part goes through in a round."""
    return math.comb(n, f) if part.endswith(SUBSETS) else 1


def _whole(value: Any) -> int:
    """A whole number of an option; 0 for what is none, which the class itself refuses."""
    return value if type(value) is int else 0
