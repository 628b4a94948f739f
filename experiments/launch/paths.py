"""The user's paths and modules in the keys of a run, in a form that works in every process: some have another working directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_sim.config.options import options_as_json
from fl_sim.config.resolve import ConfigError, as_plain, default_flat, names_in
from fl_sim.registry import REGISTRIES

FILES = ("output-dir", "data.root", "data.cache-dir", "model.start")


def complete_keys(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Flat keys from several tables (a later one takes precedence), for every process: paths are absolute, `*.options` are JSON.

    Raises ConfigError.
    """
    flat, problems = dict[str, Any](), list[str]()
    for table in ({"data.root": default_flat()["data.root"]}, *tables):
        flat, more = options_as_json({**flat, **as_plain(table)})
        problems += more
    if problems:
        raise ConfigError(problems)
    return absolute_paths(flat)


def absolute_paths(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat keys with absolute paths, also in names such as `file.py:name`."""
    flat = as_plain(flat)
    paths = {key: _absolute(key, flat[key]) for key in FILES if isinstance(flat.get(key), str) and flat[key]}
    for key in REGISTRIES:
        if isinstance(value := flat.get(key), str):
            paths[key] = ",".join(_absolute_name(key, name) for name in names_in(key, value))
    return {**flat, **paths}


def _absolute_name(key: str, name: str) -> str:
    place, mark, attribute = name.rpartition(".py:")
    if mark:
        return f"{_absolute(key, place)}.py:{attribute}"
    return _absolute(key, name) if name.endswith((".json", ".npz")) else name


def _absolute(key: str, path: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:  # ~user of a user who does not exist
        raise ConfigError([f"expected {key} to be a path, got {path!r} ({error})"]) from None


def offer_own_modules(flats: Sequence[Mapping[str, Any]]) -> None:
    """Make modules in the working directory importable for `package.module:name`, in this process and in those that it starts."""
    here = str(Path.cwd())
    if any(":" in str(flat.get(key, "")) for flat in flats for key in REGISTRIES) and here not in sys.path:
        sys.path.append(here)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), here]))
