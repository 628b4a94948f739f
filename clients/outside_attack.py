"""The call of an attack: one from outside the repository gets copies of everything, and whatever it returns is checked."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clients.accumulative.objectives import objectives
from clients.action import Action
from clients.catalogue import attacks
from clients.knowledge import HonestSum, Knowledge
from fl_sim.config.keys import Config
from fl_sim.config.options import parse_options
from fl_sim.model.flat_model import FlatModel
from fl_sim.outside_code import OutsideCodeError, error_report, outside_call, with_place
from fl_sim.rng.streams import seeded_global_generators
from fl_sim.wire.messages import AttackState

OURS = (
    "shift_norm",
    "malicious_norm",
    "malicious_median",
    "honest_norm",
    "acted",
    "images",
    "image_shift",
    "images_corrected",
    "delivery_gap",
    "plain_gap",
)  # figures that the attack's caller sets


def checked_action(knowledge: Knowledge, state: AttackState, config: Config) -> Action:
    """The action of the attack `attack.name` in a round, with tensors of its own.

    An attack from outside gets copies, so that what it writes into, or keeps, changes no number of the run; meanwhile the global generators
    are seeded from the coalition's stream of this round. Raises OutsideCodeError if it raises or returns something that cannot be used.
    """
    name, options = config.attack.name, parse_options(config.attack.options)
    attack = attacks.find(name)
    if not attacks.outside(name) and not objectives.outside(config.attack.objective):
        return attack(knowledge, state, **options)
    shielded, shielded_state = _copies(knowledge, state)

    def failure(error: BaseException) -> Exception:
        return error if isinstance(error, OutsideCodeError) else OutsideCodeError(f"attack.name = {name!r}: {error_report(error, attack)}")

    with seeded_global_generators(knowledge.own_seed, "attack"), outside_call(failure):
        action = attack(shielded, shielded_state, **options)
        return _checked(name, attack, action, knowledge)


def _copies(knowledge: Knowledge, state: AttackState) -> tuple[Knowledge, AttackState]:
    """The same knowledge and state in other tensors, with a model of the attack's own."""
    seen = knowledge.seen
    copies = replace(
        knowledge,
        model=_model_copy(knowledge.model),
        theta=knowledge.theta.clone(),
        updates=knowledge.updates.clone(),
        weights=knowledge.weights.clone(),
        seen=HonestSum(seen.total.clone(), seen.weight) if seen else None,
    )
    return copies, AttackState({name: value.clone() for name, value in state.arrays.items()}, dict(state.scalars))


@lru_cache(maxsize=2)
def _model_copy(model: FlatModel) -> FlatModel:
    """A model that an attack may write into (a process-wide cache by the model)."""
    try:
        return copy.deepcopy(model)
    except Exception:  # a model from outside may hold anything, a lock for example
        return model


def _checked(name: str, attack: Any, action: Any, knowledge: Knowledge) -> Action:
    """What an attack returned as an Action with new tensors of the model's type. Raises OutsideCodeError."""
    whose = with_place(f"attack.name = {name!r}", attack)
    if not isinstance(action, Action):
        raise OutsideCodeError(f"expected {whose} to return a fl_sim.Action, got {_kind(action)}")
    problem = _updates_problem(action.updates, tuple(knowledge.updates.shape))
    if problem:
        raise OutsideCodeError(f"expected {whose} to return updates {problem}")
    return Action(
        updates=action.updates.detach().to(knowledge.updates, copy=True),
        state=_checked_state(whose, action.state, knowledge),
        metrics=_checked_metrics(whose, action.metrics),
        reason=_text(whose, action.reason),
        images=_checked_images(whose, action.images, knowledge),
    )


def _updates_problem(updates: Any, expected: tuple[int, ...]) -> str:
    """What is wrong with the updates of an action, as the end of "expected updates …"; empty if nothing."""
    words = f"of shape {expected}, one row per sampled member"
    if not isinstance(updates, Tensor):
        return f"{words}, got {_kind(updates)}"
    if tuple(updates.shape) != expected:
        return f"{words}, got {tuple(updates.shape)}"
    if updates.is_meta or updates.layout != torch.strided:
        return f"in memory as a dense tensor, got {'one on the meta device' if updates.is_meta else updates.layout}"
    return f"of real numbers, got {updates.dtype}" if updates.is_complex() or updates.is_quantized else ""


def _checked_images(whose: str, images: Any, knowledge: Knowledge) -> Tensor | None:
    """The images of an action, if it has any; `clients.images.enforcement` checks the pixels."""
    if images is None:
        return None
    problem = _updates_problem(images, tuple(knowledge.batches.inputs.shape)).replace(
        "one row per sampled member", "as Knowledge.batches.inputs"
    )
    if problem:
        raise OutsideCodeError(f"expected {whose} to return images {problem}")
    return images.detach().to(knowledge.batches.inputs, copy=True)


def _checked_state(whose: str, state: Any, knowledge: Knowledge) -> AttackState:
    if not isinstance(state, AttackState):
        raise OutsideCodeError(f"expected {whose} to return a fl_sim.AttackState, got {_kind(state)}")
    arrays = _mapping(f"{whose} to return a state whose arrays are", state.arrays, "tensors")
    for key, value in arrays.items():
        if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided:
            raise OutsideCodeError(f"expected {whose} to return a state with dense tensors as arrays, got {_kind(value)} as {key!r}")
    scalars = _mapping(f"{whose} to return a state whose scalars are", state.scalars, "numbers")
    return AttackState(
        {key: value.detach().to(knowledge.theta.device, copy=True) for key, value in arrays.items()},
        {key: _number(f"{whose} to return a state with numbers as scalars", key, value) for key, value in scalars.items()},
    )


def _checked_metrics(whose: str, metrics: Any) -> dict[str, float]:
    entries = _mapping(f"{whose} to return metrics that are", metrics, "numbers")
    numbers = {key: _number(f"{whose} to return numbers as metrics", key, value) for key, value in entries.items()}
    if taken := [key for key in OURS if key in numbers]:
        raise OutsideCodeError(f"expected {whose} to return metrics of other names than {', '.join(OURS)}, got {taken[0]!r}")
    if math.isnan(numbers.get("fired", 0.0)):
        raise OutsideCodeError(f"expected {whose} to return 0 or 1 as the metric 'fired', got nan")
    return numbers


def _mapping(expected: str, value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):  # pyright: ignore[reportUnknownVariableType]
        raise OutsideCodeError(f"expected {expected} {what} by name, got {_kind(value)}")
    return value  # pyright: ignore[reportUnknownVariableType]


def _text(whose: str, reason: Any) -> str:
    if not isinstance(reason, str):
        raise OutsideCodeError(f"expected {whose} to return a text as reason, got {_kind(reason)}")
    return reason


def _number(expected: str, key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise OutsideCodeError(f"expected {expected}, got {_kind(value)} as {key!r}") from None


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    plain = isinstance(value, bool | int | float | str | None)
    return f"{value!r}"[:60] if plain else type(value).__name__
