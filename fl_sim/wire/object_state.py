"""The one codec, from values to JSON and named tensors and back: for messages to workers, and for checkpoints. No pickle.

The records of `fl_sim.wire.messages` are restored as they were. Strategies and aggregators of other people (Flower's, ByzFL's, the user's)
keep their state in attributes: these are restored into a new object. Functions, classes and loggers are not saved: the new object has its
own.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import math
import random
import types
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fl_sim.training.clipping import Clip
from fl_sim.wire.arrays import array_record, from_record
from fl_sim.wire.messages import AttackState, CleaningCounts, ClientReport, CoalitionOrder, CoalitionReply, Order, PublicRule, Reply

MESSAGES: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (Clip, AttackState, CleaningCounts, ClientReport, CoalitionOrder, CoalitionReply, Order, PublicRule, Reply)
}
KEYS = frozenset({bool, int, str, tuple})  # types of a mapping's keys
PLAIN = frozenset({bool, int, str, float, type(None)})  # types that JSON has

CONSTANT = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, logging.Logger, np.ufunc)
OPAQUE = (Mapping, list, tuple, set, random.Random, enum.Enum, torch.nn.Module, Tensor, np.ndarray)  # hold more than their attributes


class State(NamedTuple):
    """An encoded value: JSON, and the tensors that it refers to by name."""

    json: Any
    tensors: Mapping[str, Tensor]


class UnsavableError(TypeError):
    """An object holds something that cannot be encoded: neither numbers, text or arrays, nor made of them."""


def pack(value: Any) -> State:
    """The state of a value, with the same tensors: for messages, which nobody writes into. Raises UnsavableError."""
    tensors: dict[str, Tensor] = {}
    return State(_encode(value, "", tensors, ()), tensors)


def unpack(state: State) -> Any:
    """The value of a state that `pack` made, with the same tensors."""
    return _decode(state.json, state.tensors, None)


def save_state(value: Any) -> State:
    """The state of a value; its tensors and arrays are copied. Raises UnsavableError."""
    state = pack(value)
    return State(state.json, {name: tensor.clone() for name, tensor in state.tensors.items()})


def restore_state(state: State, like: Any = None) -> Any:
    """The value of a state, with copies of its tensors. `like` is a new value, made in the same way as the saved one: the attributes of its
    objects are set to the saved ones.

    Raises UnsavableError for an object that `like` does not have.
    """
    return _decode(state.json, {name: tensor.clone() for name, tensor in state.tensors.items()}, like)


def _encode(value: Any, path: str, tensors: dict[str, Tensor], within: tuple[int, ...]) -> Any:
    if value is None or (isinstance(value, bool | int | str) and type(value) in (bool, int, str)):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}  # JSON writes a finite one exactly
    if type(value) is Tensor:
        return {"tensor": _add_tensor(value.detach(), path, tensors)}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        return {"array" if isinstance(value, np.ndarray) else "scalar": _add_tensor(torch.from_numpy(np.array(value)), path, tensors)}
    if isinstance(value, ArrayRecord):
        return {"record": _encode(from_record(value), path, tensors, within)}
    if isinstance(value, CONSTANT):
        return {"constant": None}
    if id(value) in within:
        raise UnsavableError(f"{path} holds itself")
    within = (*within, id(value))
    if type(value).__name__ in MESSAGES and type(value) is MESSAGES[type(value).__name__]:
        fields = getattr(value, "_fields", None) or [field.name for field in dataclasses.fields(cast(Any, value))]
        return {"message": [type(value).__name__, *(_encode(getattr(value, name), _join(path, name), tensors, within) for name in fields)]}
    if type(value) in (list, tuple) and value:
        entries = cast(list[Any], value)
        kinds: set[type] = set(map(type, entries))
        if kinds <= PLAIN and (float not in kinds or all(map(math.isfinite, filter(_is_float, entries)))):
            return {"list" if type(value) is list else "tuple": list(entries)}
        if kinds == {ClientReport}:  # hundreds of them: by columns
            return {"reports": [list(column) for column in zip(*entries, strict=True)]}
    if type(value) in (list, tuple) or hasattr(value, "_fields"):
        names = getattr(value, "_fields", range(len(cast(list[Any], value))))
        items = [_encode(item, _join(path, name), tensors, within) for name, item in zip(names, cast(list[Any], value), strict=True)]
        return {"list" if isinstance(value, list) else "fields" if hasattr(value, "_fields") else "tuple": items}
    if type(value) in (dict, types.MappingProxyType) and KEYS.issuperset(map(type, cast(Mapping[Any, Any], value))):
        entries = cast(Mapping[Any, Any], value).items()
        pairs = [(list(key) if type(key) is tuple else key, _encode(item, _join(path, key), tensors, within)) for key, item in entries]
        return {"dict": pairs}
    if hasattr(value, "__dict__") and not isinstance(value, OPAQUE):
        attributes = {name: _encode(item, _join(path, name), tensors, within) for name, item in vars(value).items()}
        return {"object": attributes}
    raise UnsavableError(f"{path} is a {type(value).__name__}")


def _is_float(value: Any) -> bool:
    return type(value) is float


def _add_tensor(value: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    """Add a tensor to `tensors`; its name there: its path, or with `'` appended if that is taken."""
    name = path
    while name in tensors:
        name += "'"
    tensors[name] = value
    return name


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _decode(value: Any, tensors: Mapping[str, Tensor], like: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = cast(dict[str, Any], value).items()
    match kind:
        case "float":
            return float(content)
        case "message":
            name, *fields = content
            return MESSAGES[name](*(_decode(field, tensors, None) for field in fields))
        case "reports":
            return tuple(map(ClientReport, *content))
        case "tensor":
            return tensors[content]
        case "array" | "scalar":
            array = tensors[content].numpy().copy()
            return array if kind == "array" else array[()]
        case "record":
            return array_record({name: tensor.numpy() for name, tensor in _decode(content, tensors, None).items()})
        case "list" | "tuple" | "fields":
            likes = list(like) if isinstance(like, list | tuple) and len(cast(list[Any], like)) == len(content) else [None] * len(content)
            items = [_decode(item, tensors, old) for item, old in zip(content, likes, strict=True)]
            if kind == "fields":
                if not hasattr(like, "_fields"):
                    raise UnsavableError("a NamedTuple cannot be restored: a new object of its holder has none")
                return type(like)(*items)
            return items if kind == "list" else tuple(items)
        case "dict":
            likes_by_key = cast(Mapping[Any, Any], like) if isinstance(like, Mapping) else {}
            keys = [tuple(key) if isinstance(key, list) else key for key, _ in content]
            return {key: _decode(item, tensors, likes_by_key.get(key)) for key, (_, item) in zip(keys, content, strict=True)}
        case "object":
            if not hasattr(like, "__dict__"):
                names = ", ".join(content)
                raise UnsavableError(f"an object with {names} cannot be restored: a new object of its holder has none")
            for name, item in content.items():
                vars(like)[name] = _decode(item, tensors, vars(like).get(name))
            return like
        case _:
            return like
