"""Strategies by name: our rules, DGC, published defences, Flower's classes, ByzFL's aggregators, and strategies and rules from outside."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import flwr.serverapp.strategy as flower
import torch
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_sim.config.keys import Client, Config
from fl_sim.config.options import parse_options
from fl_sim.data.federation import Federation
from fl_sim.grid.server_strategy import Needs
from fl_sim.model.flat_model import FlatModel
from fl_sim.outside_code import OutsideCodeError, error_words, outside_call
from fl_sim.registry import Registry, how_to_install
from fl_sim.rng.streams import seeded_global_generators
from fl_sim.training.clipping import Clip, clip_of
from strategies.byzfl_rules import AGGREGATORS, PRE_AGGREGATORS, byzfl_combine
from strategies.dgc.guard import Guard
from strategies.dgc.thresholds import Calibration
from strategies.dgc2.classes import ClassProbe
from strategies.dgc2.defence import SecondDefence, begin_defence
from strategies.dgc2.levels import Levels
from strategies.flower_host import FlowerHost, reads_weights
from strategies.guarantees import assumption
from strategies.own_rule import OPTIONAL, OwnCombine, ServerInputs, optional_parameters, options_taken
from strategies.robust.catalogue import ROBUST
from strategies.rule import RULES, Rule, stacked_mean
from strategies.rule_strategy import RuleStrategy

FLOWER = (
    "FedAvg", "FedAvgM", "FedAdam", "FedAdagrad", "FedYogi", "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan",
    "DifferentialPrivacyServerSideFixedClipping", "DifferentialPrivacyServerSideAdaptiveClipping",
)  # fmt: skip

GUARDS: dict[str, type[Guard] | type[SecondDefence]] = {"dgc": Guard, "dgc-2": SecondDefence}


def reads_weights_of(config: Config) -> bool:
    """Whether the weights of clients (`client.weight`) can change what a configuration's strategy combines."""
    instance = instance_of(config)
    return reads_weights(instance) if isinstance(instance, Strategy) else instance.weighted


def needs_of(config: Config) -> Needs:
    """What the strategy of a configuration requires."""
    if config.strategy.name in GUARDS:
        return GUARDS[config.strategy.name].needs
    instance = instance_of(config)
    return FlowerHost.needs if isinstance(instance, Strategy) else instance.needs


def publishes_combination(config: Config) -> bool:
    """Whether a coalition that knows the rule can compute its result: not that of a Flower strategy, or of a rule that needs the server's
    data or the model."""
    instance = instance_of(config, public=True)
    return isinstance(instance, Rule) and (instance.combine is None or not (instance.needs.server_data or instance.needs.model))


def public_combine(config: Config) -> Callable[[Tensor, Tensor], Tensor]:
    """The combination `(updates (n, d), weights (n,)) -> (d,)` of a configuration's rule, for a coalition that knows the rule: a new
    instance, without client ids and without the server's data."""
    rule = instance_of(config, public=True)
    assert isinstance(rule, Rule)
    return lambda updates, weights: stacked_mean(rule, updates, weights, torch.arange(len(updates)))


def build_strategy(
    config: Config,
    theta: Tensor,
    sample: Callable[[int], Sequence[int]],
    *,
    model: FlatModel,
    federation: Federation,
    calibration: Calibration | Levels | None = None,
    calibrating: bool = False,
) -> RuleStrategy | FlowerHost:
    """The strategy of `strategy.name` around the initial model theta (d,).

    Args: sample, the client ids of a round; calibration, DGC's; calibrating, whether workers must report every update's norm.
    """
    instance = instance_of(config, server_inputs(config, model, federation))
    if isinstance(instance, Strategy):
        return FlowerHost(instance, theta, config, model.layout, sample)
    server, guard = config.server, None
    if isinstance(calibration, Levels):
        guard = begin_defence(config, theta, ClassProbe(model, federation.probe()), calibration)
    elif calibration:
        guard = Guard(config.strategy, model, federation.probe(), calibration, server.learning_rate, server.momentum)
    return RuleStrategy(instance, theta, config.server, sample, name=config.strategy.name, guard=guard, report_norms=calibrating)


def probe_update(client: Client, model: FlatModel, federation: Federation, theta: Tensor) -> Tensor:
    """The update (d,) of the server itself, trained as a client on its probe set: `client.local-steps` steps, each on all of it."""
    theta = theta.to(federation.device)
    update = torch.zeros_like(theta)
    for _ in range(client.local_steps):
        update = update + model.gradient(theta - client.learning_rate * update, *federation.probe())
    return update


def server_inputs(config: Config, model: FlatModel, federation: Federation) -> ServerInputs:
    """What the server can give to a rule, by name, as functions of the model theta (d,)."""
    return {
        **_public_inputs(config),
        "theta": lambda theta: theta.clone(),
        "model": lambda theta: model,
        "server_data": lambda theta: federation.probe(),
        "server_update": lambda theta: probe_update(config.client, model, federation, theta).to(theta),
    }


def _public_inputs(config: Config) -> ServerInputs:
    """What a rule gets where there is no server: only the learning rates."""
    private = ("theta", "model", "server_data", "server_update")
    server = config.server
    rates = {"server_lr": server.learning_rate, "server_momentum": server.momentum, "client_lr": config.client.learning_rate}
    return {**dict.fromkeys(private, _not_here), **{name: lambda theta, rate=rate: rate for name, rate in rates.items()}}


def _not_here(theta: Tensor) -> Any:
    raise RuntimeError("the server's data and model are not available here")


def options_of(config: Config) -> dict[str, Any]:
    """`strategy.options`, and where they do not say it, how many malicious clients the strategy is told to expect."""
    return told_by_key(config) | parse_options(config.strategy.options)


def told_by_key(config: Config) -> dict[str, Any]:
    """The option that `strategy.assumed-malicious` sets; empty if the strategy takes none, or if `strategy.options` sets it."""
    function, given = function_of(config.strategy.name), parse_options(config.strategy.options)
    told = assumption(config, options_taken(function) if function else ())
    return {option: value for option, value in told.items() if option not in given}


def function_of(name: str) -> Callable[..., Any] | None:
    """The function of a strategy that is one, or has one as its combination: a published defence or a user's own."""
    if name in ROBUST:
        return ROBUST[name].combine
    thing = strategies.find(name) if strategies.outside(name) else None
    thing = thing.combine if isinstance(thing, Rule) else thing
    return thing if callable(thing) and not isinstance(thing, type) else None


def instance_of(config: Config, server: ServerInputs | None = None, *, public: bool = False) -> Rule | Strategy:
    """A rule, or a Flower strategy with its options.

    Args: server, what the server can give to a rule that asks for it; public, whether it is the copy of a coalition that knows the rule.
    """
    name, server = config.strategy.name, server or _public_inputs(config)
    if name in RULES:
        return RULES[name](config.strategy)
    if name == "dgc-2":
        return Rule()
    if name == "dgc":
        after = clip_of(config.strategy.norm, config.strategy.bound) if config.strategy.scope == "aggregate" else None
        return Rule(after=after)
    options = options_of(config)
    if name in ROBUST:
        defence = ROBUST[name]
        _check_options(defence.combine, options)
        return Rule(combine=OwnCombine(name, defence.combine, options, server, config.seed, defence.weighted, public))
    if strategies.outside(name):
        return _from_outside(name, options, server, config.seed, public)
    package, rest = name.split(".", 1)
    if package == "byzfl":
        return Rule(combine=byzfl_combine(rest, options, config.seed, server["server_update"]))
    if rest.startswith("DifferentialPrivacy"):
        inner = getattr(flower, str(options.get("strategy", "FedAvg")))()
        options = {"num_sampled_clients": config.clients_per_round, **options, "strategy": inner}
    takes = [option for option in inspect.signature(getattr(flower, rest)).parameters if option != "strategy"]
    if strange := [option for option in options if option not in takes and option != "strategy"]:
        raise TypeError(f"it has no option {', '.join(strange)}; it takes {', '.join(takes)}")
    return getattr(flower, rest)(**options)


def smoothing_noise(config: Config) -> float | None:
    """The noise of the smoothed test that belongs to a strategy (CRFL's); None for a strategy without one."""
    if config.strategy.name != "crfl":
        return None
    return float(options_of(config).get("noise", inspect.signature(ROBUST["crfl"].combine).parameters["noise"].default))


def _check_options(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises TypeError for an option that a published defence does not have."""
    takes = options_taken(function)
    if strange := [option for option in options if option not in takes]:
        raise TypeError(f"it has no option {', '.join(strange)}; it takes {', '.join(takes) or 'none'}")


def _from_outside(name: str, options: Mapping[str, Any], server: ServerInputs, seed: int, public: bool) -> Rule | Strategy:
    """A user's Flower strategy, `Rule`, or plain function `(updates, weights, **options) -> (d,)`. Raises TypeError for anything else, and
    OutsideCodeError if a strategy cannot be made."""
    thing = strategies.find(name)
    if isinstance(thing, type) and issubclass(thing, Strategy):
        with seeded_global_generators(seed, "strategy"), outside_call(lambda error: OutsideCodeError(error_words(error, thing))):
            return thing(**options)
    if isinstance(thing, Rule):
        for slot, clip in (("before", thing.before), ("after", thing.after)):
            if clip is not None and not isinstance(clip, Clip):  # pyright: ignore[reportUnnecessaryIsInstance] - the user's
                raise TypeError(f"expected Rule.{slot} to be a fl_sim.Clip(norm, bound) or None, got {type(clip).__name__}")
        return replace(thing, combine=OwnCombine(name, thing.combine, options, server, seed, public=public)) if thing.combine else thing
    if isinstance(thing, type) or not callable(thing):
        raise TypeError(
            "expected a subclass of flwr.serverapp.strategy.Strategy, a fl_sim.Rule, or a function (updates, weights, **options), "
            f"got {thing!r}"
        )
    own = {key: value for key, value in options.items() if key not in OPTIONAL}
    try:
        inspect.signature(thing).bind(None, None, **dict.fromkeys(optional_parameters(thing)), **own)
    except TypeError as error:
        takes = f"{getattr(thing, '__name__', 'it')}{inspect.signature(thing)}"
        raise TypeError(
            f"expected a function (updates, weights, **options), a fl_sim.Rule or a Flower Strategy, got {takes}: {error}"
        ) from None
    return Rule(combine=OwnCombine(name, thing, options, server, seed, public=public))


def _family_problem(name: str) -> str | None:
    """What is wrong with a name of ByzFL or Flower, empty if nothing; None for other names."""
    package, _, rest = name.partition(".")
    if package == "byzfl" and ":" not in name:
        if importlib.util.find_spec("byzfl") is None:
            return f"expected the optional package byzfl with strategy.name = {name!r}: {how_to_install('byzfl')}"
        *before, last = rest.split("+")
        if all(part in PRE_AGGREGATORS for part in before) and last in AGGREGATORS:
            return ""
        names = ", ".join(f"byzfl.{aggregator}" for aggregator in AGGREGATORS)
        near = difflib.get_close_matches(last, AGGREGATORS, n=1)
        hint = f"; did you mean {'byzfl.' + near[0]!r}?" if near else ""
        return (
            f"expected strategy.name to be one of {names}; before an aggregator go {', '.join(PRE_AGGREGATORS)}, as in byzfl.NNM+TrMean; "
            f"got {name!r}{hint}"
        )
    return "" if package == "flwr" and rest in FLOWER else None


strategies: Registry[Any] = Registry(
    "strategy",
    "strategy.name",
    {**RULES, "dgc": Rule, "dgc-2": Rule, **ROBUST},
    "fl_sim.strategies",
    callable=False,  # a `Rule` is not
    family=_family_problem,
    family_names=(*(f"flwr.{name}" for name in FLOWER), *(f"byzfl.{name}" for name in AGGREGATORS)),
)
