"""Strategies by name: our rules, DGC, Flower's classes, ByzFL's aggregators, and the user's own class."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import json
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import flwr.serverapp.strategy as flower
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_sim.clipping import clip_of
from fl_sim.config import Config
from fl_sim.federation import Federation
from fl_sim.flat_model import FlatModel
from strategies.byzfl_rules import AGGREGATORS, PRE_AGGREGATORS, byzfl_combine
from strategies.dgc import Guard
from strategies.flower_host import FlowerHost
from strategies.rule_strategy import RuleStrategy
from strategies.rules import RULES, Rule
from strategies.thresholds import Calibration

Host = RuleStrategy | FlowerHost  # what the ServerApp talks to

FLOWER = (
    "FedAvg", "FedAvgM", "FedAdam", "FedAdagrad", "FedYogi", "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan",
    "DifferentialPrivacyServerSideFixedClipping", "DifferentialPrivacyServerSideAdaptiveClipping",
)  # fmt: skip
WIDE = frozenset({"Krum", "MultiKrum", "Bulyan"})  # their distances need float64


def strategy_names() -> list[str]:
    """Every name that `strategy.name` takes, but the user's own."""
    return [*RULES, "dgc", *(f"flwr.{name}" for name in FLOWER), *(f"byzfl.{name}" for name in AGGREGATORS)]


def strategy_problems(config: Config) -> list[str]:
    """What is wrong with `strategy.name` and `strategy.options`, a sentence a problem. Builds what it names, once."""
    name = config.strategy.name
    package, _, rest = name.partition(".")
    if package == "byzfl" and ":" not in name:
        if importlib.util.find_spec("byzfl") is None:
            return [f"expected the optional package byzfl with strategy.name = {name!r}: pip install 'fl-sim[byzfl]'"]
        unknown = [part for part in rest.split("+")[:-1] if part not in PRE_AGGREGATORS]
        unknown += [rest.split("+")[-1]] if rest.split("+")[-1] not in AGGREGATORS else []
        if unknown:
            return [_unknown(name, strategy_names(), f"; before an aggregator go {', '.join(PRE_AGGREGATORS)}, as in byzfl.NNM+TrMean")]
    elif ":" not in name and name not in strategy_names():
        return [_unknown(name, strategy_names(), ", or package.module:Class or file.py:Class of your own")]
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
        return _made(own_class(name), options)
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


def own_class(name: str) -> type[Any]:
    """The class of `package.module:Class`, or of `path/to/file.py:Class`. Raises ImportError or AttributeError."""
    place, _, attribute = name.rpartition(":")
    if place.endswith(".py"):
        path = Path(place).expanduser().absolute()
        name = f"fl_sim_own_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"  # shadows nobody's module
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ImportError(f"there is no file {place!r}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up there
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    return getattr(module, attribute)


def parse_options(text: str) -> dict[str, Any]:
    """`strategy.options`: a JSON object, or TOML keys one a line. Raises ValueError for anything else."""
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        try:
            found = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"neither JSON nor TOML ({error})") from None
    if not isinstance(found, dict):
        raise ValueError("expected an object of arguments by name")
    return cast(dict[str, Any], found)


def _unknown(name: str, known: list[str], more: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"expected strategy.name to be one of {', '.join(known)}{more}, got {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
