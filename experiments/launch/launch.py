"""From checked flat keys to a finished run: preflight, then in this process or in Flower, with a progress display."""

from __future__ import annotations

import contextlib
import io
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from experiments.launch.name_checks import name_problems
from experiments.launch.progress import parse
from experiments.launch.superlink import run_in_flower
from experiments.sweep.search import Search
from fl_sim.atomic_files import CannotWriteError
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, resolve, resolve_cells
from fl_sim.data.datasets import load_dataset
from fl_sim.data.federation import load_federation
from fl_sim.grid.transports import claim_identity

APP_DIR = Path(__file__).resolve().parent.parent.parent
REPORT_EVERY = 30.0  # seconds between two lines of progress where there is no terminal to draw a bar on


def checked(flats: Sequence[Mapping[str, Any]], console: Console) -> list[Config]:
    """The configurations of flat keys. Raises ConfigError with the problems of all of them, preflight included."""
    configs: list[Config] = []
    problems: dict[str, None] = {}
    for flat in flats:
        try:
            configs.append(resolve(flat))
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
            if error.config and not any(problem.startswith("expected data.") for problem in error.problems):
                configs.append(error.config)
    try:
        if configs:
            preflight(configs, console)
    except ConfigError as error:
        problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))
    return configs


def preflight(configs: Sequence[Config], console: Console) -> None:
    """Everything that can be known to fail before a process is started: unknown names, missing, damaged or too little data, a
    device that is not there, an output folder that cannot be written. Reads the data, so that the cache is warm when workers ask for it.
    Raises ConfigError with all problems.
    """
    problems: dict[str, None] = {}
    for config in configs:
        unwritable = [
            text
            for key, folder in (("output-dir", config.output_dir), ("data.cache-dir", config.data.cache_dir))
            if (text := _place_problem(key, folder))
        ]
        problems |= dict.fromkeys([*name_problems(config), *(unwritable or _data_problems(config, console))])
    if any(config.device == "cuda" for config in configs) and not torch.cuda.is_available():
        problems["expected device to be 'auto' or 'cpu' on a machine without a CUDA device, got 'cuda'"] = None
    if problems:
        raise ConfigError(list(problems))


def _place_problem(key: str, place: str) -> str:
    """Why nothing can be written into a folder, which need not exist yet; empty if something can."""
    try:
        folder = Path(place).expanduser()
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if "\0" in place:
            raise ValueError("embedded null byte")
        with TemporaryFile(dir=folder) as file:  # permissions alone do not tell: root may everything, except where nobody can
            file.write(b"0")
    except (OSError, ValueError, RuntimeError) as error:  # a name with a NUL; a ~ of nobody
        reason = error.strerror if isinstance(error, OSError) else error
        return f"expected {key} to be a folder that can be written, got {place!r} ({reason})"
    return ""


def _data_problems(config: Config, console: Console) -> list[str]:
    """Load data set and splits; what is wrong with them."""
    data = config.data
    try:
        with console.status(f"reading {data.name}") as status:
            load_dataset(
                data.name,
                data.root,
                download=data.download,
                cache_dir=Path(data.cache_dir).expanduser(),
                progress=lambda done, total: status.update(f"reading {data.name}: {done}/{total}"),
            )
        load_federation(config.model_copy(update={"device": "cpu"}))  # this process needs no GPU
    except CannotWriteError as error:
        return [f"expected data.cache-dir to have room for the data, got {data.cache_dir!r} ({error})"]
    except (ValueError, OSError) as error:
        return [str(error)]
    return []


def launch(flat: Mapping[str, Any], workers: int | None, console: Console, title: str) -> int:
    """Run flat keys with a progress bar (in a log file: a line now and then) and return an exit code. On failure the last lines of the
    log are shown."""
    search = str(flat.get("search", ""))
    first = Search.from_json(search).corners()[0] if search else {}
    config = resolve_cells({**flat, **first})[0]
    lines: list[str] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    reported = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{title} · starting", total=None)

        def on_line(line: str) -> None:
            nonlocal reported
            event = parse(line)
            if event is None:
                lines.append(line)
                return
            progress.update(task, total=event.total, completed=event.done, description=f"{title} · {event.what}")
            if not console.is_terminal and (event.done == event.total or time.monotonic() - reported >= REPORT_EVERY):
                reported = time.monotonic()
                text = f"{title} · {event.done} of {event.total} rounds · {event.run}, {event.what}"
                console.print(text, markup=False, highlight=False, soft_wrap=True)

        code = _inline(flat, on_line) if config.grid.transport == "inline" else _in_flower(flat, config, workers, on_line)
    if code:
        console.print("\n".join(lines[-40:]), markup=False, highlight=False, soft_wrap=True)
        console.print("[red]error:[/] the run failed; its log ends above")
    return code


def cpu_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_flower(flat: Mapping[str, Any], config: Config, workers: int | None, on_line: Any) -> int:
    """`flwr run` on a SuperLink of our own. The CPUs are our workers': Flower's own Ray actors get what they need."""
    cores = cpu_cores()
    if config.grid.transport == "flower":
        nodes = workers or 2
        return run_in_flower(APP_DIR, flat, on_line=on_line, num_supernodes=nodes, ray_cpus=min(nodes, cores)).exit_code
    count = config.ray.num_workers or (0 if os.environ.get("RAY_ADDRESS") else cores)
    return run_in_flower(APP_DIR, {**flat, "ray.num-workers": count}, on_line=on_line, num_supernodes=1).exit_code


def _inline(flat: Mapping[str, Any], on_line: Any) -> int:
    """The ServerApp in this process, without SuperLink and Ray."""
    from experiments.server_app import serve

    claim_identity()
    try:
        with contextlib.redirect_stdout(_Lines(on_line)):
            serve(flat, None)
    except CannotWriteError as error:
        on_line(str(error))
        return 1
    except Exception:
        for line in traceback.format_exc().splitlines():
            on_line(line)
        return 1
    return 0


class _Lines(io.TextIOBase):
    """A text stream that hands each complete line on."""

    def __init__(self, on_line: Any) -> None:
        self._on_line, self._rest = on_line, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._on_line(line)
        return len(text)
