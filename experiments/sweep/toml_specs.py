"""TOML specs: looked up by name or by path, read, and checked by a pydantic model with one sentence for each problem."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from fl_sim.config.resolve import ConfigError, default_flat, flatten


class Spec(BaseModel):
    """What a spec may hold. A field's description completes "expected KEY to be ..."; `tables` does so for each value of a table."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=lambda name: name.replace("_", "-"), allow_inf_nan=False
    )
    kind: ClassVar[str] = "a spec"
    tables: ClassVar[Mapping[str, str]] = {}


KINDS = {"a preset": ("presets", "run"), "a study": ("studies", "sweep"), "a search": ("searches", "search")}  # folder and command
TABLES_OF = {"space": "a search", "axes": "a study"}  # the table that shows what a spec is; a search may have axes too
AnySpec = TypeVar("AnySpec", bound=Spec)


def flat_table(value: Any) -> Any:
    """A table with flat keys: TOML reads an unquoted `attack.rho = 1` as a table in a table. Other values stay, for the model to refuse."""
    return flatten(cast(Mapping[str, Any], value)) if isinstance(value, Mapping) else value


FlatTable = Annotated[dict[str, Any], BeforeValidator(flat_table)]


def spec_path(name: str | Path, folder: Path, kind: str) -> Path:
    """The path of a spec: of one that comes with fl-sim by its name, of any TOML file by its path.

    Raises ConfigError with the nearest name. Args: folder, of those that come with fl-sim; kind, in words ("a study").
    """
    path, names = _expanded(name), sorted(path.stem for path in folder.glob("*.toml"))
    near = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.5)
    if path.suffix == ".toml":
        if near and not path.exists():
            hint = f"did you mean {near[0]!r}, {kind} that comes with fl-sim?"
            raise ConfigError([f"cannot read {str(name)!r}: there is no such file; {hint}"])
        return path
    if str(name) in names:
        return folder / f"{name}.toml"
    for other, (folder_name, command) in KINDS.items():
        if (folder.parent / folder_name / f"{name}.toml").is_file():
            raise ConfigError([f"{str(name)!r} is {other}: fl-sim {command} {name}"])
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError([f"expected {kind} to be one of {', '.join(names)}, or the path of a .toml file, got {str(name)!r}{hint}"])


def _expanded(name: str | Path) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~user of a user who does not exist
        return Path(name)


def expect_kind(spec: Mapping[str, Any], name: str | Path, kind: str) -> None:
    """Raise ConfigError for the tables of a spec of another kind, with the command that takes it."""
    sections = {key.partition(".")[0] for key in default_flat()}
    other_keys = bool(set(spec) & sections) and not {"base", "set"} & set(spec)
    shown = next((other for table, other in TABLES_OF.items() if table in spec), "a preset" if other_keys else kind)
    if shown != kind:
        raise ConfigError([f"{str(name)!r} is {shown}: fl-sim {KINDS[shown][1]} {name}"])


def parse_spec(model: type[AnySpec], spec: Mapping[str, Any], where: str, prefix: str = "") -> AnySpec:
    """The model of a spec. Raises ConfigError with all that is wrong. Args: where, the spec's file; prefix, of its keys in messages."""
    try:
        return model.model_validate(dict(spec))
    except ValidationError as error:
        problems = [f"{where}: {_sentence(model, detail['loc'], detail['type'], detail['input'], prefix)}" for detail in error.errors()]
        raise ConfigError(list(dict.fromkeys(problems))) from None


def _sentence(model: type[Spec], loc: tuple[int | str, ...], error: str, got: Any, prefix: str) -> str:
    fields = {str(field.alias): field for field in model.model_fields.values()}
    name, key = str(loc[0]), f"{prefix}{loc[0]}"
    if error == "extra_forbidden":
        return f"unknown key {key!r}; {model.kind} has {', '.join(sorted(fields))}"
    if len(loc) > 1 and name in model.tables:
        return f"expected {key}.{loc[1]} to be {model.tables[name]}, got {got!r}"
    shown = f"[{key}]" if name in model.tables else key
    return f"expected {shown} to be {fields[name].description}, got {'nothing' if error == 'missing' else repr(got)}"
