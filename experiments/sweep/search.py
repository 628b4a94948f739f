"""The worst case of an attack over its own settings: a sweep whose cells are chosen as it goes.

A defence is judged by the attack that was made for it. Optuna's TPE (Watanabe 2023) with a constraint looks for the settings that leave the
least accuracy after the trigger, among those that stay below the stealth limit. It proposes `batch` settings at a time and hears of them in
order, so its proposals depend on the results alone, not on how many workers there are: asked again, it proposes the same, finds the runs
that are complete, and goes on where it was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from experiments.records.folder import is_complete, run_folder
from experiments.records.reading import DamagedError, read_summary
from experiments.sweep.spec import common_keys, option_value
from experiments.sweep.toml_specs import FlatTable, Spec, expect_kind, parse_spec, spec_path
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, default_flat, load_toml, resolve

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SEARCHES = Path(__file__).parent.parent / "searches"
STEALTH_LIMIT = 2.0  # points that the phase may cost before an attack counts as noticed

Summaries = Sequence[Mapping[str, Any] | None]
Settings = dict[str, Any]  # flat keys
Trial = tuple[Settings, Mapping[str, Any] | None]  # with the summary of their run, if it is complete


class Range(Spec):
    """Numbers from `low` to `high`; `log`: proposed by their logarithm."""

    kind: ClassVar[str] = "a range"
    low: int | float = Field(description="a finite number")
    high: int | float = Field(description="a finite number")
    log: bool = Field(False, description="true or false")

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0.0):
            raise ValueError("low >= high, or a logarithm of low <= 0")
        return self


def _choices(value: Any) -> Any:
    """The choices or the range of one key. Raises ValueError for anything else."""
    if isinstance(value, Range):
        return value
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("no choices")
        return list(cast(Sequence[Any], value))
    try:
        return Range.model_validate(value)
    except ValidationError as error:
        raise ValueError("no range") from error  # of the whole value: pydantic would report each of its keys as a problem of its own


def _space(table: Any) -> Any:
    """The flat keys of `[space]`; an unquoted dotted key is a table of tables, down to what has a `low` or a `high`."""
    if not isinstance(table, Mapping):
        return table
    flat: dict[str, Any] = {}
    for key, value in cast(Mapping[str, Any], table).items():
        if isinstance(value, Mapping) and "low" not in value and "high" not in value:
            flat |= {f"{key}.{inner}": values for inner, values in _space(value).items()}
        elif isinstance(value, list):
            flat[key] = [option_value(key, choice) for choice in cast(list[Any], value)]
        else:
            flat[key] = value
    return flat


class SearchSpec(Spec):
    """A search as it is written."""

    kind: ClassVar[str] = "a search"
    tables: ClassVar[Mapping[str, str]] = {
        "set": "a value",
        "space": "a list of at least one choice, or {low, high, log} with finite numbers, low < high, and low > 0 where log is true",
    }
    base: str = Field("digits", description="the name of a preset or the path of a .toml file")
    set: FlatTable = Field({}, description="a table")
    space: Annotated[dict[str, Annotated[Any, PlainValidator(_choices)]], BeforeValidator(_space)] = Field(
        min_length=1, description="a table with at least one key"
    )
    trials: int = Field(40, ge=1, description="a whole number >= 1")
    batch: int = Field(4, ge=1, description="a whole number >= 1")
    stealth_limit: float = Field(STEALTH_LIMIT, ge=0.0, description="a number >= 0 (points)")
    seed: int = Field(1, ge=0, lt=2**32, description="a whole number from 0 to 4294967295")


class Search(SearchSpec):
    """What to look through: `space` by key, a list of choices or a `Range`; how many settings, how many of them at a time; and the points
    of accuracy that the phase before the trigger may cost. `common`, the flat keys of all settings."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, ser_json_inf_nan="constants")
    name: str
    common: dict[str, Any] = Field({})

    def to_json(self) -> str:
        """Everything but the common keys, for the ServerApp."""
        return self.model_dump_json(exclude={"base", "set", "common"})

    @staticmethod
    def from_json(text: str) -> Search:
        """The inverse of `to_json`."""
        return Search.model_validate_json(text)

    def corners(self) -> list[Settings]:
        """Settings that hold every choice and both ends of every range: if these are valid, all are, cross-checks aside."""
        ends = {key: [values.low, values.high] if isinstance(values, Range) else values for key, values in self.space.items()}
        most = max(map(len, ends.values()))
        return [{key: values[min(i, len(values) - 1)] for key, values in ends.items()} for i in range(most)]


def read_search(name: str | Path) -> Search:
    """The search of a spec, one that comes with fl-sim by its name or a TOML file by its path: `base` and `[set]` as in a sweep, `[space]`,
    and `trials`, `batch`, `stealth-limit`, `seed`. Raises ConfigError naming the file and what is wrong.
    """
    path = spec_path(name, SEARCHES, "a search")
    spec = load_toml(path)
    expect_kind(spec, name, "a search")
    return search_of(path.stem, spec, path)


def search_of(name: str, spec: Mapping[str, Any], path: Path | None = None) -> Search:
    """The search of a spec that is a mapping, as TOML's tables are. Raises ConfigError with what is wrong. Args: path, as of `sweep_of`."""
    where = str(path) if path else f"search {name!r}"
    parsed = parse_spec(SearchSpec, spec, where)
    common = common_keys(where, name, parsed.base, parsed.set, folder=path and path.parent)
    return Search(name=name, common=common, **dict(parsed))


def explore(search: Search, evaluate: Callable[[list[Settings]], Summaries]) -> list[Trial]:
    """All settings that the search tries, in order, with their summaries; None where `evaluate` has none.

    Args: evaluate, the summaries of a batch of settings.
    """
    import optuna  # a second, and runs do without

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=search.seed))
    distributions = {key: _distribution(key, values) for key, values in search.space.items()}
    trials: list[Trial] = []
    while len(trials) < search.trials:
        asked = [study.ask(distributions) for _ in range(min(search.batch, search.trials - len(trials)))]
        batch = [dict(trial.params) for trial in asked]
        for trial, settings, summary in zip(asked, batch, evaluate(batch), strict=True):
            if summary is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                trial.set_constraint("stealth", stealth_cost(summary) - search.stealth_limit)
                study.tell(trial, left_after(summary))
            trials.append((settings, summary))
    return trials


def evaluated(
    common: Mapping[str, Any], output_dir: Path, batch: Sequence[Settings], run: Callable[[list[Config]], object] | None = None
) -> Summaries:
    """The summaries of the runs of a batch of settings over common keys, None where there is none; first `run` is given those to be run.

    Settings that contradict each other have none.
    """
    configs = [None if contradiction(common, settings) else resolve({**common, **settings}) for settings in batch]
    folders = [run_folder(output_dir, config) if config else None for config in configs]
    if run:
        run(list({folder: config for folder, config in zip(folders, configs, strict=True) if config}.values()))
    return [_summary(folder) if folder and is_complete(folder) else None for folder in folders]


def _summary(folder: Path) -> Mapping[str, Any] | None:
    """The summary of a complete run; None if it is damaged."""
    try:
        return read_summary(folder)
    except DamagedError:
        return None


def left_after(summary: Mapping[str, Any]) -> float:
    """Accuracy (percent) after the trigger; of a run in which none fired at the end of the attack, or at the end."""
    accuracy: Mapping[str, float | None] = summary["accuracy"]
    places = (accuracy.get(place) for place in ("after_trigger", "end_of_attack", "final"))
    return next(value for value in places if value is not None)


def stealth_cost(summary: Mapping[str, Any]) -> float:
    """Points that the phase before the trigger cost at worst: against the clean twin, or without one against the start."""
    gap = summary["stealth_gap"]
    return (summary["worst_loss_in_phase"] or 0.0) if gap is None else gap


def contradiction(common: Mapping[str, Any], settings: Settings) -> str:
    """Why settings over common keys are no configuration; empty if they are one."""
    try:
        resolve({**common, **settings})
    except ConfigError as error:
        return error.problems[0]
    return ""


def _distribution(key: str, values: Range | list[Any]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(values)
    if isinstance(default_flat().get(key, values.low), int) and isinstance(values.high, int):
        return IntDistribution(int(values.low), values.high, log=values.log)
    return FloatDistribution(float(values.low), float(values.high), log=values.log)
