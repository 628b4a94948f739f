"""ByzFL's aggregators, with its pre-aggregators, as the `combine` slot of a rule (the optional extra `[byzfl]`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fl_sim.rng.streams import seeded_global_generators

PRE_AGGREGATORS = ("NNM", "Bucketing", "Clipping", "ARC")
AGGREGATORS = (
    "Average", "Median", "TrMean", "GeometricMedian", "Krum", "MultiKrum", "CenteredClipping", "MDA", "MoNNA", "Meamed", "CAF", "SMEA",
)  # fmt: skip


@dataclass
class ByzflCombine:
    """`combine(updates (n, d), weights, clients) -> (d,)`: pre-aggregators one after the other, then the aggregator. ByzFL ignores weights:
    every client counts the same. Random draws come from the seed and the number of rounds so far.

    Source: Gonzalez et al. 2025, "ByzFL: Research Framework for Robust Federated Learning"; it cites the source of each aggregator.
    """

    stages: list[Callable[[Tensor], Tensor]]
    seed: int
    rounds: int = field(default=0)

    def __call__(self, updates: Tensor, weights: Tensor, clients: Tensor) -> Tensor:
        self.rounds += 1
        value = updates.clone()  # Clipping and ARC write into their input
        with seeded_global_generators(self.seed, "byzfl", self.rounds):
            for stage in self.stages:
                value = stage(value)
        return value.to(updates)


def byzfl_combine(name: str, options: Mapping[str, Any], seed: int) -> ByzflCombine:
    """The combination of a name such as `TrMean` or `NNM+TrMean`. Each option goes to every part that has it.

    Raises ValueError for an unknown part or option, and what ByzFL raises for a bad value.
    """
    import byzfl  # takes seconds and is optional

    *before, last = name.split("+")
    for part, names in [*((part, PRE_AGGREGATORS) for part in before), (last, AGGREGATORS)]:
        if part not in names:
            raise ValueError(f"expected one of {', '.join(names)}, got {part!r}")
    unknown, stages = set(options), list[Callable[[Tensor], Tensor]]()
    for part in name.split("+"):
        part_class = getattr(byzfl, part)
        own_options = {key: value for key, value in options.items() if key in inspect.signature(part_class.__init__).parameters}
        unknown -= set(own_options)
        stages.append(part_class(**own_options))
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}")
    return ByzflCombine(stages, seed)
