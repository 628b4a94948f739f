"""From checked flat keys to a complete run, with a progress display: in this process, with Ray that it starts, or in Flower."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import traceback
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from experiments.launch.app_folder import app_folder
from experiments.launch.progress.display import OnLine, display
from experiments.launch.progress.lines import CellsFailedError
from experiments.launch.superlink import run_in_flower
from experiments.records.reading import DamagedError
from experiments.sweep.search import Search
from fl_sim.atomic_files import CannotWriteError
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, resolve_cells
from fl_sim.device import cpu_cores
from fl_sim.grid.gpu_shares import workers_here
from fl_sim.grid.ray_runtime import cluster_address, ray_running
from fl_sim.grid.transports import claim_identity
from fl_sim.outside_code import OutsideCodeError, is_interrupt
from fl_sim.waits import ProcessError

LOG_TAIL = 40  # last lines of a failed run's log that are shown
LINE_LENGTH = 10_000  # characters of a line that are kept: code from outside may print a megabyte


def launch(flat: Mapping[str, Any], workers: int | None, console: Console, title: str) -> int:
    """Run flat keys and return an exit code. Shows progress (see `display`), and on failure the last lines of the log."""
    lines, sentence = list[str](), "the run failed; its log ends above"
    with display(console, title, lines) as on_line:
        try:
            start(flat, workers, on_line)
            code = 0
        except RunFailedError:
            code = 1
        except CellsFailedError:
            return 1  # each was printed when it failed, and has a `failure.txt`
        except (CannotWriteError, ConfigError, DamagedError, OutsideCodeError, ProcessError) as error:
            sentence, *report = str(error).splitlines() or [type(error).__name__]
            lines[:] = report  # where the user's code raised
            code = 1
        except BaseException as error:  # code from outside may also raise SystemExit
            if is_interrupt(error):
                raise
            for line in traceback.format_exc().splitlines():
                on_line(line)
            code = 1
    if code:
        if lines:
            console.print("\n".join(lines[-LOG_TAIL:]), markup=False, highlight=False, soft_wrap=True)
        console.print(Text.assemble(("error: ", "red"), sentence), soft_wrap=True)
    return code


class RunFailedError(RuntimeError):
    """A run in Flower's processes failed; its log says why."""


def start(flat: Mapping[str, Any], workers: int | None, on_line: OnLine) -> None:
    """Run flat keys. `on_line` is called with each line that the run prints.

    Raises what the run raises; RunFailedError if it ran in Flower's processes.
    """
    config = _first(flat)
    if config.grid.transport == "flower":
        nodes = workers or 2
        flower_run = run_in_flower(app_folder(), flat, on_line=on_line, num_supernodes=nodes, ray_cpus=min(nodes, cpu_cores()))
        if flower_run.exit_code:
            raise RunFailedError(f"Flower says that the run ended as {flower_run.status!r}")
        return
    from experiments.launch.serve import (
        chosen_transport,
        serve,
    )  # it imports everything that a run needs; in Flower another process does that

    claim_identity()
    with contextlib.redirect_stdout(_Lines(on_line)):
        if (transport := chosen_transport(flat)) == "inline":
            serve({**flat, "grid.transport": transport}, None)
            return
        count = config.ray.num_workers if cluster_address() else workers_here(config)[0]
        with ray_running():
            serve({**flat, "grid.transport": transport, "ray.num-workers": count}, None)


def error_console(*, quiet: bool = False) -> Console:
    """Standard error. Square brackets and colons in a text are text."""
    return Console(stderr=True, emoji=False, markup=False, quiet=quiet)


def _first(flat: Mapping[str, Any]) -> Config:
    """The first of the configurations, for the keys that all of them share."""
    search = str(flat.get("search", ""))
    corner = Search.from_json(search).corners()[0] if search else {}
    cells = json.loads(flat.get("cells") or "[{}]")  # a sweep has thousands
    return resolve_cells({**flat, **corner, "cells": json.dumps(cells[:1])})[0]


class _Lines(io.TextIOBase):
    """A text stream that calls a function with each complete line."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line, self._rest, self._lock = on_line, "", threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, rest = text.split("\n")
            if lines:
                lines[0], self._rest = self._rest + lines[0], ""
            self._rest = (self._rest + rest)[:LINE_LENGTH]
            for line in lines:
                self._on_line(line[:LINE_LENGTH])
        return len(text)

    def close(self) -> None:
        """Nothing: code from outside may close `sys.stdout`, and the run goes on."""
