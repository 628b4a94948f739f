"""A sweep's spec: a base, overrides and axes, expanded to the flat keys of its cells."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from experiments.sweep.published import published_numbers
from fl_sim.config.keys import Config, Section
from fl_sim.config.resolve import ConfigError, default_flat, flatten, read_toml

PRESETS = Path(__file__).parent.parent / "presets"
STUDIES = Path(__file__).parent.parent / "studies"
KEYS = {"base", "set", "axes", "exclude", "published", "scales"}


@dataclass(frozen=True)
class Cell:
    """One configuration of a sweep: its flat keys over the base, and for each axis the label of its value."""

    flat: Mapping[str, Any]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Sweep:
    """A spec: the common flat keys, the cells over them, and an entry of published.json to be shown beside them (or nothing)."""

    name: str
    common: Mapping[str, Any]
    cells: tuple[Cell, ...]
    published: str = ""


def preset_path(name: str) -> Path:
    """A preset by its name, or a TOML file by its path."""
    path = Path(name)
    return path if path.suffix == ".toml" else PRESETS / f"{name}.toml"


def read_sweep(path: Path, scale: str = "") -> Sweep:
    """Read a spec, at one of its scales if one is named.

    `base = "digits"` names a preset or a path beside the spec, `[set]` overrides its keys, `[axes]` lists values by key. A
    whole section may be an axis: `"strategy" = ["mean", {name = "clip-after", bound = 1.0}]`. `[[exclude]]` leaves out the cells that have
    all values of one of its tables, by axis: `"attack.name" = "none"`, or the label of a section's choice. `[scales.NAME]` may have another
    `base`, and its `set` and `axes` go over the spec's own; such a sweep is called `<spec>-NAME`. `published` names published numbers.
    Raises ConfigError naming the file and what is wrong.
    """
    try:
        spec = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"cannot read {str(path)!r}: {error}"]) from None
    unknown = sorted(set(spec) - KEYS)
    if unknown:
        raise ConfigError([f"{path}: unknown key {key!r}; a sweep has {', '.join(sorted(KEYS))}" for key in unknown])
    spec, name = _at_scale(path, spec, scale), f"{path.stem}-{scale}" if scale else path.stem
    tables = [key for key in ("set", "axes") if not isinstance(spec.get(key, {}), dict)] + ["axes"] * (not spec.get("axes"))
    if tables:
        raise ConfigError([f"{path}: expected [{key}] to be a table with at least one key, got {spec.get(key)!r}" for key in tables])
    published = spec.get("published", "")
    if published and published not in published_numbers():
        known = ", ".join(published_numbers())
        raise ConfigError([f"{path}: expected published to be one of {known}, got {published!r}"])
    axes = flatten(spec["axes"])  # TOML reads an unquoted `attack.rho = [..]` as a table of a table: the same axis
    empty = [key for key, values in axes.items() if not isinstance(values, list) or not values]
    if empty:
        raise ConfigError([f"{path}: expected axes.{key} to be a list of values, got {axes[key]!r}" for key in empty])
    base = read_toml(preset_path(str(spec.get("base", "digits"))))
    common = {**base, "name": name.replace("_", "-"), **flatten(spec.get("set", {}))}
    choices = [[(axis, *_choice(axis, value)) for value in values] for axis, values in axes.items()]
    cells: list[Cell] = []
    for combination in itertools.product(*choices):
        flat = {key: item for _, _, part in combination for key, item in part.items()}
        cells.append(Cell(flat, {axis: label for axis, label, _ in combination}))
    return Sweep(name, common, _without(path, cells, spec.get("exclude", [])), published)


def _at_scale(path: Path, spec: dict[str, Any], scale: str) -> dict[str, Any]:
    """The spec with one of its `[scales]` laid over it. Raises ConfigError for one that it does not have, or that is none."""
    scales = spec.get("scales", {})
    if not isinstance(scales, dict) or not all(isinstance(over, dict) for over in cast(dict[str, Any], scales).values()):
        raise ConfigError([f"{path}: expected scales to be tables ([scales.cpu]), got {scales!r}"])
    if not scale:
        return spec
    if scale not in scales:
        raise ConfigError([f"{path}: expected --scale to be one of {', '.join(scales) or 'none (it has no [scales])'}, got {scale!r}"])
    over = cast(dict[str, Any], scales[scale])
    if unknown := sorted(set(over) - {"base", "set", "axes"}):
        raise ConfigError([f"{path}: unknown key 'scales.{scale}.{key}'; a scale has base, set and axes" for key in unknown])
    for table in (spec, over):
        for key in ("set", "axes"):
            if not isinstance(table.get(key, {}), dict):
                raise ConfigError([f"{path}: expected [{key}] to be a table, got {table[key]!r}"])
    merged = {key: {**flatten(spec.get(key, {})), **flatten(over.get(key, {}))} for key in ("set", "axes")}
    return {**spec, **merged, **({"base": over["base"]} if "base" in over else {})}


def _without(path: Path, cells: Sequence[Cell], filters: Any) -> tuple[Cell, ...]:
    """The cells that no filter leaves out. Raises ConfigError for a filter that is none, names no axis or leaves out nothing, and for
    filters that leave nothing.
    """
    if not isinstance(filters, list) or not all(isinstance(table, dict) and table for table in cast(list[Any], filters)):
        raise ConfigError([f"{path}: expected exclude to be tables of axes and values ([[exclude]]), got {filters!r}"])
    wanted = [flatten(table) for table in cast(list[dict[str, Any]], filters)]
    axes = dict.fromkeys(axis for cell in cells for axis in cell.labels)
    problems = [
        f"{path}: exclude names {axis!r}, which is no axis ({', '.join(axes)})" for table in wanted for axis in table if axis not in axes
    ]
    left_out = [[cell for cell in cells if all(_has(cell, axis, value) for axis, value in table.items())] for table in wanted]
    problems += [f"{path}: exclude {table} leaves out no cell" for table, out in zip(wanted, left_out, strict=True) if not out]
    kept = tuple(cell for cell in cells if not any(cell in out for out in left_out))
    if not problems and not kept:
        problems = [f"{path}: exclude leaves out every cell"]
    if problems:
        raise ConfigError(problems)
    return kept


def _has(cell: Cell, axis: str, value: Any) -> bool:
    return cell.flat[axis] == value if axis in cell.flat else cell.labels.get(axis) == str(value)


def _choice(axis: str, value: Any) -> tuple[str, dict[str, Any]]:
    """The label of an axis value, and the flat keys that it stands for."""
    if axis in default_flat() or not _is_section(axis):
        return label(value), {axis: value}
    if isinstance(value, Mapping):
        section = cast(Mapping[str, Any], value)
        rest = [_shown(key, item) for key, item in section.items() if key != "name"]
        return " ".join([str(section.get("name", "")), *rest]).strip(), {f"{axis}.{key}": item for key, item in section.items()}
    return str(value), {f"{axis}.name": value}


def label(value: Any) -> str:
    """A value in a table or a figure."""
    return f"{value:.4g}" if isinstance(value, float) else str(value) or "none"


def _shown(key: str, item: Any) -> str:
    """A key of a section in a label; a strategy's norm, bound and options go without their names, the last without JSON's marks."""
    value = f"{item:g}" if isinstance(item, float) else str(item)
    if key == "options":
        return value.translate(str.maketrans("", "", '{}"'))
    return value if key in ("norm", "bound") else f"{key} {value}"


def _is_section(axis: str) -> bool:
    field = Config.model_fields.get(axis)
    return field is not None and isinstance(field.default, Section)
