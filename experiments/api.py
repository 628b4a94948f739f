"""The face for Python: what `import fl_sim` gives (`fl_sim.__init__` loads it by name).

run = fl_sim.run("digits", {"strategy.name": "dgc", "seed": 7})
run.summary.accuracy.after_trigger, run.rounds, run.model()
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pydantic import ValidationError
from rich.console import Console
from torch import nn

from clients.accumulative.objectives import Aim
from clients.action import Action
from clients.knowledge import Knowledge
from experiments.launch.cells import checked_cells
from experiments.launch.launch import error_console, start
from experiments.launch.paths import complete_keys, offer_own_modules
from experiments.launch.preflight import checked, notes
from experiments.launch.progress.display import display
from experiments.objects import OBJECTS, Options, expect_known, flat_settings, named
from experiments.records.folder import is_complete, run_folder
from experiments.records.reading import DamagedError, first_problem, read_config, read_lines, read_summary
from experiments.run.summary import Summary
from experiments.sweep.spec import Sweep, read_preset, read_sweep, sweep_of
from experiments.sweep.study import Run as StudyRun
from experiments.sweep.study import Study as StudyRecord
from experiments.sweep.study import complete_runs, read_study, write_study
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, config_of, resolve
from fl_sim.model.saved import load_model
from fl_sim.training.clipping import Clip
from fl_sim.wire.messages import AttackState
from strategies.dgc.discrepancy import memorization_discrepancy
from strategies.rule import Rule

if TYPE_CHECKING:
    import pandas

    from experiments.report.comparing.comparison import Comparison

__all__ = [
    "Action", "Aim", "AttackState", "Clip", "Config", "Knowledge", "Rule", "Run", "Study", "compare", "load_model",
    "memorization_discrepancy", "open_study", "resolve", "run", "sweep",
]  # fmt: skip

SETTINGS = {"output_dir": "output-dir", "transport": "grid.transport", "workers": "ray.num-workers"}


@dataclass(frozen=True)
class Run:
    """A complete run, from its records."""

    folder: Path

    @cached_property
    def config(self) -> Config:
        """Every key. Raises DamagedError."""
        return config_of(read_config(self.folder))

    @cached_property
    def summary(self) -> Summary:
        """What the run came to: accuracies in percent, differences in points. Raises DamagedError."""
        try:
            return Summary.model_validate(read_summary(self.folder))
        except ValidationError as error:
            raise DamagedError(f"{self.folder / 'summary.json'} is damaged, or of another version ({first_problem(error)})") from None

    @cached_property
    def rounds(self) -> pandas.DataFrame:
        """A row per round and track, a column per number of `rounds.jsonl` (nested ones by dots: `attack.scale`). Raises
        DamagedError."""
        import pandas

        return pandas.json_normalize(read_lines(self.folder))

    def model(self) -> nn.Module:
        """The last model of the attacked track, in eval mode on the CPU."""
        return load_model(self.folder)

    def draw(self, width: str | float = "page") -> list[Path]:
        """Draw the run's figures into its folder; their paths. Args: width, `column`, `page` or inches. Raises ConfigError."""
        from experiments.report.figures.run_figures import draw_figures
        from experiments.report.figures.style import inches_of

        return draw_figures(self.folder, inches_of(width))


@dataclass(frozen=True, repr=False)
class Study:
    """The complete runs of a sweep, of a search, or below any folder."""

    folder: Path
    record: StudyRecord

    def __repr__(self) -> str:
        complete = sum(is_complete(self.folder / name) for name in self.record.folders)
        return f"Study({str(self.folder)!r}, {len(self.record.folders)} runs, {complete} complete)"

    @property
    def runs(self) -> list[Run]:
        """The complete runs, in the study's order."""
        return [Run(run.folder) for run in self._complete()]

    def frame(self) -> pandas.DataFrame:
        """A row per complete run: every axis, the folder, and every figure of its summary (`accuracy.after_trigger`)."""
        from experiments.report.frame import study_frame

        return study_frame(self._complete())

    def report(self, *, latex: bool = False, parquet: bool = False, width: str | float = "page") -> list[Path]:
        """Write table, figures and report.html into the folder; their paths. latex: also results.tex; parquet: also results.parquet;
        width, of the figures: `column`, `page` or inches. Raises ConfigError."""
        from experiments.report.figures.style import inches_of
        from experiments.report.outputs import write_outputs

        return write_outputs(self.folder, self.record, self._complete(), parquet=parquet, latex=latex, width=inches_of(width))

    def _complete(self) -> list[StudyRun]:
        """The complete runs; a warning for each that is damaged."""
        runs, problems = complete_runs(self.folder, self.record)
        for problem in problems:
            warnings.warn(problem, stacklevel=3)
        return runs


def run(base: str | Path = "digits", settings: Mapping[str, Any] | None = None, /, **options: Unpack[Options]) -> Run:
    """Run one configuration, or open it if it is complete already.

    Args: base, a preset's name or a TOML file; settings, keys over it (`{"strategy.name": "mean", "seed": 3}`); output_dir (`runs`);
    transport, `inline` (the default here: no other process), `ray` or `flower`; workers, of `ray` and `flower`; progress, false for a
    silent run. Attack, objective, strategy, model, data, partition, tracking: names, or with `inline` the objects themselves.
    Raises ConfigError with every problem of the configuration, TypeError for another argument, RuntimeError when the run fails.
    """
    expect_known("fl_sim.run", options)
    flat = _keys(read_preset(base), settings or {}, options)
    (config,) = checked([flat], _console(options))
    folder = run_folder(Path(config.output_dir), config)
    _warn([config], [folder], options)
    if not is_complete(folder):
        _start(flat, options, f"{config.name} · {config.attack.name} against {config.strategy.name}")
    return Run(folder)


def sweep(
    spec: str | Path | Mapping[str, Any], settings: Mapping[str, Any] | None = None, /, *, scale: str = "", **options: Unpack[Options]
) -> Study:
    """Run all cells of a sweep that are not complete yet.

    Args: spec, a study's name, a TOML file, or its tables as a mapping (`{"base": …, "set": {…}, "axes": {…}, "name": …}`); settings,
    keys over all cells; scale, one of the spec's; the rest as in `run`.
    Raises ConfigError, TypeError, and RuntimeError after all other cells when one failed.
    """
    expect_known("fl_sim.sweep", options, "scale")
    plan = _plan(spec, scale)
    cells = checked_cells(plan, _keys(plan.common, settings or {}, options), _console(options))
    _warn(cells.configs, cells.folders, options)
    write_study(cells.output_dir, cells.study)
    if not cells.complete:
        _start(cells.keys, options, f"{plan.name}: {len(cells.configs)} runs")
    return Study(cells.output_dir, cells.study)


def open_study(folder: str | Path) -> Study:
    """The study in a folder: of a sweep or a search, or all runs below it. Raises ConfigError where there is none."""
    folder = Path(folder).expanduser().absolute()
    return Study(folder, read_study(folder))


def compare(a: str | Path | Run | Study, b: str | Path | Run | Study, /) -> Comparison:
    """Compare the complete runs of two folders; `.frame()` has a row per matched cell and number, `.settings` the keys that differ.

    Damaged and incomplete runs are left out, and `.notes` names them. Raises ConfigError if no cell of the one is in the other."""
    from experiments.report.comparing.comparison import compare_folders

    return compare_folders(*(_folder_of(thing) for thing in (a, b)))


def _folder_of(thing: str | Path | Run | Study) -> Path:
    return thing.folder if isinstance(thing, Run | Study) else Path(thing).expanduser().absolute()


def _plan(spec: str | Path | Mapping[str, Any], scale: str) -> Sweep:
    if isinstance(spec, Mapping):
        tables = dict(spec)
        return sweep_of(str(tables.pop("name", "sweep")), tables, scale)
    return read_sweep(spec, scale)


def _keys(base: Mapping[str, Any], settings: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """The flat keys of a call."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    given = dict[str, Any](options)
    explicit = {key: str(given[name]) if key == "output-dir" else given[name] for name, key in SETTINGS.items() if name in given}
    flat = complete_keys(base, {"grid.transport": "inline", "output-dir": "runs"}, flat_settings(settings), named(given), explicit)
    objects = [OBJECTS[name] for name, thing in given.items() if name in OBJECTS and not isinstance(thing, str)]
    if objects and (transport := flat["grid.transport"]) != "inline":
        what = f"with transport {transport!r}, got an object: put it into a file and name it file.py:name"
        raise ConfigError([f"expected {key} to be a name {what}" for key in objects])
    offer_own_modules([flat])
    return flat


def _warn(configs: Sequence[Config], folders: Sequence[Path], options: Options) -> None:
    for note in notes(configs, folders, _console(options)):
        warnings.warn(note, stacklevel=3)


def _console(options: Options) -> Console:
    return error_console(quiet=not options.get("progress", True))


def _start(flat: Mapping[str, Any], options: Options, title: str) -> None:
    lines: list[str] = []
    with display(_console(options), title, lines) as on_line:
        start(flat, options.get("workers"), on_line)
