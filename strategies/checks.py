"""Checks of `strategy.*` before a run: what cannot work, what would be no defence, and what may surprise."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any

from flwr.serverapp.strategy import FedAvgM, Strategy

from fl_sim.config.keys import Config
from fl_sim.config.options import options_text, parse_options
from fl_sim.data.sampling import most_malicious
from strategies.byzfl_rules import ByzflCombine
from strategies.catalogue import GUARDS, instance_of, options_of, publishes_combination, strategies, told_by_key
from strategies.dgc.guard import guard_problems
from strategies.flower_host import makes_own_step
from strategies.guarantees import assumed_malicious, guarantee_problem, tolerated
from strategies.own_rule import OwnCombine
from strategies.rule import RULES, OptionError
from strategies.trial import Trial, trial_inputs, try_byzfl, try_function, try_inner

NOT_CALLED = {
    "start": "the phases of an attack decide which round follows",
    "configure_evaluate": "the server evaluates on its own test set",
    "aggregate_evaluate": "the server evaluates on its own test set",
}


def strategy_problems(config: Config) -> list[str]:
    """What is wrong with `strategy.*`, one sentence per problem. Builds a strategy of Flower, ByzFL or the user. One of Flower or ByzFL
    must be able to hold its guarantee with the clients of a round, and is tried once on random vectors."""
    settings = config.strategy
    if settings.name in RULES or settings.name in GUARDS:
        superfluous = [f"expected strategy.options to be empty with strategy.name = {settings.name!r}, got {settings.options!r}"]
        problems = (superfluous if settings.options else []) + (guard_problems(settings) if settings.name == "dgc" else [])
        return problems + _optimiser_problems(config, is_flowers=False)
    known = settings.name in strategies.table or strategies.outside(settings.name)
    if not known and (strategies.family is None or strategies.family(settings.name) is None):
        return []  # an unknown name: `resolve` says so
    made = f"strategy.name = {settings.name!r} with strategy.options = {settings.options!r}"
    try:
        instance = instance_of(config)
    except Exception as error:
        return [f"cannot make {made}: {error}"]
    problems = _optimiser_problems(config, is_flowers=isinstance(instance, Strategy))
    try:
        text = _tried(config).problem if not problems else ""
    except OptionError as error:
        return [f"{error}, with strategy.name = {settings.name!r}"]
    if text:
        told = f" (strategy.assumed-malicious: {assumed_malicious(config)})" if told_by_key(config) else ""
        problems.append(f"{made}{told} is no defence of {config.clients_per_round} clients a round: {text}")
    return problems


def rehearsal_problem(config: Config, asks: str) -> str:
    """Why a coalition cannot try the rule, in words with the setting that `asks` for it; empty if it can: the rule must say how it
    combines."""
    if publishes_combination(config):
        return ""
    rule = instance_of(config, public=True)
    needs = (
        "it is a strategy of Flower"
        if isinstance(rule, Strategy)
        else "it needs the model"
        if rule.needs.model
        else "it needs the server's data"
    )
    return f"expected a rule that publishes how it combines with {asks}, got strategy.name = {config.strategy.name!r}: {needs}"


def _optimiser_problems(config: Config, *, is_flowers: bool) -> list[str]:
    if is_flowers or config.strategy.optimiser == "server":
        return []
    name = config.strategy.name
    return [f"expected strategy.optimiser = 'server' with strategy.name = {name!r}, which has no optimiser of its own, got 'own'"]


def _tried(config: Config) -> Trial:
    """The trial of a published defence or a strategy of Flower or ByzFL; of the user's own nothing is wrong, because it may depend on the
    model."""
    if strategies.outside(config.strategy.name):
        return Trial("", config.clients_per_round)
    what: dict[str, Any] = {
        "device": "cpu",
        "data": {"num-clients": config.clients_per_round},
        "client": {"learning-rate": config.client.learning_rate},
        "server": {"learning-rate": config.server.learning_rate, "momentum": config.server.momentum},
        "strategy": {"name": config.strategy.name, "options": options_text(options_of(config)), "optimiser": config.strategy.optimiser},
    }
    return _trial(json.dumps(what))


@lru_cache(maxsize=256)
def _trial(what: str) -> Trial:
    """A trial by the keys that it depends on, as JSON: a sweep tries each strategy once."""
    config = Config.model_validate(json.loads(what))
    n, name = config.clients_per_round, config.strategy.name
    if text := guarantee_problem(name, parse_options(config.strategy.options), n):
        return Trial(text, n)
    instance = instance_of(config, trial_inputs(n))
    if isinstance(instance, Strategy):
        return try_inner(instance, config)
    assert isinstance(instance.combine, ByzflCombine | OwnCombine)
    return Trial(try_byzfl(instance.combine, n) if isinstance(instance.combine, ByzflCombine) else try_function(instance.combine, n), n)


def strategy_notes(config: Config) -> list[str]:
    """What a valid strategy does other than one may expect, one sentence each: methods of a user's Flower strategy that are never called, a
    step of its own, clients that it does not ask, more malicious clients than it is made for."""
    name, settings = config.strategy.name, config.strategy
    if name in RULES or name in GUARDS:
        unbounded = name.startswith("clip-") and math.isinf(settings.bound)
        return [f"{name} with strategy.bound = inf never clips: it is the mean"] if unbounded else []
    instance, notes = instance_of(config), list[str]()
    if told_by_key(config):
        f, by_default = assumed_malicious(config), config.strategy.assumed_malicious < 0
        why = "the number in this configuration" if by_default else "strategy.assumed-malicious"
        notes.append(f"{name} expects {f} malicious clients of {config.clients_per_round} a round ({why})")
    if isinstance(instance, Strategy):
        if strategies.outside(name):
            own = [method for method in NOT_CALLED if not _is_flowers(getattr(type(instance), method))]
            notes += [f"{name}: {method} is not called ({NOT_CALLED[method]})" for method in own]
        if makes_own_step(instance) and settings.optimiser == "server":
            notes.append(f"{name} is a server optimiser: it makes its own step, without server.learning-rate and server.momentum")
        if isinstance(instance, FedAvgM) and not instance.server_opt:
            notes.append(f"{name} with server_momentum = 0 and server_learning_rate = 1 is flwr.FedAvg with strategy.optimiser = 'own'")
    if (asked := _tried(config).asked) < config.clients_per_round:
        notes.append(
            f"{name} asks {asked} of the {config.clients_per_round} sampled clients a round: attack.poison-ratio is then a mean, not exact"
        )
    f, malicious = tolerated(name, options_of(config), config.clients_per_round), most_malicious(config)
    if f is not None and malicious > f:
        notes.append(
            f"{name} is made for at most {f} malicious clients of {config.clients_per_round}: this run has up to {malicious} a round"
        )
    return notes


def _is_flowers(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("flwr.")
