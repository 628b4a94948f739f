"""ByzFL's aggregators, with its pre-aggregators, as the `combine` slot of a rule (the optional extra `[byzfl]`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl_sim.grid.server_strategy import Needs
from fl_sim.rng.streams import seeded_global_generators
from strategies.fast.stages import faster
from strategies.guarantees import guarantee_problem
from strategies.rule import CannotCombineError

PRE_AGGREGATORS = ("NNM", "Bucketing", "Clipping", "ARC")
AGGREGATORS = (
    "Average", "Median", "TrMean", "GeometricMedian", "Krum", "MultiKrum", "CenteredClipping", "MDA", "MoNNA", "Meamed", "CAF", "SMEA",
)  # fmt: skip
TRUSTING = "MoNNA"  # averages what is nearest to one row, which it trusts
WRITING = ("Clipping", "ARC")  # into their input
CLIPS: Mapping[str, str] = {"Clipping": "c", "CenteredClipping": "tau"}  # and the attribute that holds their bound


@dataclass
class ByzflCombine:
    """`combine(updates (n, d), weights, clients) -> (d,)`: pre-aggregators one after the other, then the aggregator. ByzFL ignores weights:
    every client counts the same. Random draws come from the seed and the number of rounds so far.

    MoNNA averages the n - f vectors nearest to one that it trusts. ByzFL takes row 0, the lowest client id, which may be malicious; here it
    is the server's own update, which joins the others as one more row (`see` must be called before each round).

    Args: stages, by ByzFL's names; own_update, the server's own update (d,) at a model (d,).
    Source: Gonzalez et al. 2025, "ByzFL: Research Framework for Robust Federated Learning"; it cites the source of each aggregator.
    """

    weighted: ClassVar[bool] = False

    name: str
    options: Mapping[str, Any]
    stages: list[tuple[str, Callable[[Tensor], Tensor]]]
    seed: int
    own_update: Callable[[Tensor], Tensor] | None = None
    rounds: int = field(default=0)
    trusted: Tensor | None = None
    figures: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def needs(self) -> Needs:
        """What the rule requires."""
        return Needs(server_data=self.own_update is not None)

    def see(self, theta: Tensor) -> None:
        """Make the server's own update at the model theta (d,), if it is needed."""
        self.trusted = self.own_update(theta) if self.own_update else None

    def __call__(self, updates: Tensor, weights: Tensor, clients: Tensor) -> Tensor:
        """The combined update (d,). `figures` says how many updates were clipped, if a stage clips.

        Raises CannotCombineError for too few updates, or if ByzFL gives nothing finite (CAF and SMEA of equal updates).
        """
        self.rounds += 1
        self.figures = {}
        if problem := guarantee_problem(f"byzfl.{self.name}", self.options, len(updates)):
            raise CannotCombineError(problem)
        value = updates.clone() if any(part in WRITING for part, _ in self.stages) else updates
        with seeded_global_generators(self.seed, "byzfl", self.rounds):
            for part, stage in self.stages:
                value = self._stage(part, stage, value)
        if not bool(torch.isfinite(value).all()):
            raise CannotCombineError(f"byzfl.{self.name} gave NaN or infinity for {len(updates)} updates")
        return value.to(updates)

    def _stage(self, part: str, stage: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        """The result of one stage. Raises CannotCombineError."""
        if part in CLIPS:
            centre = getattr(stage, "m", None)
            lengths = torch.linalg.vector_norm(value if centre is None else value - centre, dim=1)
            self.figures["clipped"] = self.figures.get("clipped", 0.0) + float((lengths > getattr(stage, CLIPS[part])).sum())
            self.figures["median_norm"] = float(lengths.median())
        if part == TRUSTING:
            if self.trusted is None:
                raise CannotCombineError("byzfl.MoNNA trusts the server's own update, which is not available here")
            value = torch.cat([self.trusted.to(value).unsqueeze(0), value])
        try:
            result = stage(value)
        except Exception as error:  # ByzFL raises what it likes
            raise CannotCombineError(f"byzfl.{part} failed on {len(value)} updates ({type(error).__name__}: {error})") from error
        if not isinstance(result, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] - CAF gives None for equal updates
            raise CannotCombineError(f"byzfl.{part} gave {type(result).__name__} for {len(value)} updates")
        return result


def byzfl_combine(name: str, options: Mapping[str, Any], seed: int, own_update: Callable[[Tensor], Tensor] | None = None) -> ByzflCombine:
    """The combination of a name such as `TrMean` or `NNM+TrMean`. Each option goes to every part that has it.

    Args: own_update, as of `ByzflCombine`. Raises ValueError for an unknown part or option, and what ByzFL raises for a bad value.
    """
    import byzfl  # takes seconds and is optional

    *before, last = name.split("+")
    for part, names in [*((part, PRE_AGGREGATORS) for part in before), (last, AGGREGATORS)]:
        if part not in names:
            raise ValueError(f"expected one of {', '.join(names)}, got {part!r}")
    if last == TRUSTING and "idx" in options:
        raise ValueError(f"{name} takes no option idx here: it trusts the server's own update, and no client's")
    takes, unknown, stages = dict[str, None](), set(options), list[tuple[str, Callable[[Tensor], Tensor]]]()
    for part in name.split("+"):
        part_class = getattr(byzfl, part)
        parameters = [parameter for parameter in inspect.signature(part_class.__init__).parameters if parameter != "self"]
        own_options = {key: value for key, value in options.items() if key in parameters}
        takes |= dict.fromkeys(parameters)
        unknown -= set(own_options)
        stages.append((part, faster(part, part_class(**own_options))))
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}; it takes {', '.join(takes) or 'none'}")
    return ByzflCombine(name, dict(options), stages, seed, own_update if last == TRUSTING else None)
