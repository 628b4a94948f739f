"""Looks up an attack, a rule, a model, a data set … by its name, in our tables or outside the repository.

Each table is a literal mapping in the module of the things that it lists. A name is a key of the table, an entry point that an installed
package declares in the table's group, `path/to/file.py:name`, or `package.module:name`.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import secrets
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Generic, TypeVar

from fl_sim.object_identity import UnidentifiedError, object_digest
from fl_sim.outside_code import error_words, outside_call
from fl_sim.signals import time_limit
from fl_sim.sources import local_sources, source_digest

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]  # the checkout, or site-packages


def how_to_install(extra: str, root: Path = ROOT) -> str:
    """The command that brings an extra: fl-sim is on no package index, so in a checkout it is that of the Makefile in `root`."""
    return f"make .venv in {root}" if (root / "Makefile").is_file() else f"pip install 'fl-sim[{extra}]'"


# The registry of each key, as "module:name": text, because most of these modules import this one.
REGISTRIES: Mapping[str, str] = {
    "data.name": "fl_sim.data.datasets:datasets",
    "data.partition": "fl_sim.data.partitions:partitions",
    "model.name": "fl_sim.model.architectures:models",
    "attack.name": "clients.catalogue:attacks",
    "attack.objective": "clients.accumulative.objectives:objectives",
    "cleaning.name": "clients.cleaning.catalogue:cleanings",
    "strategy.name": "strategies.catalogue:strategies",
    "tracking": "experiments.records.trackers:trackers",
}

_OFFERED: dict[str, Any] = {}  # objects of this process, by the names that `offer` returned
OUTSIDE = "fl_sim_outside_"  # first part of the names of modules of files
# What this process has loaded: by module the SHA-256 of its file as it was then, and by file the digest of it and of what it imports.
_CONTENTS: dict[str, str] = {}
_LATEST: dict[Path, str] = {}
_LOADING = threading.RLock()
LOAD_LIMIT = 300.0  # seconds that the import of a file from outside may take


class OutsideError(ImportError):
    """Something from outside the repository cannot be loaded. The message names the file or module and, if known, the line."""


@dataclass(frozen=True)
class Registry(Generic[T]):
    """The names that one key of the configuration accepts, and what they stand for.

    Args: kind, in words ("attack"); key, of the configuration; table, our own names; group, of entry points; extras, the optional package
    that a name of the table needs, which is also the name of fl-sim's extra; least_members, the fewest malicious clients of an attack;
    arguments, how many positional ones we pass (the others are options); callable, whether each of its things is called; options_taker,
    which part of an entry takes the options; family, a check of names that follow a pattern instead of standing in the table (`flwr.*`): it
    returns what is wrong, empty if nothing, and None for a name without the pattern; family_names, those names, for messages.
    """

    kind: str
    key: str
    table: Mapping[str, T]
    group: str
    extras: Mapping[str, str] = field(default_factory=dict[str, str])
    least_members: Mapping[str, int] = field(default_factory=dict[str, int])
    arguments: int = 0
    callable: bool = True
    options_taker: Callable[[Any], Any] = lambda thing: thing
    family: Callable[[str], str | None] | None = None
    family_names: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Every name that the key accepts, without files and modules."""
        return list(dict.fromkeys([*self.table, *self.family_names, *_entry_points(self.group)]))

    def problem(self, name: str) -> str:
        """What is wrong with a name, as a sentence; empty if it can be looked up. Loads a thing from outside."""
        if name in self.table:
            extra = self.extras.get(name, "")
            if extra and importlib.util.find_spec(extra) is None:
                return f"expected the optional package {extra} with {self.key} = {name!r}: {how_to_install(extra)}"
            return ""
        if self.family and (text := self.family(name)) is not None:
            return text
        if not self.outside(name):
            names = self.names()
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if (near := _nearest(name, names)) else ""
            return f"expected {self.key} to be one of {', '.join(names)}, or file.py:name or package.module:name, got {name!r}{hint}"
        try:
            thing = self.find(name)
            self.content(name)
        except OutsideError as error:
            return f"cannot load {self.key} = {name!r}: {error}"
        if self.callable and not callable(thing):
            return f"expected {self.key} = {name!r} to be something that can be called, got {type(thing).__name__}"
        return ""

    def outside(self, name: str) -> bool:
        """Whether a name stands for something from outside the repository."""
        return name not in self.table and (":" in name or name in _entry_points(self.group))

    def find(self, name: str) -> T:
        """What a name stands for. Raises KeyError for an unknown name, OutsideError for one that cannot be loaded."""
        if name in self.table:
            return self.table[name]
        if name in _entry_points(self.group):
            return load_outside(_entry_points(self.group)[name].value)
        if ":" in name:
            return load_outside(name)
        raise KeyError(name)

    def options_problem(self, name: str, options: Mapping[str, Any], key: str) -> str:
        """Which of the options, set by `key`, the thing of this name does not take; empty if it takes them all."""
        try:
            parameters = list(inspect.signature(self.options_taker(self.find(name))).parameters.values())[self.arguments :]
        except (TypeError, ValueError):  # not a function, or written in C
            return ""
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return ""
        accepts = [parameter.name for parameter in parameters]
        strange = [option for option in options if option not in accepts]
        takes = f"it takes {', '.join(accepts)}" if accepts else "it takes none"
        return f"{key}: {self.key} = {name!r} has no option {', '.join(strange)}; {takes}" if strange else ""

    def content(self, name: str) -> str:
        """Sixteen hex digits of the source of something from outside, and of the local files that it imports; empty for ours. An attack
        that changed makes another run."""
        if not self.outside(name):
            return ""
        point = _entry_points(self.group).get(name)
        return outside_digest(point.value if point else name)


def _nearest(name: str, names: Sequence[str]) -> list[str]:
    """The names that are spelt nearly so, or whose part after the package is (`krum` for `flwr.Krum`)."""
    lasts = {known: known.rpartition(".")[2].lower() for known in names}
    if same := [known for known, last in lasts.items() if last == name.lower()]:
        return same
    if near := difflib.get_close_matches(name, names, n=1):
        return near
    close = difflib.get_close_matches(name.lower(), set(lasts.values()), n=1)
    return [known for known, last in lasts.items() if last in close]


def registry(key: str) -> Registry[Any]:
    """The registry of a key of `REGISTRIES`."""
    module, _, name = REGISTRIES[key].partition(":")
    return getattr(importlib.import_module(module), name)


def offer(thing: object) -> str:
    """A name for an object of this process, valid wherever a name is, with `grid.transport = "inline"` alone.

    Equal content, equal name. An object whose content cannot be read gets a new name each time, with a warning: no old run is opened.
    """
    label = getattr(thing, "__name__", type(thing).__name__)
    try:
        digest = object_digest(thing)
    except UnidentifiedError as error:
        digest = secrets.token_hex(6)
        warnings.warn(f"{label} cannot be identified ({error}): each call makes a new run, and none is opened or continued", stacklevel=2)
    name = f"object:{label}-{digest}"
    _OFFERED[name] = thing
    return name


def load_outside(name: str) -> Any:
    """The object of `path/to/file.py:name`, of `package.module:name`, or of a name that `offer` returned. Raises OutsideError."""
    if name in _OFFERED:
        return _OFFERED[name]
    place, _, attribute = name.rpartition(":")
    if place == "object":
        raise OutsideError(f"{name!r} is an object of another process: put it into a file and name it file.py:name")
    path = _path(place) if place.endswith(".py") else None
    limit = time_limit(LOAD_LIMIT, f"its import took more than {LOAD_LIMIT:.0f} s")
    with _LOADING, outside_call(lambda error: OutsideError(error_words(error))), limit:
        module = _file_module(path) if path else _imported_module(place)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise OutsideError(f"{place} has no {attribute!r}") from None


def outside_digest(name: str) -> str:
    """Sixteen hex digits of the file behind an outside name and of the local files that it imports. Raises OutsideError."""
    if name in _OFFERED:
        return name.rpartition("-")[2]
    place = name.rpartition(":")[0]
    path = _path(place) if place.endswith(".py") else _source(load_outside(name), place)
    try:
        return source_digest(path)
    except OSError as error:
        raise OutsideError(f"{path} cannot be read ({error.strerror})") from None


@lru_cache(maxsize=16)
def _entry_points(group: str) -> Mapping[str, EntryPoint]:
    """Entry points by name (a process-wide constant)."""
    return {point.name: point for point in entry_points(group=group)}


def _path(place: str) -> Path:
    path = Path(place).expanduser().absolute()
    if not path.is_file():
        raise OutsideError(f"there is no file {place!r}")
    return path


def _file_module(path: Path) -> ModuleType:
    """The module of a file. It is executed once per process, and again if its content, or that of a local file that it imports, has
    changed."""
    digest = hashlib.sha256(f"{path} {source_digest(path)}".encode()).hexdigest()[:16]
    name = f"{OUTSIDE}{digest}"  # a name that no other module has
    _forget_changed(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, loader=_SourceLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _remember(path)
    return module


class _SourceLoader(SourceFileLoader):
    """Loads a file without Python's bytecode cache, which takes a file of the same second and size for the same."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _imported_module(place: str) -> ModuleType:
    """The module of a dotted name, imported again if it, or a local file that it imports, has changed since."""
    file = getattr(sys.modules.get(place), "__file__", None) or ""
    if file.endswith(".py"):
        _forget_changed(Path(file))
    module = importlib.import_module(place)
    if place not in _CONTENTS and (file := module.__file__ or "").endswith(".py"):
        _remember(Path(file))
    return module


def _forget_changed(path: Path) -> None:
    """Remove the modules of a file and of the local files that it imports from `sys.modules` if one has changed since it was loaded."""
    digest, before = source_digest(path), _LATEST.get(path)
    if digest == before:
        return
    _LATEST[path] = digest
    modules = _modules_of(path)
    if before or any(_CONTENTS.get(name, content) != content for name, content in modules.items()):
        importlib.invalidate_caches()
        _drop_bytecode(path)
        for name in modules:
            del sys.modules[name]
            _CONTENTS.pop(name, None)


def _drop_bytecode(path: Path) -> None:
    """Remove Python's compiled copies of a file and of the local files that it imports: Python takes one for current if the file's second
    and size are the same."""
    for file in local_sources(path):
        with contextlib.suppress(OSError):  # a folder that cannot be written holds no copy of ours
            Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)


def _remember(path: Path) -> None:
    """Note the content of the local files that Python has loaded for a file."""
    _LATEST.setdefault(path, source_digest(path))
    _CONTENTS.update({name: content for name, content in _modules_of(path).items() if name not in _CONTENTS})


def _modules_of(path: Path) -> dict[str, str]:
    """The loaded modules of a file and of the local files that it imports, each with the SHA-256 of its file. Without those that
    `_file_module` names by their content."""
    contents = {os.path.realpath(file): hashlib.sha256(content).hexdigest() for file, content in local_sources(path).items()}
    names = {os.path.basename(file) for file in contents}
    modules: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if os.path.basename(file) in names and not name.startswith(OUTSIDE) and (real := os.path.realpath(file)) in contents:
            modules[name] = contents[real]
    return modules


def _source(thing: object, place: str) -> Path:
    module = sys.modules[place]
    try:
        file = inspect.getsourcefile(module)
    except TypeError:  # built in
        file = None
    if not file:
        raise OutsideError(f"{place} has no source file")
    return Path(file)
