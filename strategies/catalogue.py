"""Strategies by name: our rules, DGC, Flower's classes, ByzFL's aggregators, and the user's own class."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flwr.serverapp.strategy as flower
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_sim.config.keys import Config
from fl_sim.config.options import parse_options
from fl_sim.data.federation import Federation
from fl_sim.model.flat_model import FlatModel
from fl_sim.registry import Registry, load_outside
from fl_sim.training.clipping import clip_of
from strategies.byzfl_rules import AGGREGATORS, PRE_AGGREGATORS, byzfl_combine
from strategies.dgc.guard import Guard
from strategies.dgc.thresholds import Calibration
from strategies.flower_host import FlowerHost
from strategies.rule import RULES, Rule
from strategies.rule_strategy import RuleStrategy

Host = RuleStrategy | FlowerHost  # what the ServerApp talks to

FLOWER = (
    "FedAvg", "FedAvgM", "FedAdam", "FedAdagrad", "FedYogi", "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan",
    "DifferentialPrivacyServerSideFixedClipping", "DifferentialPrivacyServerSideAdaptiveClipping",
)  # fmt: skip
WIDE = frozenset({"Krum", "MultiKrum", "Bulyan"})  # their distances need float64


def strategy_problems(config: Config) -> list[str]:
    """What is wrong with `strategy.options`, a sentence a problem. Builds what `strategy.name` names, once."""
    name = config.strategy.name
    if name in RULES or name == "dgc":
        options = config.strategy.options
        return [f"expected strategy.options to be empty with strategy.name = {name!r}, got {options!r}"] if options else []
    try:
        _instance(config)
    except Exception as error:
        return [f"cannot make strategy.name = {name!r} with strategy.options = {config.strategy.options!r}: {error}"]
    return []


def build_strategy(
    config: Config,
    theta: Tensor,
    sample: Callable[[int], Sequence[int]],
    *,
    model: FlatModel,
    federation: Federation,
    calibration: Calibration | None = None,
    calibrating: bool = False,
) -> Host:
    """The strategy of `strategy.name` around the initial model theta (d,).

    Args: sample, the client ids of a round; calibration, of DGC's thresholds; calibrating, ask for every update's norm.
    """
    settings, server = config.strategy, config.server
    made = _instance(config)
    if isinstance(made, Strategy):
        return FlowerHost(
            made,
            theta,
            layout=model.layout,
            learning_rate=config.client.learning_rate,
            sample=sample,
            seed=config.seed,
            wide=type(getattr(made, "strategy", made)).__name__ in WIDE,
        )
    guard = None
    if calibration:
        probe = federation.probe()
        guard = Guard(settings, model, probe, calibration, server.learning_rate, server.momentum)
    return RuleStrategy(
        made,
        theta,
        learning_rate=server.learning_rate,
        momentum=server.momentum,
        sample=sample,
        guard=guard,
        norms_wanted=calibrating,
    )


def _instance(config: Config) -> Rule | Strategy:
    """A rule, or a Flower strategy with its options."""
    name, options = config.strategy.name, parse_options(config.strategy.options)
    if name in RULES:
        return RULES[name](config.strategy)
    if name == "dgc":
        after = clip_of(config.strategy.norm, config.strategy.bound) if config.strategy.scope == "aggregate" else None
        return Rule(after=after)
    if ":" in name:
        return _made(load_outside(name), options)
    package, rest = name.split(".", 1)
    if package == "byzfl":
        return Rule(combine=byzfl_combine(rest, options, config.seed))
    if rest.startswith("DifferentialPrivacy"):
        inner = _made(getattr(flower, str(options.get("strategy", "FedAvg"))), {})
        options = {"num_sampled_clients": config.clients_per_round, **options, "strategy": inner}
    return _made(getattr(flower, rest), options)


def _made(found: type[Any], options: Mapping[str, Any]) -> Strategy:
    made = found(**options)
    if not isinstance(made, Strategy):
        raise TypeError(f"expected a subclass of flwr.serverapp.strategy.Strategy, got {found!r}")
    return made


def _family_problem(name: str) -> str | None:
    """What is wrong with a name of ByzFL's; None for a name that is none."""
    package, _, rest = name.partition(".")
    if package == "byzfl" and ":" not in name:
        if importlib.util.find_spec("byzfl") is None:
            return f"expected the optional package byzfl with strategy.name = {name!r}: pip install 'fl-sim[byzfl]'"
        *before, last = rest.split("+")
        if all(part in PRE_AGGREGATORS for part in before) and last in AGGREGATORS:
            return ""
        known = ", ".join(f"byzfl.{aggregator}" for aggregator in AGGREGATORS)
        near = difflib.get_close_matches(last, AGGREGATORS, n=1)
        hint = f"; did you mean {'byzfl.' + near[0]!r}?" if near else ""
        return (
            f"expected strategy.name to be one of {known}; before an aggregator go {', '.join(PRE_AGGREGATORS)}, as in byzfl.NNM+TrMean; "
            f"got {name!r}{hint}"
        )
    return "" if package == "flwr" and rest in FLOWER else None


strategies: Registry[Any] = Registry(
    "strategy",
    "strategy.name",
    {**RULES, "dgc": Rule},
    "fl_sim.strategies",
    family=_family_problem,
    more=(*(f"flwr.{name}" for name in FLOWER), *(f"byzfl.{name}" for name in AGGREGATORS)),
)
