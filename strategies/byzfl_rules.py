"""ByzFL's aggregators, with its pre-aggregators, as the `combine` slot of a rule (the optional extra `[byzfl]`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fl_sim.rng.streams import lent_generators

PRE_AGGREGATORS = ("NNM", "Bucketing", "Clipping", "ARC")
AGGREGATORS = (
    "Average", "Median", "TrMean", "GeometricMedian", "Krum", "MultiKrum", "CenteredClipping", "MDA", "MoNNA", "Meamed", "CAF", "SMEA",
)  # fmt: skip


@dataclass
class ByzflCombine:
    """`combine(updates (n, d), weights, clients) -> (d,)`: pre-aggregators one after the other, then the aggregator. ByzFL knows no
    weights: every client counts the same. Random draws come from the seed and the number of rounds so far.

    Source: Gonzalez et al. 2025, "ByzFL: Research Framework for Robust Federated Learning"; each aggregator's own there.
    """

    stages: list[Callable[[Tensor], Tensor]]
    seed: int
    rounds: int = field(default=0)

    def __call__(self, updates: Tensor, weights: Tensor, clients: Tensor) -> Tensor:
        self.rounds += 1
        value = updates.clone()  # Clipping and ARC write into what they get
        with lent_generators(self.seed, "byzfl", self.rounds):
            for stage in self.stages:
                value = stage(value)
        return value.to(updates)


def byzfl_combine(name: str, options: Mapping[str, Any], seed: int) -> ByzflCombine:
    """The combination of a name such as `TrMean` or `NNM+TrMean`; each option goes to every part that has it.

    Raises ValueError for an unknown part or option, or whatever ByzFL says of a value.
    """
    import byzfl  # takes seconds and is optional

    *before, last = name.split("+")
    for part, known in [*((part, PRE_AGGREGATORS) for part in before), (last, AGGREGATORS)]:
        if part not in known:
            raise ValueError(f"expected one of {', '.join(known)}, got {part!r}")
    left, stages = set(options), list[Callable[[Tensor], Tensor]]()
    for part in name.split("+"):
        made = getattr(byzfl, part)
        mine = {key: value for key, value in options.items() if key in inspect.signature(made.__init__).parameters}
        left -= set(mine)
        stages.append(made(**mine))
    if left:
        raise ValueError(f"{name} has no option {', '.join(sorted(left))}")
    return ByzflCombine(stages, seed)
