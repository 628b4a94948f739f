"""What objects remember, as JSON and named tensors, and back into objects made anew: checkpoints hold no pickle.

Other people's strategies and aggregators (Flower's, ByzFL's, the user's) keep their state in attributes. What a constructor was given and
cannot change (functions, classes, loggers) stays what the new object has.
"""

from __future__ import annotations

import enum
import logging
import random
import types
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fl_sim.wire.arrays import array_record, from_record

CONSTANT = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, logging.Logger, np.ufunc)
OPAQUE = (Mapping, list, tuple, set, random.Random, enum.Enum, torch.nn.Module, Tensor, np.ndarray)  # attributes are not all that they hold


class State(NamedTuple):
    """What an object remembers: JSON, and the tensors that it names."""

    json: Any
    tensors: Mapping[str, Tensor]


class UnsavableError(TypeError):
    """An object remembers something that is neither numbers, text, arrays nor made of them."""


def saved(value: Any) -> State:
    """The state of a value; its tensors and arrays are copied. Raises UnsavableError."""
    tensors: dict[str, Tensor] = {}
    return State(_encoded(value, "", tensors, ()), tensors)


def restored(state: State, like: Any = None) -> Any:
    """The value of a state. Objects take what they remembered: `like` has them, made anew as the saved value was.

    Raises UnsavableError for an object that `like` does not have.
    """
    return _decoded(state.json, state.tensors, like)


def _encoded(value: Any, path: str, tensors: dict[str, Tensor], within: tuple[int, ...]) -> Any:
    if value is None or (isinstance(value, bool | int | str) and type(value) in (bool, int, str)):
        return value
    if type(value) is float:
        return {"float": value.hex()}  # exactly, and infinity too
    if type(value) is Tensor:
        return {"tensor": _kept(value.detach().clone(), path, tensors)}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        return {"array" if isinstance(value, np.ndarray) else "scalar": _kept(torch.from_numpy(np.array(value)), path, tensors)}
    if isinstance(value, ArrayRecord):
        return {"record": _encoded(from_record(value), path, tensors, within)}
    if isinstance(value, CONSTANT):
        return {"constant": None}
    if id(value) in within:
        raise UnsavableError(f"{path} holds itself")
    within = (*within, id(value))
    if type(value) in (list, tuple) or hasattr(value, "_fields"):
        names = getattr(value, "_fields", range(len(cast(list[Any], value))))
        items = [_encoded(item, _join(path, name), tensors, within) for name, item in zip(names, cast(list[Any], value), strict=True)]
        return {"list" if isinstance(value, list) else "fields" if hasattr(value, "_fields") else "tuple": items}
    if type(value) in (dict, types.MappingProxyType) and all(type(key) in (bool, int, str) for key in cast(Mapping[Any, Any], value)):
        entries = cast(Mapping[Any, Any], value).items()
        return {"dict": [[key, _encoded(item, _join(path, key), tensors, within)] for key, item in entries]}
    if hasattr(value, "__dict__") and not isinstance(value, OPAQUE):
        attributes = {name: _encoded(item, _join(path, name), tensors, within) for name, item in vars(value).items()}
        return {"object": attributes}
    raise UnsavableError(f"{path} is a {type(value).__name__}")


def _kept(value: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    """The name under which a tensor is kept: its path, unless another has it."""
    name = path
    while name in tensors:
        name += "'"
    tensors[name] = value
    return name


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _decoded(value: Any, tensors: Mapping[str, Tensor], like: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, held),) = cast(dict[str, Any], value).items()
    match kind:
        case "float":
            return float.fromhex(held)
        case "tensor":
            return tensors[held].clone()
        case "array" | "scalar":
            array = tensors[held].numpy().copy()
            return array if kind == "array" else array[()]
        case "record":
            return array_record({name: tensor.numpy() for name, tensor in _decoded(held, tensors, None).items()})
        case "list" | "tuple" | "fields":
            likes = list(like) if isinstance(like, list | tuple) and len(cast(list[Any], like)) == len(held) else [None] * len(held)
            items = [_decoded(item, tensors, known) for item, known in zip(held, likes, strict=True)]
            if kind == "fields":
                if not hasattr(like, "_fields"):
                    raise UnsavableError("a NamedTuple was not there when its holder was made: nobody knows its class")
                return type(like)(*items)
            return items if kind == "list" else tuple(items)
        case "dict":
            known = cast(Mapping[Any, Any], like) if isinstance(like, Mapping) else {}
            return {key: _decoded(item, tensors, known.get(key)) for key, item in held}
        case "object":
            if not hasattr(like, "__dict__"):
                raise UnsavableError(f"an object with {', '.join(held)} was not there when its holder was made: nobody knows its class")
            for name, item in held.items():
                vars(like)[name] = _decoded(item, tensors, vars(like).get(name))
            return like
        case _:
            return like
