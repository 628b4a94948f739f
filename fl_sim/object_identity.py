"""Digests of Python objects that stand for names: another as soon as anything changes that can change what the object does.

Covered: the bytecode, constants and defaults of functions; what they close over; the variables, functions and classes that they use of the
user's modules, and what those use; bound objects and the state of instances; every number of tensors and arrays. What Python, installed
packages and fl-sim define is covered by its name. Not covered: files that the code reads, and what it looks up by a computed name.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import sys
import sysconfig
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from fl_sim.sources import INSTALLED, OURS

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), type(NotImplemented))
LOCKS = (type(threading.Lock()), type(threading.RLock()))
BY_NAME = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType,
           types.GetSetDescriptorType, types.MemberDescriptorType, types.ClassMethodDescriptorType)  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent
# Of a class: what Python or a decorator adds, and what documents it.
NO_BEHAVIOUR = frozenset({
    "__abstractmethods__", "__annotate__", "__annotate_func__", "__annotations__", "__annotations_cache__", "__conditional_annotations__",
    "__dataclass_fields__", "__dataclass_params__", "__dict__", "__doc__", "__firstlineno__", "__module__", "__orig_bases__",
    "__parameters__", "__qualname__", "__static_attributes__", "__weakref__", "_abc_impl",
})  # fmt: skip


class UnidentifiedError(ValueError):
    """An object holds something whose content cannot be read, such as a generator or an open file. The message names it."""


def object_digest(thing: object) -> str:
    """Twelve hex digits of all that can change what an object does. Raises UnidentifiedError."""
    digest = hashlib.sha256()
    try:
        for part in _parts(thing, {}):
            digest.update(struct.pack("<Q", len(part)) + part)
    except UnidentifiedError:
        raise
    except Exception as error:  # a property or a `__reduce__` of the user's, a structure that is nested too deep
        raise UnidentifiedError(f"{type(error).__name__}: {error}") from error
    return digest.hexdigest()[:12]


def _parts(thing: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """The bytes that make up an object's content. What was seen already, by its id, is its number."""
    if isinstance(thing, PLAIN) and type(thing) in PLAIN:
        yield repr(thing).encode("utf-8", "surrogatepass")
        return
    if id(thing) in seen:
        yield f"seen {seen[id(thing)][0]}".encode()
        return
    kind = type(thing)
    if kind not in (tuple, frozenset):  # Python may or may not share equal ones
        seen[id(thing)] = len(seen), thing  # kept, because the id of an object that is gone is used again
    yield f"{kind.__module__}.{kind.__qualname__}".encode()
    content: Any
    if isinstance(thing, types.FunctionType):
        content = _function(thing)
    elif isinstance(thing, types.CodeType):
        content = _code(thing)
    elif isinstance(thing, types.MethodType):
        content = [thing.__func__, thing.__self__]
    elif isinstance(thing, type):
        content = _class(thing)
    elif isinstance(thing, types.ModuleType):
        content = _module(thing, [name for name in vars(thing) if not name.startswith("__")])
    elif isinstance(thing, (staticmethod, classmethod)):
        content = cast(Any, thing).__func__
    elif isinstance(thing, property):
        content = [thing.fget, thing.fset, thing.fdel]
    elif isinstance(thing, functools.cached_property):
        content = thing.func
    elif isinstance(thing, functools.partial):
        content = [thing.func, list(thing.args), thing.keywords, vars(thing)]
    elif isinstance(thing, BY_NAME):
        owner = getattr(thing, "__self__", None)
        content = [_name(thing), None if isinstance(owner, types.ModuleType | type) else owner]
    elif isinstance(thing, LOCKS):
        return
    elif (numbers := _numbers(thing)) is not None:
        yield from numbers
        return
    elif kind in (list, tuple, dict, set, frozenset, types.MappingProxyType):
        yield from _items(thing, seen)
        return
    else:
        content = _instance(thing, seen)
    yield from _parts(content, seen)


def _items(thing: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """The items of a container, after their number; of a set in an order that does not depend on the process."""
    yield str(len(thing)).encode()
    if isinstance(thing, Mapping):
        for key, value in cast(Mapping[Any, Any], thing).items():
            yield from _parts(key, seen)
            yield from _parts(value, seen)
    elif isinstance(thing, Sequence):
        for value in cast(Sequence[Any], thing):
            yield from _parts(value, seen)
    else:
        yield from sorted(object_digest(value).encode() for value in thing)


def _numbers(thing: Any) -> list[bytes] | None:
    """Type, shape and every number of a tensor or an array, the state of a generator; None for anything else."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch and isinstance(thing, torch.Generator):
        return [thing.get_state().numpy().tobytes()]
    if torch and isinstance(thing, torch.Tensor):
        tensor = thing.detach().cpu().resolve_conj().resolve_neg().reshape(-1).contiguous()
        numbers = tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        return [f"{thing.dtype} {tuple(thing.shape)} {thing.requires_grad}".encode(), numbers]
    if numpy and isinstance(thing, numpy.ndarray) and not thing.dtype.hasobject:
        return [f"{thing.dtype} {thing.shape}".encode(), numpy.ascontiguousarray(thing).tobytes()]
    return None


def _function(function: types.FunctionType) -> list[Any]:
    """What a function does: its code and what that uses, or its name if it is an installed one; what was bound to it."""
    bound = [function.__defaults__, function.__kwdefaults__, _closure(function), vars(function)]
    if not _is_users(function.__globals__.get("__name__")):
        return [_name(function), *bound]
    return [function.__code__, *bound, _used(function.__globals__, _names(function.__code__))]


def _closure(function: types.FunctionType) -> list[Any]:
    """The values of the variables that a function closes over."""
    values: list[Any] = []
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            values.append(NotImplemented)
    return values


def _code(code: types.CodeType) -> list[Any]:
    """What a code object does, without its place in a file."""
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
    return [code.co_code, code.co_consts, code.co_exceptiontable, *counts, *names]


def _names(code: types.CodeType) -> list[str]:
    """The names of globals and attributes in a function's code, functions inside it included."""
    inner = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in _names(constant)]
    return sorted({*code.co_names, *inner})


def _used(variables: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The variables of a module that code with these names uses; of another module, those of its variables that it uses."""
    values = {name: variables[name] for name in names if name in variables}
    return {
        name: _module(value, names) if isinstance(value, types.ModuleType) and value.__dict__ is not variables else value
        for name, value in values.items()
        if not (isinstance(value, types.ModuleType) and value.__dict__ is variables)
    }


def _module(module: types.ModuleType, names: Sequence[str]) -> Any:
    """A module by its name; of the user's also its variables of these names."""
    return [module.__name__, _used(vars(module), names) if _is_users(module.__name__) else {}]


def _class(kind: type) -> Any:
    """What the user's classes among a class and its bases define, by name; an installed class by its name."""
    if not _is_users(kind.__module__):
        return _name(kind)
    members = {name: value for name, value in vars(kind).items() if name not in NO_BEHAVIOUR}
    return [kind.__name__, list(kind.__bases__), type(kind), members]


def _instance(thing: Any, seen: dict[int, tuple[int, Any]]) -> Any:
    """The class and the state of an instance: its attributes, or what it would be pickled as."""
    kind = type(thing)
    if _is_users(kind.__module__):
        slots = [slot for base in kind.__mro__ for slot in _slots(base) if hasattr(thing, slot)]
        items = next((plain(thing) for plain in (list, tuple, dict, set, frozenset) if isinstance(thing, plain)), None)
        value = next((cast(Any, plain).__repr__(thing) for plain in (int, float, complex, str, bytes) if isinstance(thing, plain)), None)
        return [kind, getattr(thing, "__dict__", {}), {slot: getattr(thing, slot) for slot in slots}, items, value]
    try:
        reduced = thing.__reduce_ex__(4)
    except Exception as error:
        raise UnidentifiedError(f"the content of {_shown(thing)} cannot be read") from error
    if isinstance(reduced, str):
        return [kind, reduced, getattr(thing, "__dict__", {})]  # a wrapper such as lru_cache's has `__wrapped__`
    return [kind, *(list(part) if number > 2 and part is not None else part for number, part in enumerate(reduced))]


def _slots(kind: type) -> list[str]:
    return [name for name, value in vars(kind).items() if isinstance(value, types.MemberDescriptorType)]


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', repr(type(thing)))}"


def _shown(thing: Any) -> str:
    text = repr(thing)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_users(module: str | None) -> bool:
    """Whether a module is the user's: not of Python, of an installed package or of fl-sim."""
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if module in ("__main__", None) or (module not in sys.modules and str(module).partition(".")[0] not in sys.stdlib_module_names):
        return True
    return bool(file) and not _is_installed(str(file))


@lru_cache(maxsize=4096)
def _is_installed(file: str) -> bool:
    path = Path(file).resolve()
    if any(part in INSTALLED for part in path.parts) or any((ROOT / name) in path.parents for name in OURS):
        return True
    return any(Path(sysconfig.get_path(name)).resolve() in path.parents for name in ("stdlib", "platstdlib"))
