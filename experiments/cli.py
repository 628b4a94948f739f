"""The command `fl-sim`."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from experiments.command_line import parser
from experiments.launch.cells import Cells, checked_cells
from experiments.launch.launch import error_console, launch
from experiments.launch.name_checks import name_problems
from experiments.launch.paths import complete_keys, offer_own_modules
from experiments.launch.preflight import checked, notes
from experiments.records.folder import failure_of, is_complete, run_folder
from experiments.records.reading import DamagedError, read_summary
from experiments.run.checkpoint import latest_checkpoint
from experiments.run.phases import expected_rounds
from experiments.sweep.inaction import inaction_notes
from experiments.sweep.search import Trial, contradiction, evaluated, explore, read_search, usable_corners
from experiments.sweep.spec import Cell, read_preset, read_sweep
from experiments.sweep.study import Study, complete_runs, read_run, read_study, write_study
from fl_sim.atomic_files import CannotWriteError, writing
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, default_flat, parse_assignment, resolve
from fl_sim.grid.gpu_shares import workers_here
from fl_sim.grid.transport_choice import choose_transport
from fl_sim.registry import how_to_install
from fl_sim.waits import ProcessError

# What draws and tabulates (experiments.report) takes seconds to import: each command imports what it needs when the runs are done.

BAD_INPUT = 2
BROKEN_PIPE = 141  # as of a program that SIGPIPE ends
OPTION_KEYS = {
    "transport": "grid.transport",
    "workers": "ray.num-workers",
    "parallel": "ray.parallel",
    "gpus_per_worker": "ray.gpus-per-worker",
}
FILE_WIDTH = 160  # characters that a table in a file may have at least
LONGEST = 10_000  # characters that it may have at most


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run, and return the exit code: 0 done, 1 the run failed, 2 bad input, 141 the reader of the output left."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    _print_anything()
    arguments, others = parser().parse_known_args(argv)
    console = error_console()
    if others:
        for sentence in _unknown_words(others):
            _error(sentence, console)
        return BAD_INPUT
    try:
        code = COMMANDS[arguments.command](arguments, console)
        with writing(Path("standard output")):
            if sys.stdout is not None:
                sys.stdout.flush()  # an error is raised here, and not at the end of the process
        return code
    except ConfigError as error:
        for problem in error.problems:
            _error(problem, console)
        return BAD_INPUT
    except BrokenPipeError:
        return _without_reader()
    except CannotWriteError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            return _without_reader()
        _error(str(error), console)
        return 1
    except (DamagedError, ProcessError) as error:
        _error(str(error), console)
        return 1


def _unknown_words(words: Sequence[str]) -> list[str]:
    """Sentences about words that the command line does not know; for an option that is part of a key, how it is set."""
    sentences: list[str] = []
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.lstrip("-").partition("=")
        keys = [key for key in default_flat() if key in (name, f"{name}.name") or key.endswith(f".{name}")]
        value = value if equals else after if not after.startswith("-") else ""
        if word.startswith("-") or not sentences:
            hint = f"; set keys with -c: -c {keys[0]}={value or '...'}" if keys and word.startswith("-") else ""
            sentences.append(f"unknown argument {word!r}{hint}")
    return sentences


def _run(arguments: argparse.Namespace, console: Console) -> int:
    presets: dict[str, Any] = {}
    if words := [word for word in arguments.presets if "=" in word and not word.endswith(".toml")]:
        raise ConfigError([f"expected a preset, got {word!r}; set keys with -c: -c {word}" for word in words])
    for preset in arguments.presets or ["digits"]:
        presets |= read_preset(preset)
    flat = complete_keys(presets, _overrides(arguments))
    offer_own_modules([flat])
    (config,) = checked([flat], console)
    folder = run_folder(Path(config.output_dir), config)
    _say(notes([config], [folder], console), console)
    if is_complete(folder):
        console.print(f"already complete: {folder}", highlight=False, soft_wrap=True)
    else:
        if arguments.resume:
            expect_checkpoint(folder, config)
        say_where_it_stands(folder, config, console)
        code = launch(flat, arguments.workers, console, title=f"{config.name} · {config.attack.name} against {config.strategy.name}")
        if code:
            return code
    from experiments.report.figures.run_figures import draw_figures
    from experiments.report.tables import run_table

    run = read_run(folder)
    _print_table(run_table(run.summary, run.config))
    _say(inaction_notes([run]), console)
    _print(f"records: {folder}")
    for figure in draw_figures(folder):
        _print(f"figure:  {figure}")
    return 0


def _sweep(arguments: argparse.Namespace, console: Console) -> int:
    sweep = read_sweep(arguments.spec, arguments.scale)
    cells = checked_cells(sweep, complete_keys(sweep.common, _overrides(arguments)), console)
    _say(notes(cells.configs, cells.folders, console), console)
    if arguments.plan:
        return _plan(cells, console)
    for folder, config in zip(cells.folders, cells.configs, strict=True):
        if not is_complete(folder):
            say_where_it_stands(folder, config, console)
    write_study(cells.output_dir, cells.study)
    code = 0 if cells.complete else launch(cells.keys, arguments.workers, console, title=f"{sweep.name}: {len(cells.folders)} runs")
    if any(map(is_complete, cells.folders)):
        _show(cells.output_dir, cells.study, console)
    _say_failures(cells.folders, console)
    return code


def _plan(cells: Cells, console: Console) -> int:
    from experiments.sweep.plan import plan_table

    first = cells.configs[0]
    transport = choose_transport([(config, expected_rounds(config)) for config in cells.configs], len(cells.configs)).transport
    usual = workers_here(first)[0] if transport == "ray" else 1  # Flower's SuperNodes share one cell after the other
    workers = first.ray.num_workers or usual
    with console.status("timing a round of each kind"):
        table = plan_table(cells.sweep.cells, cells.configs, cells.folders, transport, workers)
    _print_table(table)
    return 0


def say_where_it_stands(folder: Path, config: Config, console: Console) -> None:
    """Say from where an interrupted run will go on, and which of its checkpoints are damaged.

    Raises ConfigError if its checkpoint is of another configuration."""
    latest = latest_checkpoint(folder, config)
    if latest.checkpoint:
        position = latest.checkpoint.position
        where = f"round {position.round} of the {position.track} track"
        console.print(f"{folder.name} goes on after {where}", highlight=False, soft_wrap=True)
    for path in latest.damaged:
        instead = "the one before is used" if latest.checkpoint else "the run begins anew"
        _say([f"{path.name} is damaged; {instead}"], console)


def expect_checkpoint(folder: Path, config: Config) -> None:
    """Raise ConfigError if a run has no checkpoint to go on from, with the keys in which an interrupted one of the same name differs."""
    if latest_checkpoint(folder, config).checkpoint:
        return
    hexadecimal = "[0-9a-f]" * 12
    others = [path for path in folder.parent.glob(f"{config.name}-{hexadecimal}") if not is_complete(path)]
    for other in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        latest_checkpoint(other, config)  # raises: it is another's
    raise ConfigError([f"expected an interrupted run with a checkpoint in {str(folder)!r} with --resume, found none"])


def _search(arguments: argparse.Namespace, console: Console) -> int:
    search = read_search(arguments.spec)
    common = complete_keys(search.common, _overrides(arguments))
    offer_own_modules([common])
    configs = checked([{**common, **settings} for settings in usable_corners(search, common, name_problems)], console)
    output_dir = Path(configs[0].output_dir) / search.name
    common["output-dir"] = str(output_dir)

    def look_up() -> list[Trial]:
        return explore(search, lambda batch: evaluated(common, output_dir, batch, problems=name_problems))

    code, trials = 0, look_up()
    missing = [
        run_folder(output_dir, resolve({**common, **settings}))
        for settings, summary, _ in trials
        if summary is None and not contradiction(common, settings, name_problems)
    ]
    if not all(map(is_complete, missing)):
        what = f"{search.name}: {search.total} settings"
        code = launch({**common, "search": search.to_json()}, arguments.workers, console, title=what)
        trials = look_up()
    if nonsense := [text for settings, *_ in trials if (text := contradiction(common, settings, name_problems))]:
        console.print(f"{len(nonsense)} of {len(trials)} settings contradict each other: {nonsense[0]}", highlight=False, soft_wrap=True)
    _say(_damages(missing), console)
    _say_failures(missing, console)
    tried = {run_folder(output_dir, resolve({**common, **trial.settings})).name: trial for trial in trials if trial.summary is not None}
    if not tried:
        return code or 1
    cells = tuple(Cell(trial.settings, trial.labels) for trial in tried.values())
    study = Study(search.name, common, cells, tuple(tried), stealth_limit=search.stealth_limit, axes=tuple(search.axes))
    write_study(output_dir, study)
    _show(output_dir, study, console)
    return code


def _say_failures(folders: Sequence[Path], console: Console) -> None:
    for folder in folders:
        if reason := failure_of(folder):
            _error(f"{folder.name} failed: {reason}", console)


def _damages(folders: Sequence[Path]) -> list[str]:
    """A sentence for each complete run whose summary is damaged."""
    sentences = dict[str, None]()
    for folder in filter(is_complete, folders):
        try:
            read_summary(folder)
        except DamagedError as error:
            sentences[f"{error}; the run is left out"] = None
    return list(sentences)


def _report(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.parquet and not find_spec("pyarrow"):
        raise ConfigError([f"expected pyarrow with --parquet: {how_to_install('parquet')}"])
    from experiments.report.figures.style import inches_of

    chosen = {"parquet": arguments.parquet, "latex": arguments.latex, "width": inches_of(arguments.width)}
    _show(arguments.folder, read_study(arguments.folder), console, **chosen)
    return 0


def _show(folder: Path, study: Study, console: Console, **chosen: Any) -> None:
    """Write what a study's records give, and print its tables. Args: chosen, of `write_outputs`. Raises ConfigError without a complete
    run."""
    from experiments.report.outputs import study_tables, write_outputs

    runs, problems = complete_runs(folder, study)
    _say(problems, console)
    if not runs:
        others = len(study.folders) - len(problems)
        damaged = f" and {len(problems)} damaged" if problems else ""
        raise ConfigError([f"expected DIR to hold a complete run, got {str(folder)!r} with {others} incomplete{damaged}"])
    with console.status("figures and report"):
        written = write_outputs(folder, study, runs, **chosen)
    for table in study_tables(folder, study, runs):
        _print_table(table)
    _say(inaction_notes(runs), console)
    kinds = {".csv": "records:", ".parquet": "records:", ".tex": "table:  ", ".png": "figure: ", ".html": "report: "}
    for path in written:
        _print(f"{kinds[path.suffix]} {path}")


def _list(arguments: argparse.Namespace, console: Console) -> int:
    from experiments.report.tables import runs_table

    if not arguments.folder.is_dir():
        raise ConfigError([f"expected DIR to be a folder with runs, got {str(arguments.folder)!r}"])
    table, problems = runs_table(arguments.folder)
    _print_table(table)
    _say(problems, console)
    return 0


def _compare(arguments: argparse.Namespace, console: Console) -> int:
    from experiments.report.comparing.comparison import compare_folders
    from experiments.report.comparing.tables import comparison_tables, expect_suffix, write_comparison

    if arguments.file:
        expect_suffix(arguments.file)
    comparison = compare_folders(arguments.folder, arguments.other)
    _say(comparison.notes, console)
    for table in comparison_tables(comparison):
        _print_table(table)
    if arguments.file:
        write_comparison(arguments.file, comparison)
        _print(f"written: {arguments.file}")
    return 0


def _watch(arguments: argparse.Namespace, console: Console) -> int:
    from experiments.launch.progress.watch import watch

    with writing(Path("standard output")):
        return 0 if watch(arguments.folder, _output(), _print_table, once=arguments.once) else 1


class _Output(Console):
    """Standard output."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 - rich calls this where it has caught BrokenPipeError


def _print_anything() -> None:
    """Let standard output and error print every text: what their encoding does not have, as `\\xfc`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


def _output() -> Console:
    return _Output(emoji=False, markup=False, highlight=False)


def _print_table(table: Table) -> None:
    """Print a table to standard output: as wide as the terminal, or in a file as wide as the table. Raises CannotWriteError."""
    out = _output()
    if not (sys.stdout and sys.stdout.isatty()):
        out.width = max(FILE_WIDTH, Measurement.get(out, out.options.update(max_width=LONGEST), table).maximum)
    with writing(Path("standard output")):
        out.print(table)


def _print(line: str) -> None:
    with writing(Path("standard output")):
        print(line)


def _say(sentences: Sequence[str], console: Console) -> None:
    for sentence in sentences:
        console.print(Text.assemble(("warning: ", "yellow"), sentence), soft_wrap=True)


def _error(sentence: str, console: Console) -> None:
    console.print(Text.assemble(("error: ", "red"), sentence), soft_wrap=True)


def _without_reader() -> int:
    """The exit code when nobody reads the output any more (`fl-sim list | head -1`). What Python still has to print goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or no file
            os.dup2(nowhere, stream.fileno())
    return BROKEN_PIPE


def _doctor(_: argparse.Namespace, console: Console) -> int:
    from experiments.launch.doctor import doctor

    return doctor(console)


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flat keys that the command line sets."""
    flat: dict[str, Any] = {}
    problems: list[str] = []
    for text in arguments.overrides:
        try:
            key, value = parse_assignment(text)
            flat[key] = value
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    flat.setdefault("output-dir", str(arguments.output_dir))
    if arguments.ray_address:
        os.environ["RAY_ADDRESS"] = arguments.ray_address
    for option, key in OPTION_KEYS.items():
        if (value := getattr(arguments, option, None)) is None:
            continue
        if key in flat and flat[key] != value:
            problems.append(f"{key} is set twice: {flat[key]!r} with -c, {value!r} with --{option.replace('_', '-')}")
        flat[key] = value
    if problems:
        raise ConfigError(problems)
    return flat


COMMANDS: Mapping[str, Callable[[argparse.Namespace, Console], int]] = {
    "run": _run,
    "sweep": _sweep,
    "search": _search,
    "list": _list,
    "report": _report,
    "compare": _compare,
    "watch": _watch,
    "doctor": _doctor,
}
