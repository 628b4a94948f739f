"""From flat keys to a checked `Config` and back, with all problems at once; and the hash of a run."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from fl_sim.config.checks import cross_checks
from fl_sim.config.keys import Config, Section
from fl_sim.config.options import OPTIONS, OPTIONS_OF, options_as_json
from fl_sim.registry import REGISTRIES, registry

Scalar = bool | int | float | str

# Keys that cannot change a result are not part of a run's hash (docs/design.md, section 7.2).
NOT_HASHED = (
    "name",
    "output-dir",
    "cells",
    "search",
    "tracking",
    "grid.",
    "ray.",
    "data.cache-dir",
    "data.download",
    "checkpoint.",
    "fault.kill-round",
)


class ConfigError(ValueError):
    """The problems of a configuration: `problems` holds one sentence each, `config` the configuration with defaults for the bad keys."""

    def __init__(self, problems: list[str], config: Config | None = None) -> None:
        super().__init__("\n".join(problems))
        self.problems, self.config = problems, config


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"data": {"name": "digits"}}` to `{"data.name": "digits"}`."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(cast(Mapping[str, Any], value), f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        level = nested
        for section in sections:
            below = level.setdefault(section, {})
            level = cast(dict[str, Any], below) if isinstance(below, dict) else {}
        level[last] = value
    return nested


def to_flat(config: Config) -> dict[str, Scalar]:
    """Every key of a config with its value."""
    return flatten(config.model_dump(by_alias=True))


@lru_cache(maxsize=1)
def default_flat() -> dict[str, Scalar]:
    """Every key with its default value (a process-wide constant)."""
    return to_flat(Config.model_validate({}))


def resolve(flat: Mapping[str, Any]) -> Config:
    """A `Config` from flat keys; other keys keep their defaults.

    Raises `ConfigError` with every problem: unknown keys (and the nearest one that exists), wrong types, values out of
    range, unknown names, and keys that contradict each other.
    """
    defaults = default_flat()
    flat, problems = options_as_json(as_plain(flat))
    problems += [_unknown(key, defaults) for key in flat if key not in defaults]
    values = {key: value for key, value in flat.items() if key in defaults}
    bad: set[str] = set()
    try:
        config = Config.model_validate(nest(values))
    except ValidationError as error:
        for detail in error.errors():
            key = ".".join(str(part) for part in detail["loc"])
            bad.add(key)
            problems.append(_sentence(key, dict(detail)))
        config = Config.model_validate(nest({key: value for key, value in values.items() if key not in bad}))
    problems += [problem for keys, problem in cross_checks(config) if not bad & set(keys)]
    lookups = {key: value for key, value in values.items() if key in REGISTRIES and key not in bad and value != defaults[key]}
    wrong = {key: [text for name in names_in(key, value) if (text := registry(key).problem(name))] for key, value in lookups.items()}
    problems += [text for texts in wrong.values() for text in texts]
    try:
        start_digest(config)
    except ConfigError as error:
        problems += error.problems
        wrong["model.start"] = error.problems
    if problems:
        raise ConfigError(problems, _without(config, [key for key, texts in wrong.items() if texts]))
    return config


def _without(config: Config, keys: Sequence[str]) -> Config:
    """A configuration with stand-ins for things that cannot be looked up and without their options, to look for other problems."""
    defaults = default_flat()
    stand_ins = {key: "mlp" if key == "model.name" else defaults[key] for key in keys}  # an mlp fits all data
    options = {OPTIONS_OF[key]: "" for key in keys if key in OPTIONS_OF}
    return Config.model_validate(nest({**to_flat(config), **stand_ins, **options})) if keys else config


def resolve_cells(flat: Mapping[str, Any]) -> list[Config]:
    """The configurations to run: each cell of `cells` over the common keys, or the common keys themselves without `cells`. With cells,
    the common keys alone need not be a valid configuration.
    """
    common = {key: value for key, value in flat.items() if key not in ("cells", "search")}
    return [resolve({**common, **cell}) for cell in json.loads(flat.get("cells") or "[{}]")]


def as_plain(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat keys with values of Python's own types. NumPy's scalars become numbers, paths text. Where text is expected, a whole number or a
    date is its text; where a number is expected, the text `inf` is infinity (JSON cannot write it otherwise)."""
    return {key: _plain(value, default_flat().get(key)) for key, value in flat.items()}


def _plain(value: Any, default: Scalar | None) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(cast("os.PathLike[str]", value))
    if isinstance(default, str):
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, date | time):
            return value.isoformat()
    if isinstance(default, float) and isinstance(value, str) and value in ("inf", "Infinity"):
        return math.inf
    return value


def config_of(record: Mapping[str, Any]) -> Config:
    """The `Config` of a record, which may be of another version: keys that this one does not know are left out, and those that the record
    does not have get their defaults. Raises ConfigError for values that this version does not accept."""
    known = {key: value for key, value in as_plain(record).items() if key in default_flat()}
    try:
        return Config.model_validate(nest(known))
    except ValidationError as error:
        problems = [_sentence(".".join(map(str, detail["loc"])), dict(detail)) for detail in error.errors()]
        raise ConfigError(problems) from None


def _unknown(key: str, keys: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5) or difflib.get_close_matches(key.split(".")[-1], keys, n=1, cutoff=0.3)
    return f"unknown key {key!r}" + (f"; the nearest known key is {near[0]!r}" if near else "")


def _sentence(key: str, detail: dict[str, Any]) -> str:
    context, got = detail.get("ctx", {}), detail["input"]
    expected = {
        "literal_error": lambda: "to be one of " + str(context["expected"]).replace(" or ", ", "),
        "int_type": lambda: "to be a whole number",
        "float_type": lambda: "to be a number",
        "bool_type": lambda: "to be true or false",
        "string_type": lambda: "to be text (in a TOML file: in quotes)" + (", a function by its place: file.py:name" * callable(got)),
        "finite_number": lambda: "to be a finite number",
        "greater_than": lambda: f"> {context['gt']}",
        "greater_than_equal": lambda: f">= {context['ge']}",
        "less_than": lambda: f"< {context['lt']}",
        "less_than_equal": lambda: f"<= {context['le']}",
        "string_pattern_mismatch": lambda: "to be letters, digits, dots, dashes and underscores, at most 64",
    }.get(detail["type"], lambda: f"otherwise ({detail['msg']})")
    return f"expected {key} {expected()}, got {got!r}"


def config_hash(config: Config) -> str:
    """The first 12 hex digits of SHA-256 over `hashed_keys`. A run's hash covers the content of its data set too
    (`experiments.records.identity.run_hash`). Raises ConfigError if the file `model.start` cannot be read.
    """
    return hashlib.sha256(to_json(hashed_keys(config)).encode()).hexdigest()[:12]


def hashed_keys(config: Config) -> dict[str, Scalar]:
    """The keys that can change a result, with values as JSON has them (infinity as the text "inf").

    For a thing from outside the repository the content of its code counts too, for `model.start` the content instead of the path.
    `data.root` is not among them: what matters is the content of the data set, not its place.
    """
    flat = to_flat(config)
    lookups = [key for key in REGISTRIES if flat[key] != default_flat()[key] and not key.startswith(NOT_HASHED)]
    sources = {f"{key} (source)": digest for key in lookups if (digest := registry(key).content(str(flat[key])))}
    if config.model.start:
        flat["model.start"] = start_digest(config)  # the same file may be in another folder
    omit = (*NOT_HASHED, "data.root")
    return json.loads(to_json({key: value for key, value in (flat | sources).items() if not key.startswith(omit)}))


def names_in(key: str, value: str) -> list[str]:
    """The names that the value of a key of `REGISTRIES` holds: one, or several for `tracking`."""
    return [name.strip() for name in value.split(",")] if key == "tracking" else [value]


def start_digest(config: Config) -> str:
    """Sixteen hex digits of the content of the file `model.start`, empty without one. Raises ConfigError if it cannot be read."""
    place = config.model.start
    try:
        path = Path(place).expanduser().absolute()
        if not place:
            return ""
        stat = path.stat()
        return _content_digest(path, (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    except (OSError, RuntimeError) as error:  # RuntimeError: ~user of a user who does not exist
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError([f"expected model.start to be a file with a state_dict, got {place!r} ({reason})"]) from None


@lru_cache(maxsize=64)
def _content_digest(path: Path, stat: tuple[int, ...]) -> str:
    """A process-wide cache, because the hash of a run is computed many times. Size, times and inode of the file are part of its key."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def to_json(flat: Mapping[str, Any]) -> str:
    """Flat keys as strict JSON, sorted; infinity becomes the text "inf"."""
    plain = {key: "inf" if isinstance(value, float) and math.isinf(value) else value for key, value in flat.items()}
    return json.dumps(plain, sort_keys=True, allow_nan=False)


@lru_cache(maxsize=256)
def from_json(text: str) -> Config:
    """The `Config` of a text that `to_json` wrote (a process-wide cache, because workers get the text with every message)."""
    return Config.model_validate(nest(as_plain(json.loads(text))))


def read_toml(path: Path) -> dict[str, Any]:
    """The flat keys of a TOML file. Raises `ConfigError` naming the file if it cannot be read, or if it sets a key in two ways."""
    nested = load_toml(path)
    keys = Counter(_paths(nested))
    if doubled := [key for key, count in keys.items() if count > 1]:
        raise ConfigError([f"cannot read {str(path)!r}: it sets {key} twice, as a table and as a quoted key" for key in doubled])
    return flatten(nested)


def load_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, which may begin with a byte order mark. Raises ConfigError naming the file if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError([f"cannot read {str(path)!r}: it is not UTF-8 ({error.reason} in byte {error.start + 1})"]) from None
    except (OSError, ValueError) as error:  # TOMLDecodeError, and an integer of thousands of digits
        raise ConfigError([f"cannot read {str(path)!r}: {error}"]) from None
    except RecursionError:
        raise ConfigError([f"cannot read {str(path)!r}: its tables are nested too deep"]) from None


def _paths(nested: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The flat key of every value, once for each value."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _paths(cast(Mapping[str, Any], value), f"{prefix}{key}.")
        else:
            yield prefix + key


def parse_assignment(text: str) -> tuple[str, Any]:
    """`attack.rho=0.5` to `("attack.rho", 0.5)`: the value is TOML, or else plain text. Of a key that holds text it is the text as written,
    unless it is in quotes (or a table of options)."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        raise ConfigError([f"expected KEY=VALUE, got {text!r}"])
    try:
        table = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        return key, value.strip()
    parsed = table["value"]
    as_written = (
        isinstance(default_flat().get(key), str) and not isinstance(parsed, str) and not (key in OPTIONS and isinstance(parsed, dict))
    )
    return key, value.strip() if as_written or len(table) > 1 else parsed


def describe_keys() -> list[tuple[str, FieldInfo]]:
    """Every key with its field (type, bounds, default, description), for the reference page."""

    def walk(section: type[Section], prefix: str) -> list[tuple[str, FieldInfo]]:
        rows: list[tuple[str, FieldInfo]] = []
        for field in section.model_fields.values():
            key = f"{prefix}{field.alias}"
            if isinstance(field.default, Section):
                rows += walk(type(field.default), key + ".")
            else:
                rows.append((key, field))
        return rows

    return walk(Config, "")
