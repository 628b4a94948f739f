"""What objects remember, as JSON and named tensors, and back into objects made anew: checkpoints hold no pickle.

Other people's strategies and aggregators (Flower's, ByzFL's, the user's) keep their state in attributes. What a constructor was given and
cannot change (functions, classes, loggers) stays what the new object has.
"""

from __future__ import annotations

import logging
import random
import types
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fl_sim.params import array_record, from_record

CONSTANT = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, logging.Logger, np.ufunc)


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
    """The value of a state. Objects take what they remembered: `like` has them, made anew as the saved value was."""
    return _decoded(state.json, state.tensors, like)


def _encoded(value: Any, path: str, tensors: dict[str, Tensor], within: tuple[int, ...]) -> Any:
    if value is None or (isinstance(value, bool | int | str) and type(value) in (bool, int, str)):
        return value
    if type(value) is float:
        return {"float": value.hex()}  # exactly, and infinity too
    if type(value) is Tensor:
        tensors[path] = value.detach().clone()
        return {"tensor": path}
    if isinstance(value, np.ndarray | np.generic):
        tensors[path] = torch.from_numpy(np.array(value))
        return {"array" if isinstance(value, np.ndarray) else "scalar": path}
    if isinstance(value, ArrayRecord):
        return {"record": _encoded(from_record(value), path, tensors, within)}
    if isinstance(value, CONSTANT):
        return {"constant": None}
    if id(value) in within:
        raise UnsavableError(f"{path} holds itself")
    within = (*within, id(value))
    if isinstance(value, list | tuple):
        names = getattr(value, "_fields", range(len(cast(list[Any], value))))
        items = [_encoded(item, _join(path, name), tensors, within) for name, item in zip(names, cast(list[Any], value), strict=True)]
        return {"list" if isinstance(value, list) else "tuple": items}
    if isinstance(value, Mapping):
        entries = cast(Mapping[Any, Any], value).items()
        return {"dict": [[_encoded(k, path, tensors, within), _encoded(v, _join(path, k), tensors, within)] for k, v in entries]}
    if hasattr(value, "__dict__") and not isinstance(value, random.Random | torch.nn.Module | Tensor):
        attributes = {name: _encoded(item, _join(path, name), tensors, within) for name, item in vars(value).items()}
        return {"object": attributes}
    raise UnsavableError(f"{path} is a {type(value).__name__}")


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
        case "list" | "tuple":
            likes = list(like) if isinstance(like, list | tuple) and len(cast(list[Any], like)) == len(held) else [None] * len(held)
            items = [_decoded(item, tensors, known) for item, known in zip(held, likes, strict=True)]
            if kind == "list":
                return items
            return type(like)(*items) if hasattr(like, "_fields") else tuple(items)
        case "dict":
            known = cast(Mapping[Any, Any], like) if isinstance(like, Mapping) else {}
            pairs = [(_decoded(key, tensors, None), item) for key, item in held]
            return {key: _decoded(item, tensors, known.get(key)) for key, item in pairs}
        case "object":
            for name, item in held.items():
                vars(like)[name] = _decoded(item, tensors, vars(like).get(name))
            return like
        case _:
            return like
