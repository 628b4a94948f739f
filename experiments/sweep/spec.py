"""A sweep's spec: a base, overrides and axes, expanded to the flat keys of its cells."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

from pydantic import BeforeValidator, Field

from experiments.sweep.numbers import published_numbers
from experiments.sweep.toml_specs import FlatTable, Spec, expect_kind, flat_table, parse_spec, spec_path
from fl_sim.config.keys import Config, Section
from fl_sim.config.options import OPTIONS, options_as_json, options_text
from fl_sim.config.resolve import ConfigError, as_plain, default_flat, load_toml, read_toml

PRESETS = Path(__file__).parent.parent / "presets"
STUDIES = Path(__file__).parent.parent / "studies"


def _axes(value: Any) -> Any:
    """Flat axes; from Python, tuples and ranges of values are lists too."""
    flat = flat_table(value)
    if not isinstance(flat, dict):
        return flat
    return {key: list(item) if isinstance(item, tuple | range) else item for key, item in cast(dict[str, Any], flat).items()}


Axes = Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], BeforeValidator(_axes)]
TABLES = {"set": "a value", "axes": "a list of at least one value"}


class ScaleSpec(Spec):
    """What a `[scales.NAME]` lays over a sweep."""

    kind: ClassVar[str] = "a scale"
    tables: ClassVar[Mapping[str, str]] = TABLES
    base: str | None = Field(None, description="the name of a preset or the path of a .toml file")
    set: FlatTable = Field({}, description="a table")
    axes: Axes = Field({}, description="a table")


class SweepSpec(Spec):
    """A sweep as it is written."""

    kind: ClassVar[str] = "a sweep"
    tables: ClassVar[Mapping[str, str]] = TABLES
    base: str = Field("digits", description="the name of a preset or the path of a .toml file")
    set: FlatTable = Field({}, description="a table")
    axes: Axes = Field(min_length=1, description="a table with at least one key")
    exclude: list[Annotated[FlatTable, Field(min_length=1)]] = Field([], description="tables of axes and values ([[exclude]])")
    published: str = Field("", description="the name of published numbers")
    scales: dict[str, dict[str, Any]] = Field({}, description="tables ([scales.cpu])")


@dataclass(frozen=True)
class Cell:
    """One configuration of a sweep: its flat keys over the base, and for each axis the label of its value."""

    flat: Mapping[str, Any]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Sweep:
    """A sweep: the common flat keys, the cells over them, and an entry of published.json to be shown beside them (or nothing)."""

    name: str
    common: Mapping[str, Any]
    cells: tuple[Cell, ...]
    published: str = ""


def preset_path(name: str, folder: Path | None = None) -> Path:
    """A preset that comes with fl-sim by its name, or a TOML file by its path, relative to `folder` (default: the working directory).

    Raises ConfigError with the nearest name."""
    beside = folder and name.endswith(".toml") and not name.startswith("~")
    return spec_path(folder / name if folder and beside else name, PRESETS, "a preset")


def read_preset(name: str | Path) -> dict[str, Any]:
    """The flat keys of a preset that comes with fl-sim by its name, or of a TOML file. Raises ConfigError."""
    path = preset_path(str(name))
    expect_kind(load_toml(path), name, "a preset")
    return read_toml(path)


def read_sweep(name: str | Path, scale: str = "") -> Sweep:
    """The sweep of a spec, a study that comes with fl-sim by its name or a TOML file by its path, at one of its scales if one is named.

    `base = "digits"` names a preset or a path relative to the spec, `[set]` overrides its keys, `[axes]` lists values by key. A
    whole section may be an axis: `"strategy" = ["mean", {name = "clip-after", bound = 1.0}]`. `[[exclude]]` leaves out the cells that have
    all values of one of its tables, by axis: `"attack.name" = "none"`, or the label of a section's choice. `[scales.NAME]` may have another
    `base`, and its `set` and `axes` go over the spec's own; such a sweep is called `<spec>-NAME`. `published` names published numbers.
    Raises ConfigError naming the file and what is wrong.
    """
    path = spec_path(name, STUDIES, "a study")
    spec = load_toml(path)
    expect_kind(spec, name, "a study")
    return sweep_of(path.stem, spec, scale, path)


def sweep_of(name: str, spec: Mapping[str, Any], scale: str = "", path: Path | None = None) -> Sweep:
    """The sweep of a spec that is a mapping, as TOML's tables are. Raises ConfigError with what is wrong.

    Args: path, the spec's file if there is one: errors name it, and a path in `base` is relative to its folder.
    """
    where = str(path) if path else f"sweep {name!r}"
    parsed = parse_spec(SweepSpec, spec, where)
    if parsed.published and parsed.published not in published_numbers():
        known = ", ".join(published_numbers())
        raise ConfigError([f"{where}: expected published to be one of {known}, got {parsed.published!r}"])
    scales = {key: parse_spec(ScaleSpec, table, where, f"scales.{key}.") for key, table in parsed.scales.items()}
    if scale and scale not in scales:
        raise ConfigError([f"{where}: expected --scale to be one of {', '.join(scales) or 'none (it has no [scales])'}, got {scale!r}"])
    over = scales[scale] if scale else ScaleSpec.model_validate({})
    name = f"{name}-{scale}" if scale else name
    common = common_keys(where, name, parsed.base if over.base is None else over.base, parsed.set, over.set, folder=path and path.parent)
    cells = expand({**parsed.axes, **over.axes})
    return Sweep(name, common, _without(where, cells, parsed.exclude), parsed.published)


def expand(axes: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """A cell for each combination of the axes' values, the last axis varying fastest; one cell without keys if there are none."""
    choices = [[(axis, *section_choice(axis, value)) for value in values] for axis, values in axes.items()]
    cells: list[Cell] = []
    for combination in itertools.product(*choices):
        flat = {key: item for _, _, part in combination for key, item in part.items()}
        cells.append(Cell(as_plain(flat), {axis: text for axis, text, _ in combination}))
    return cells


def common_keys(where: str, name: str, base: str, *tables: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """The flat keys of a spec's base with tables of keys laid over it, one after the other.

    An `*.options` that is a table is merged, as every other table is; one that is text replaces what was there. Raises ConfigError.
    """
    try:
        common = read_toml(preset_path(base, folder))
    except ConfigError as error:
        raise ConfigError([f"{where}: base: {problem}" for problem in error.problems]) from None
    for table in ({}, {"name": name.replace("_", "-")}, *tables):
        common, problems = options_as_json({**common, **table})
        if problems:
            raise ConfigError([f"{where}: {problem}" for problem in problems])
    return common


def _without(where: str, cells: Sequence[Cell], filters: Sequence[Mapping[str, Any]]) -> tuple[Cell, ...]:
    """The cells that no filter leaves out. Raises ConfigError for a filter that names no axis or leaves out nothing, and for filters that
    leave nothing.
    """
    axes = dict.fromkeys(axis for cell in cells for axis in cell.labels)
    problems = [
        f"{where}: exclude names {axis!r}, which is no axis ({', '.join(axes)})" for table in filters for axis in table if axis not in axes
    ]
    left_out = [[cell for cell in cells if all(_has(cell, axis, value) for axis, value in table.items())] for table in filters]
    problems += [f"{where}: exclude {table} leaves out no cell" for table, out in zip(filters, left_out, strict=True) if not out]
    remaining = tuple(cell for cell in cells if not any(cell in out for out in left_out))
    if not problems and not remaining:
        problems = [f"{where}: exclude leaves out every cell"]
    if problems:
        raise ConfigError(problems)
    return remaining


def _has(cell: Cell, axis: str, value: Any) -> bool:
    return cell.flat[axis] == value if axis in cell.flat else cell.labels.get(axis) == str(value)


def section_choice(axis: str, value: Any) -> tuple[str, dict[str, Any]]:
    """The label of an axis value, and the flat keys that it stands for."""
    if not is_section(axis):
        return label(value), {axis: option_value(axis, value)}
    if isinstance(value, Mapping):
        section = cast(Mapping[str, Any], value)
        rest = [_shown(key, item) for key, item in section.items() if key != "name"]
        flat = {f"{axis}.{key}": option_value(f"{axis}.{key}", item) for key, item in section.items()}
        return " ".join([str(section.get("name", "")), *rest]).strip(), flat
    return str(value), {f"{axis}.name": value}


def option_value(key: str, value: Any) -> Any:
    """A key's value, as text if it is a table of options: it replaces the base's options, and a table's cell can hold it."""
    return _options(cast(Mapping[str, Any], value)) if key in OPTIONS and isinstance(value, Mapping) else value


def _options(table: Mapping[str, Any]) -> Any:
    try:
        return options_text(table)
    except ValueError:  # TOML knows dates: `resolve` says what is wrong with them
        return table


def label(value: Any) -> str:
    """A value in a table or a figure."""
    if isinstance(value, Mapping):
        return _options_label(_options(cast(Mapping[str, Any], value))) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value) or "none"


def _shown(key: str, item: Any) -> str:
    """A key of a section in a label; a strategy's norm, bound and options go without their names."""
    if key == "options":
        return _options_label(_options(cast(Mapping[str, Any], item)) if isinstance(item, Mapping) else item)
    value = f"{item:g}" if isinstance(item, float) else str(item)
    return value if key in ("norm", "bound") else f"{key} {value}"


def _options_label(options: Any) -> str:
    """Options without JSON's marks."""
    return str(options).translate(str.maketrans("", "", '{}"'))


def is_section(axis: str) -> bool:
    """Whether an axis is a whole section: its values are names and tables of keys."""
    field = Config.model_fields.get(axis)
    return axis not in default_flat() and field is not None and isinstance(field.default, Section)
