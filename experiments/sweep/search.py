"""The worst case of an attack over its own settings: a sweep whose cells are found as it goes.

A defence is judged by the attack that was made for it. Optuna's TPE (Watanabe 2023) with a constraint looks for the settings that leave the
least accuracy after the trigger, among those that stay below the stealth limit. It proposes `batch` settings at a time and hears of them in
order, so its proposals depend on the results alone, not on how many workers there are: asked again, it proposes the same, finds the runs
that are complete, and goes on where it was interrupted.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from experiments.records.folder import is_complete, read_summary, run_folder
from experiments.sweep.spec import preset_path
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, default_flat, flatten, read_toml, resolve

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

STEALTH_LIMIT = 2.0  # points that the phase may cost before an attack counts as noticed
KEYS = {"base", "set", "space", "trials", "batch", "stealth-limit", "seed"}

Summaries = Sequence[Mapping[str, Any] | None]
Settings = dict[str, Any]  # flat keys
Trial = tuple[Settings, Mapping[str, Any] | None]  # with the summary of their run, if it is complete


@dataclass(frozen=True)
class Search:
    """What to look through: `space` by key, a list of choices or {low, high, log}; how many settings, how many of them at a time; and
    the points of accuracy that the phase before the trigger may cost."""

    name: str
    common: Mapping[str, Any]
    space: Mapping[str, Any]
    trials: int = 40
    batch: int = 4
    stealth_limit: float = STEALTH_LIMIT
    seed: int = 1

    def to_json(self) -> str:
        """Everything but the common keys, for the ServerApp."""
        names = ("name", "space", "trials", "batch", "stealth_limit", "seed")
        return json.dumps({name: getattr(self, name) for name in names})

    @staticmethod
    def from_json(text: str) -> Search:
        """The inverse of `to_json`."""
        return Search(common={}, **json.loads(text))

    def corners(self) -> list[Settings]:
        """Settings that hold every choice and both ends of every range: if these are valid, all are, cross-checks aside."""
        ends = {key: values if isinstance(values, list) else [values["low"], values["high"]] for key, values in self.space.items()}
        most = max(map(len, ends.values()))
        return [{key: values[min(i, len(values) - 1)] for key, values in ends.items()} for i in range(most)]


def read_search(path: Path) -> Search:
    """Read a spec: `base` and `[set]` as in a sweep, `[space]`, and `trials`, `batch`, `stealth-limit`, `seed`.

    Raises ConfigError naming the file and what is wrong.
    """
    try:
        spec = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"cannot read {str(path)!r}: {error}"]) from None
    problems = [f"{path}: unknown key {key!r}; a search has {', '.join(sorted(KEYS))}" for key in sorted(set(spec) - KEYS)]
    for name, least in (("trials", 1), ("batch", 1), ("seed", 0)):
        value = spec.get(name, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            problems.append(f"{path}: expected {name} to be a whole number >= {least}, got {value!r}")
    limit = spec.get("stealth-limit", STEALTH_LIMIT)
    if not isinstance(limit, int | float) or isinstance(limit, bool) or not limit >= 0.0:
        problems.append(f"{path}: expected stealth-limit >= 0 points, got {limit!r}")
    space = _space(spec.get("space"))
    if not space:
        problems.append(f"{path}: expected [space] to be a table with at least one key, got {spec.get('space')!r}")
    for key, values in space.items():
        if (problem := _range_problem(values)) is not None:
            problems.append(f"{path}: expected space.{key} to be a list of choices or {{low, high, log}}, {problem}, got {values!r}")
    if problems:
        raise ConfigError(problems)
    common = {
        **read_toml(preset_path(str(spec.get("base", "digits")))),
        "name": path.stem.replace("_", "-"),
        **flatten(spec.get("set", {})),
    }
    given = {name.replace("-", "_"): spec[name] for name in ("trials", "batch", "stealth-limit", "seed") if name in spec}
    return Search(path.stem, common, space, **given)


def _space(table: Any) -> dict[str, Any]:
    """The flat keys of `[space]`; an unquoted dotted key is a table of tables, down to what has a `low`."""
    found: dict[str, Any] = {}
    for key, value in cast(dict[str, Any], table if isinstance(table, dict) else {}).items():
        if isinstance(value, dict) and "low" not in value and "high" not in value:
            found |= {f"{key}.{inner}": values for inner, values in _space(value).items()}
        else:
            found[key] = value
    return found


def _range_problem(values: Any) -> str | None:
    """Why a space's entry is none, or None."""
    if isinstance(values, list):
        return None if values else "with at least one choice"
    if not isinstance(values, dict):
        return "a table or a list"
    entry = cast(dict[str, Any], values)
    low, high = entry.get("low"), entry.get("high")
    if set(entry) - {"low", "high", "log"} or not isinstance(entry.get("log", False), bool):
        return "with nothing but these and log true or false"
    if not all(isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end) for end in (low, high)):
        return "with finite numbers"
    low, high = cast(float, low), cast(float, high)
    return None if low < high and (low > 0.0 or not entry.get("log")) else "with low < high, and low > 0 where log"


def explore(search: Search, evaluate: Callable[[list[Settings]], Summaries]) -> list[Trial]:
    """All settings that the search tries, in order, with their summaries; None where `evaluate` has none.

    Args: evaluate, the summaries of a batch of settings.
    """
    import optuna  # a second, and runs do without

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=search.seed))
    distributions = {key: _distribution(key, values) for key, values in search.space.items()}
    found: list[Trial] = []
    while len(found) < search.trials:
        asked = [study.ask(distributions) for _ in range(min(search.batch, search.trials - len(found)))]
        settings = [dict(trial.params) for trial in asked]
        for trial, tried, summary in zip(asked, settings, evaluate(settings), strict=True):
            if summary is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                trial.set_constraint("stealth", stealth_cost(summary) - search.stealth_limit)
                study.tell(trial, left_after(summary))
            found.append((tried, summary))
    return found


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
    return [read_summary(folder) if folder and is_complete(folder) else None for folder in folders]


def left_after(summary: Mapping[str, Any]) -> float:
    """Accuracy (percent) after the trigger, or at the end of a run in which none fired."""
    accuracy = summary["accuracy"]
    return accuracy["final"] if accuracy["after_trigger"] is None else accuracy["after_trigger"]


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


def _distribution(key: str, values: Any) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, list):
        return CategoricalDistribution(cast(list[Any], values))
    low, high, log = values["low"], values["high"], values.get("log", False)
    if isinstance(default_flat()[key], int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)
