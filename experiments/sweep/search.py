"""The worst case of an attack over its own settings: a sweep whose cells are chosen as it goes.

A defence is judged by the attack that was made for it. Optuna's TPE (Watanabe 2023) with a constraint looks for the settings that leave the
least accuracy after the trigger, among those that stay below the stealth limit. It proposes `batch` settings at a time and hears of them in
order, so its proposals depend on the results alone, not on how many workers there are: asked again, it proposes the same, finds the runs
that are complete, and goes on where it was interrupted.

With `[axes]` there is one such search for each combination of their values: the map of the worst cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, cast

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from experiments.records.folder import is_complete, run_folder
from experiments.records.reading import DamagedError, read_summary
from experiments.sweep.spec import Axes, Cell, common_keys, expand, is_section, label, option_value, section_choice
from experiments.sweep.toml_specs import FlatTable, Spec, expect_kind, parse_spec, spec_path
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, as_plain, default_flat, load_toml, resolve

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial as OptunaTrial

SEARCHES = Path(__file__).parent.parent / "searches"
STEALTH_LIMIT = 2.0  # points that the phase may cost before an attack counts as noticed

Summaries = Sequence[Mapping[str, Any] | None]
Settings = dict[str, Any]  # flat keys
Problems = Callable[[Config], Sequence[str]]


def no_problems(_: Config) -> Sequence[str]:
    return ()


class Trial(NamedTuple):
    """Settings that were tried, with the keys of their case; the summary of their run, if it is complete; and how tables name them."""

    settings: Settings
    summary: Mapping[str, Any] | None
    labels: Mapping[str, str]


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


Space = Annotated[dict[str, Annotated[Any, PlainValidator(_choices)]], BeforeValidator(_space)]


class SearchSpec(Spec):
    """A search as it is written."""

    kind: ClassVar[str] = "a search"
    tables: ClassVar[Mapping[str, str]] = {
        "set": "a value",
        "space": "a list of at least one choice, or {low, high, log} with finite numbers, low < high, and low > 0 where log is true",
        "axes": "a list of at least one value",
    }
    base: str = Field("digits", description="the name of a preset or the path of a .toml file")
    set: FlatTable = Field({}, description="a table")
    space: Space = Field(min_length=1, description="a table with at least one key")
    axes: Axes = Field({}, description="a table")
    measure: Literal["accuracy", "worst-class"] = Field("accuracy", description="accuracy or worst-class")
    trials: int = Field(40, ge=1, description="a whole number >= 1")
    batch: int = Field(4, ge=1, description="a whole number >= 1")
    stealth_limit: float = Field(STEALTH_LIMIT, ge=0.0, description="a number >= 0 (points)")
    seed: int = Field(1, ge=0, lt=2**32, description="a whole number from 0 to 4294967295")


class Search(SearchSpec):
    """What to look through: `space` by key, a list of choices or a `Range`; how many settings, how many of them at a time; and the points
    of accuracy that the phase before the trigger may cost. `common`, the flat keys of all settings; `sections`, the choices of each whole
    section of the space, flat keys by label; `cases`, the combinations of the axes, each a search of its own."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, ser_json_inf_nan="constants")
    name: str
    common: dict[str, Any] = Field({})
    space: Space = Field({})
    sections: dict[str, dict[str, Settings]] = Field({})
    cases: list[Cell] = Field([Cell({}, {})])

    def to_json(self) -> str:
        """Everything but the common keys, for the ServerApp."""
        return self.model_dump_json(exclude={"base", "set", "common", "axes"})

    @staticmethod
    def from_json(text: str) -> Search:
        """The inverse of `to_json`."""
        return Search.model_validate_json(text)

    @property
    def total(self) -> int:
        """Settings of all cases together."""
        return self.trials * len(self.cases)

    @property
    def at_once(self) -> int:
        """Settings that are run at once, of all cases together."""
        return self.batch * len(self.cases)

    def flat(self, case: Cell, choices: Mapping[str, Any]) -> Settings:
        """The flat keys of a case with one choice for each key of the space."""
        keys = {key: choice for key, choice in choices.items() if key not in self.sections}
        return {**case.flat, **{key: item for name in self.sections for key, item in self.sections[name][choices[name]].items()}, **keys}

    def corners(self) -> list[Settings]:
        """Settings that hold every choice and both ends of every range: if these are valid, all are, cross-checks aside."""
        ends = {key: [values.low, values.high] if isinstance(values, Range) else values for key, values in self.space.items()}
        ends |= {name: list(choices) for name, choices in self.sections.items()}
        most = max(map(len, ends.values()))
        chosen = [{key: values[min(i, len(values) - 1)] for key, values in ends.items()} for i in range(most)]
        return [self.flat(case, choices) for case in self.cases for choices in chosen]


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
    if both := sorted(parsed.axes.keys() & parsed.space.keys()):
        raise ConfigError([f"{where}: expected a key to be in [axes] or in [space], got {', '.join(both)} in both"])
    sections = {key: _labelled(key, values, where) for key, values in parsed.space.items() if is_section(key)}
    fields: dict[str, Any] = {**dict(parsed), "space": {key: values for key, values in parsed.space.items() if key not in sections}}
    return Search(name=name, common=common, sections=sections, cases=expand(parsed.axes), **fields)


def _labelled(section: str, values: Any, where: str) -> dict[str, Settings]:
    """The flat keys of each choice of a section, by its label. Raises ConfigError for a range."""
    if isinstance(values, Range):
        raise ConfigError([f"{where}: expected space.{section} to be a list of names and tables, got a range"])
    return {text: as_plain(flat) for text, flat in (section_choice(section, value) for value in values)}


def explore(search: Search, evaluate: Callable[[list[Settings]], Summaries]) -> list[Trial]:
    """All settings that the search tries, in order, with their summaries; None where `evaluate` has none. Its cases go on side by side:
    `evaluate` is given a batch of each.

    Args: evaluate, the summaries of some settings.
    """
    proposers = [_Proposer(search, case) for case in search.cases]
    trials: list[Trial] = []
    for done in range(0, search.trials, search.batch):
        asked = [(proposer, proposer.ask()) for proposer in proposers for _ in range(min(search.batch, search.trials - done))]
        batch = [proposer.settings(trial) for proposer, trial in asked]
        for (proposer, trial), settings, summary in zip(asked, batch, evaluate(batch), strict=True):
            proposer.tell(trial, summary)
            trials.append(Trial(settings, summary, proposer.labels(trial)))
    return trials


class _Proposer:
    """Proposes settings of one case and hears what they left. Each choice of a section is proposed once before any is proposed again."""

    def __init__(self, search: Search, case: Cell) -> None:
        import optuna  # a second, and runs do without

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search, self._case = search, case
        self._study: OptunaStudy = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=search.seed))
        self._distributions = {key: _distribution(key, values) for key, values in search.space.items()}
        for name, choices in search.sections.items():
            self._distributions[name] = optuna.distributions.CategoricalDistribution(list(choices))
            for text in choices:
                self._study.enqueue_trial({name: text})

    def ask(self) -> OptunaTrial:
        return self._study.ask(self._distributions)

    def settings(self, trial: OptunaTrial) -> Settings:
        return self._search.flat(self._case, trial.params)

    def labels(self, trial: OptunaTrial) -> dict[str, str]:
        return {**self._case.labels, **{key: label(value) for key, value in trial.params.items()}}

    def tell(self, trial: OptunaTrial, summary: Mapping[str, Any] | None) -> None:
        import optuna

        left = None if summary is None else left_by(self._search.measure, summary)
        if summary is None or left is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        trial.set_constraint("stealth", stealth_cost(summary) - self._search.stealth_limit)
        self._study.tell(trial, left)


def evaluated(
    common: Mapping[str, Any],
    output_dir: Path,
    batch: Sequence[Settings],
    run: Callable[[list[Config]], object] | None = None,
    problems: Problems = no_problems,
) -> Summaries:
    """The summaries of the runs of a batch of settings over common keys, None where there is none; first `run` is given those to be run.

    Settings that contradict each other have none. Args: problems, as of `contradiction`.
    """
    configs = [None if contradiction(common, settings, problems) else resolve({**common, **settings}) for settings in batch]
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


def worst_class_left(summary: Mapping[str, Any]) -> float | None:
    """Accuracy (percent) of the worst class, where `left_after` takes the accuracy; None if the summary has no classes."""
    return min((value for value in classes_left(summary) if value is not None), default=None)


def classes_left(summary: Mapping[str, Any]) -> Sequence[float | None]:
    """Accuracy (percent) of each class after the trigger; where none fired at the end of the attack, or at the end."""
    classes: Mapping[str, Any] = summary.get("accuracy_by_class") or {}
    return classes.get("after_trigger") or classes.get("end_of_attack") or classes.get("final") or ()


def left_by(measure: str, summary: Mapping[str, Any]) -> float | None:
    """What a search minimises: `accuracy` or `worst-class`, percent."""
    return left_after(summary) if measure == "accuracy" else worst_class_left(summary)


def stealth_cost(summary: Mapping[str, Any]) -> float:
    """Points that the phase before the trigger cost at worst: against the clean twin, or without one against the start."""
    gap = summary["stealth_gap"]
    return (summary["worst_loss_in_phase"] or 0.0) if gap is None else gap


def contradiction(common: Mapping[str, Any], settings: Settings, problems: Problems = no_problems) -> str:
    """Why settings over common keys are no configuration; empty if they are one. Args: problems, what is wrong with what it names."""
    try:
        return next(iter(problems(resolve({**common, **settings}))), "")
    except ConfigError as error:
        return error.problems[0]


def usable_corners(search: Search, common: Mapping[str, Any], problems: Problems) -> list[Settings]:
    """The corners of a search; of a case in which some of them contradict themselves (a rule that a choice cannot be tried on) the others,
    if there are any."""
    corners = search.corners()
    if len(search.cases) == 1:
        return corners
    each = len(corners) // len(search.cases)
    usable: list[Settings] = []
    for place in range(0, len(corners), each):
        of_case = corners[place : place + each]
        usable += [settings for settings in of_case if not contradiction(common, settings, problems)] or of_case
    return usable


def _distribution(key: str, values: Range | list[Any]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(values)
    if isinstance(default_flat().get(key, values.low), int) and isinstance(values.high, int):
        return IntDistribution(int(values.low), values.high, log=values.log)
    return FloatDistribution(float(values.low), float(values.high), log=values.log)
