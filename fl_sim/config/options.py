"""The `*.options` keys: arguments of the thing that another key names, as a JSON object or as TOML keys. Inside they are JSON."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any, cast

OPTIONS_OF = {  # by the key whose thing they are the arguments of
    "strategy.name": "strategy.options",
    "attack.name": "attack.options",
    "cleaning.name": "cleaning.options",
    "model.name": "model.options",
    "data.name": "data.options",
    "data.partition": "data.partition-options",
}
OPTIONS = tuple(OPTIONS_OF.values())


def parse_options(text: str) -> dict[str, Any]:
    """The named arguments in an `*.options` text: a JSON object, or TOML keys, one per line. Raises ValueError for anything else."""
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        try:
            value = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"neither JSON nor TOML ({error})") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("expected an object of arguments by name")
    return cast(dict[str, Any], value)


def options_text(options: Mapping[str, Any]) -> str:
    """Arguments as sorted JSON; empty for none. Raises ValueError for a value that JSON does not have."""
    try:
        return json.dumps(options, sort_keys=True) if options else ""
    except TypeError as error:
        raise ValueError(str(error)) from None


def options_as_json(flat: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Flat keys with each `*.options` as sorted JSON, also if it was written as TOML text or as a table of a preset; and a sentence for
    each that cannot be read, which is left out."""
    result, tables, problems = dict[str, Any](), dict[str, dict[str, Any]](), list[str]()
    for key, value in flat.items():
        owner = next((option for option in OPTIONS if key.startswith(option + ".")), None)
        if owner:
            _put(tables.setdefault(owner, {}), key.removeprefix(owner + ".").split("."), value)
        else:
            result[key] = value
    for key in OPTIONS:
        text = result.get(key, "")
        try:
            if isinstance(text, Mapping):  # {} in TOML
                text = options_text(cast(Mapping[str, Any], text))
            if isinstance(text, str) and (text or key in tables):
                result[key] = options_text({**parse_options(text), **tables.get(key, {})})
        except ValueError as error:
            problems.append(f"expected {key} to be a JSON object or TOML keys, got {text!r} ({error})")
            result.pop(key, None)
    return result, problems


def _put(table: dict[str, Any], path: list[str], value: Any) -> None:
    *sections, last = path
    for section in sections:
        table = table.setdefault(section, {})
    table[last] = value
