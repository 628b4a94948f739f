"""The arguments of `fl_sim.run` and `fl_sim.sweep`: what may be an object, in which form, and which arguments there are."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from torch import nn

from clients.accumulative.objectives import Aim
from clients.action import Action
from fl_sim.config.options import OPTIONS
from fl_sim.config.resolve import ConfigError, default_flat, flatten
from fl_sim.registry import offer
from strategies.rule import Rule

OBJECTS = {
    "attack": "attack.name",
    "objective": "attack.objective",
    "strategy": "strategy.name",
    "cleaning": "cleaning.name",
    "model": "model.name",
    "data": "data.name",
    "partition": "data.partition",
    "tracking": "tracking",
}
FORMS = {
    "attack": "a function (knowledge, state) -> Action",
    "objective": "a function (knowledge, theta, trigger) -> Aim",
    "strategy": "a function (updates, weights) -> update, a fl_sim.Rule, or a subclass of Flower's Strategy",
    "cleaning": "a function (batch, context) -> batch",
    "model": "a class or a function (image_shape, num_classes) that makes an nn.Module",
    "data": "a function (root) -> (train, test)",
    "partition": "a function (labels, num_clients, generator) -> list of index arrays",
    "tracking": "a class or a function (folder, config) that makes a tracker",
}


class Things(TypedDict, total=False):
    """What may be given as an object or as a name, in the forms of docs/contributing.md."""

    attack: str | Callable[..., Action]
    objective: str | Callable[..., Aim]
    cleaning: str | Callable[..., Any]
    strategy: str | Rule | type | Callable[..., Any]
    model: str | Callable[..., nn.Module]
    data: str | Callable[..., Any]
    partition: str | Callable[..., Any]
    tracking: str | Callable[..., Any]


class Options(Things, total=False):
    """And how a run is run."""

    output_dir: str | Path
    transport: str
    workers: int
    progress: bool


def expect_known(function: str, options: Iterable[str], *others: str) -> None:
    """Raise TypeError for arguments that a function does not have. Args: others, arguments besides those of `Options`."""
    known = [*others, *Options.__annotations__]
    for name in options:
        if name in known:
            continue
        key = next((key for key in (name, name.replace("_", "-")) if key in default_flat()), "")
        near = difflib.get_close_matches(name, known, n=1)
        if key:
            hint = f"; a key goes into the second argument: {{{key!r}: ...}}"
        elif name in ("settings", "base", "spec"):
            hint = f"; its first two arguments have no names: {function}('digits', {{'seed': 3}})"
        else:
            hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"{function} has no argument {name!r}; it takes {', '.join(known)}{hint}")


def named(options: Mapping[str, Any]) -> dict[str, str]:
    """The keys that the things among the arguments of a call set: names as they are, objects by names that stand for them.

    Raises ConfigError for an object of another form.
    """
    things = {name: options[name] for name in OBJECTS if name in options}
    if problems := [problem for name, thing in things.items() if (problem := _form_problem(name, thing))]:
        raise ConfigError(problems)
    return {OBJECTS[name]: thing if isinstance(thing, str) else offer(thing) for name, thing in things.items()}


def _form_problem(name: str, thing: object) -> str:
    made = name == "model" and isinstance(thing, nn.Module)
    if isinstance(thing, str) or (name == "strategy" and isinstance(thing, Rule)) or (callable(thing) and not made):
        return ""
    got = f"the module itself ({type(thing).__name__})" if made else repr(thing) if thing is None else f"a {type(thing).__name__}"
    return f"expected {name} to be a name or {FORMS[name]}, got {got}"


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat keys of settings in which sections may be tables: `{"strategy": {"name": "mean"}}` is `{"strategy.name": "mean"}`."""
    flat = dict[str, Any]()
    for key, value in settings.items():
        flat |= flatten({key: cast(Mapping[str, Any], value)}) if isinstance(value, Mapping) and key not in OPTIONS else {key: value}
    return flat
