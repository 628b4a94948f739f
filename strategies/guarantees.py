"""How many malicious clients a rule is told to expect, and how many updates its published guarantee then needs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from fl_sim.config.keys import Config

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
    "dnc": (2, 1),
    "flanders": (1, 1),
}
# Need no number: they hold against any minority.
MEDIANS = (
    "byzfl.Median",
    "byzfl.GeometricMedian",
    "flwr.FedMedian",
    "signguard",
    "flame",
    "clipped-clustering",
    "alignins",
    "lasa",
    "deepsight",
    "afa",
)
ASSUMED = "assumed_malicious"  # the option of a rule of ours that takes the number


def assumed_malicious(config: Config) -> int:
    """f, the malicious clients of a round that a rule expects: `strategy.assumed-malicious`, or by default the number that the
    configuration names, at least 1: `attack.poison-ratio` of the n sampled clients or, in the mean over the rounds,
    `attack.malicious-fraction` of them. Also with `attack.name = "none"`, so that a clean run has the rule of the attacked one."""
    if config.strategy.assumed_malicious >= 0:
        return config.strategy.assumed_malicious
    attack = config.attack
    share = attack.poison_ratio if attack.poison_ratio >= 0.0 else attack.malicious_fraction
    return max(1, round(share * config.clients_per_round))


def assumption(config: Config, takes: Collection[str]) -> dict[str, Any]:
    """The option with which a strategy is told f, empty if it takes none. takes: the names of its options, if it is a function.

    `flwr.FedTrimmedAvg` has a default of its own, beta = 0.2, and is told only a number that the key gives.
    """
    name, f = config.strategy.name, assumed_malicious(config)
    package, _, rest = name.partition(".")
    if name == "flwr.FedTrimmedAvg":
        n = config.clients_per_round  # Flower cuts int(beta * n) at each end
        return {"beta": (f + 0.5) / n if f else 0.0} if config.strategy.assumed_malicious >= 0 else {}
    if package == "byzfl" and any(f"byzfl.{part}" in NEEDS for part in rest.split("+")):
        return {"f": f}
    if package == "flwr" and name in NEEDS:
        return {"num_malicious_nodes": f}
    return {ASSUMED: f} if ASSUMED in takes else {}


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
    parts = [f"{package}.{part}" for part in rest.split("+")] if package in ("byzfl", "flwr") else [name]
    for full in parts:
        part = full.rpartition(".")[2]
        if part == "Bucketing":
            updates = math.ceil(updates / max(_whole(options.get("s", 1)), 1))
        elif full in NEEDS:
            a, b = NEEDS[full]
            f = _whole(options.get({"flwr": "num_malicious_nodes", "byzfl": "f"}.get(package, ASSUMED), 0))
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
