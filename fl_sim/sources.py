"""Digests of code and objects from outside the repository: the same for equal content, another as soon as it changes."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

OURS = ("fl_sim", "strategies", "clients", "experiments")  # a commit is in `meta.json`
INSTALLED = ("site-packages", "dist-packages", "lib-dynload")
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def local_sources(path: Path) -> dict[Path, bytes]:
    """A Python file and every local file that it imports, directly or through another, with their content; the file itself is first.

    Local is what lies in a folder of `sys.path` that holds no installed packages. Only `import` statements count, in functions too: not
    `importlib`, and no data that code reads. Raises OSError if the file cannot be read.
    """
    sources, waiting = dict[Path, bytes](), [path]
    while waiting:
        file = waiting.pop()
        if file in sources:
            continue
        sources[file] = file.read_bytes()
        for module, level in _imports(sources[file]):
            waiting += [other for other in _files_of(module, level, file) if other not in sources]
    return sources


def source_digest(path: Path) -> str:
    """Sixteen hex digits of a Python file's content and of the local files that it imports. Raises OSError if it cannot be read."""
    own, *others = local_sources(path).items()
    digest = hashlib.sha256(own[1])
    for name, content in sorted((file.name, content) for file, content in others):
        digest.update(f"\n{name} {hashlib.sha256(content).hexdigest()}".encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=256)
def _imports(source: bytes) -> tuple[tuple[str, int], ...]:
    """The dotted names that a source imports, each with the number of leading dots. `from a import b` gives a and a.b."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # it is named when it is loaded
        return ()
    names: dict[tuple[str, int], None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= dict.fromkeys((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names |= dict.fromkeys([(base, node.level), *((f"{base}.{alias.name}".strip("."), node.level) for alias in node.names)])
    return tuple(name for name in names if name[1] or name[0].partition(".")[0] not in (*OURS, *sys.stdlib_module_names))


def _files_of(module: str, level: int, importer: Path) -> Iterator[Path]:
    """The local files that importing a dotted name executes: the packages above it and the module."""
    roots = [importer.parents[level - 1]] if level and level <= len(importer.parents) else [] if level else _local_roots(tuple(sys.path))
    for root in roots:
        place, files = root, list[Path]()
        for part in filter(None, module.split(".")):
            place = place / part
            if (package := place / "__init__.py").is_file():
                files.append(package)
            elif (file := place.with_name(f"{part}.py")).is_file():
                files.append(file)
                break
            elif not place.is_dir():
                break
        if files:
            yield from files
            return


@lru_cache(maxsize=8)
def _local_roots(search_path: tuple[str, ...]) -> list[Path]:
    """The folders of a module search path without the standard library's and those of installed packages."""
    installed = {Path(place).resolve() for place in sysconfig.get_paths().values()}
    roots = [Path(place or ".").resolve() for place in search_path]
    return [root for root in roots if root.is_dir() and root not in installed and root.name not in INSTALLED]


def object_digest(thing: object) -> str:
    """Twelve hex digits of an object: its source, the variables that a function closes over or finds in its module, the attributes of an
    instance, the numbers of tensors and arrays."""
    digest = hashlib.sha256()
    for part in _parts(thing, {}):
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()[:12]


def _parts(thing: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    """The bytes that make up an object's content. What was seen already, by its id, is left out."""
    if isinstance(thing, PLAIN):
        yield repr(thing).encode()
        return
    if id(thing) in seen:
        return
    seen[id(thing)] = thing
    yield type(thing).__name__.encode()
    if isinstance(thing, torch.Tensor):
        yield f"{thing.dtype} {tuple(thing.shape)}".encode()
        yield thing.detach().cpu().flatten().view(torch.uint8).numpy().tobytes() if thing.numel() else b""
    elif isinstance(thing, np.ndarray):
        yield f"{thing.dtype} {thing.shape}".encode()
        yield repr(thing.tolist()).encode() if thing.dtype.hasobject else np.ascontiguousarray(thing).tobytes()
    elif isinstance(thing, Mapping):
        for key, value in cast(Mapping[Any, Any], thing).items():
            yield from _parts(key, seen)
            yield from _parts(value, seen)
    elif isinstance(thing, AbstractSet):
        yield repr(sorted(map(repr, cast(AbstractSet[Any], thing)))).encode()
    elif isinstance(thing, Sequence):
        for value in cast(Sequence[Any], thing):
            yield from _parts(value, seen)
    elif isinstance(thing, functools.partial):
        yield from _parts([thing.func, list(thing.args), thing.keywords], seen)
    elif isinstance(thing, types.MethodType):
        yield from _parts([thing.__func__, thing.__self__], seen)
    elif isinstance(thing, types.FunctionType):
        yield _source(thing)
        yield from _parts([thing.__defaults__, thing.__kwdefaults__, _closure(thing), _globals(thing)], seen)
    elif isinstance(thing, type):
        yield _source(thing)
        methods = [value for value in vars(thing).values() if isinstance(value, types.FunctionType)]
        yield from _parts([_globals(method) for method in methods], seen)
    elif hasattr(thing, "__dict__") and not isinstance(thing, types.ModuleType):
        yield from _parts([type(thing), vars(thing)], seen)
    else:
        yield repr(thing).encode()  # perhaps with its address: another run each time, rather than the records of a different object


def _source(thing: Any) -> bytes:
    try:
        return inspect.getsource(thing).encode()
    except (OSError, TypeError):
        return repr(thing).encode()


def _closure(function: types.FunctionType) -> list[Any]:
    """The values of the variables that a function closes over."""
    values: list[Any] = []
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            values.append(None)
    return values


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """What a function uses of its own module: functions and classes of it, and values. Not what it imports."""
    used: dict[str, Any] = {}
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        own = isinstance(value, types.FunctionType | type) and value.__module__ == function.__module__
        if own or isinstance(value, (*PLAIN, list, tuple, dict, set, torch.Tensor, np.ndarray)):
            used[name] = value
    return used


def _names(code: types.CodeType) -> list[str]:
    """The global names in a function's code, functions inside it included."""
    inner = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in _names(constant)]
    return sorted({*code.co_names, *inner})
