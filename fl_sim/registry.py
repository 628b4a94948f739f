"""Names to things: one way to look up an attack, a rule, a model, a data set …, from our tables or from outside the repository.

A table stays a literal mapping beside what it lists. A name is one of its keys, an entry point of its group that somebody's package
declares, `path/to/file.py:name`, or `package.module:name`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# Every registry, by the key whose values are its names; as text, because most of them stand above this file.
REGISTRIES: Mapping[str, str] = {
    "data.name": "fl_sim.data.datasets:datasets",
    "data.partition": "fl_sim.data.partitions:partitions",
    "model.name": "fl_sim.model.architectures:models",
    "attack.name": "clients.catalogue:attacks",
    "attack.objective": "clients.accumulative.objectives:objectives",
    "strategy.name": "strategies.catalogue:strategies",
    "tracking": "experiments.records.trackers:trackers",
}

_OFFERED: dict[str, Any] = {}  # objects of this process, by the names that `offer` gave them
_LOADING = threading.RLock()


class OutsideError(ImportError):
    """Something from outside the repository cannot be loaded; the message names the file or module, and the line where there is one."""


@dataclass(frozen=True)
class Registry(Generic[T]):
    """What one key may name.

    Args: kind, in words ("attack"); key, of the run configuration; table, our own; group, of entry points; extras, the optional extra
    of fl-sim that a name of the table needs; least_members, how many malicious clients; family, what is wrong with a name of a form
    that the table does not list one by one (`flwr.*`), None where the name is of no such form, and its thing.
    """

    kind: str
    key: str
    table: Mapping[str, T]
    group: str
    extras: Mapping[str, str] = field(default_factory=dict[str, str])
    least_members: Mapping[str, int] = field(default_factory=dict[str, int])
    arguments: int = 0  # positional ones that we pass; what follows are options
    called: Callable[[Any], Any] = lambda thing: thing  # what of a thing takes the options
    family: Callable[[str], str | None] | None = None
    more: tuple[str, ...] = ()  # names that the family has, for messages

    def names(self) -> list[str]:
        """Every name that the key takes, but those of files and modules."""
        return list(dict.fromkeys([*self.table, *self.more, *_entry_points(self.group)]))

    def problem(self, name: str) -> str:
        """What is wrong with a name, a sentence; empty if it can be looked up. Loads what is outside."""
        if name in self.table:
            extra = self.extras.get(name, "")
            if extra and importlib.util.find_spec(extra) is None:
                return f"expected the optional package {extra} with {self.key} = {name!r}: pip install 'fl-sim[{extra}]'"
            return ""
        if self.family and (found := self.family(name)) is not None:
            return found
        if not self.outside(name):
            known = self.names()
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"expected {self.key} to be one of {', '.join(known)}, or file.py:name or package.module:name, got {name!r}{hint}"
        try:
            self.find(name)
        except OutsideError as error:
            return f"cannot load {self.key} = {name!r}: {error}"
        return ""

    def outside(self, name: str) -> bool:
        """Whether a name stands for something that is not ours."""
        return name not in self.table and (":" in name or name in _entry_points(self.group))

    def find(self, name: str) -> T:
        """The thing of a name. Raises KeyError for an unknown one, OutsideError for one that cannot be loaded."""
        if name in self.table:
            return self.table[name]
        if name in _entry_points(self.group):
            return load_outside(_entry_points(self.group)[name].value)
        if ":" in name:
            return load_outside(name)
        raise KeyError(name)

    def options_problem(self, name: str, options: Mapping[str, Any], key: str) -> str:
        """What is wrong with the options of a thing that can be looked up, given under `key`; empty if it takes them all."""
        try:
            parameters = list(inspect.signature(self.called(self.find(name))).parameters.values())[self.arguments :]
        except (TypeError, ValueError):  # it is not called, or written in C
            return ""
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return ""
        known = [parameter.name for parameter in parameters]
        strange = [option for option in options if option not in known]
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        return f"{key}: {self.key} = {name!r} has no option {', '.join(strange)}; {takes}" if strange else ""

    def content(self, name: str) -> str:
        """Sixteen hex digits of the source of something that is not ours, empty for what is: a changed attack is another run."""
        if not self.outside(name):
            return ""
        point = _entry_points(self.group).get(name)
        return outside_digest(point.value if point else name)


def registry(key: str) -> Registry[Any]:
    """The registry of a key of `REGISTRIES`."""
    module, _, name = REGISTRIES[key].partition(":")
    return getattr(importlib.import_module(module), name)


def offer(thing: object) -> str:
    """A name for an object of this process, wherever a name is taken (`grid.transport = "inline"` only): equal for equal source."""
    label = getattr(thing, "__name__", type(thing).__name__)
    name = f"object:{label}-{_object_digest(thing)}"
    _OFFERED[name] = thing
    return name


def load_outside(name: str) -> Any:
    """The object of `path/to/file.py:name`, `package.module:name`, or of a name that `offer` gave. Raises OutsideError."""
    if name in _OFFERED:
        return _OFFERED[name]
    place, _, attribute = name.rpartition(":")
    if place == "object":
        raise OutsideError(f"{name!r} is an object of another process: put it into a file and name it file.py:name")
    try:
        with _LOADING:
            module = _file_module(place) if place.endswith(".py") else importlib.import_module(place)
    except OutsideError:
        raise
    except BaseException as error:  # somebody's file may raise anything, SystemExit too
        if isinstance(error, KeyboardInterrupt):
            raise
        raise OutsideError(f"{_where(error, place)}{type(error).__name__}: {error}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise OutsideError(f"{place} has no {attribute!r}") from None


def outside_digest(name: str) -> str:
    """Sixteen hex digits of the file behind an outside name. Raises OutsideError."""
    if name in _OFFERED:
        return name.rpartition("-")[2]
    place = name.rpartition(":")[0]
    path = _path(place) if place.endswith(".py") else _source(load_outside(name), place)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
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


def _file_module(place: str) -> ModuleType:
    """The module of a file, run once a process and content; a file that has changed is run again."""
    path = _path(place)
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:16]
    name = f"fl_sim_outside_{digest}"  # shadows nobody's module
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _where(error: BaseException, place: str) -> str:
    """The line of somebody's file in which it raised, for a message."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: "
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == Path(place).name]
    return f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""


def _source(thing: object, place: str) -> Path:
    module = sys.modules[place]
    try:
        return Path(inspect.getsourcefile(module) or "")
    except TypeError:
        raise OutsideError(f"{place} has no source file") from None


def _object_digest(thing: object) -> str:
    """Of an object's source and, where it is no function or class, of its attributes."""
    subject = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
    try:
        source = inspect.getsource(subject)
    except (OSError, TypeError):
        source = repr(thing)  # with its address: another run each time, never a wrong one
    state = "" if subject is thing else repr(vars(thing) if hasattr(thing, "__dict__") else thing)
    closure = repr([cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()])
    return hashlib.sha256("\n".join([source, state, closure]).encode()).hexdigest()[:12]
