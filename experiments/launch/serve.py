"""The ServerApp's work: one run, all cells of a sweep, or a search, with one set of workers."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid

from experiments.launch.name_checks import name_problems
from experiments.launch.progress.lines import CellsFailedError, ProgressLines
from experiments.launch.remote_cell import pieces_of
from experiments.records.copies import Piece, continuation, copy_run
from experiments.records.folder import is_complete, run_folder, write_failure
from experiments.run.execute import Progress, execute_run, run_lock
from experiments.run.phases import expected_rounds
from experiments.run.shared_twins import TWINS, twins_for
from experiments.sweep.search import Search, evaluated, explore, usable_corners
from fl_sim.atomic_files import CannotWriteError
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, resolve, resolve_cells, to_flat, to_json
from fl_sim.device import device_of
from fl_sim.grid.transport_choice import choose_transport
from fl_sim.grid.transports import CellTransport, FlowerTransport, InlineTransport, Transport, WorkerDiedError
from fl_sim.outside_code import OutsideCodeError, is_interrupt
from fl_sim.waits import ProcessError

WORKER = "clients.client_app:answer"
REMOTE_CELL = "experiments.launch.remote_cell:run_remotely"


def serve(flat: Mapping[str, Any], grid: Grid | None) -> None:
    """Run what the flat keys describe: one run, the cells of a sweep, or a search. `grid`: Flower's; None if `fl-sim` runs without Flower.

    Raises `ConfigError` for a bad configuration, `CannotWriteError` at once, and RuntimeError for failed cells after all cells have ended.
    """
    search, common, cells = _planned(flat)
    problems = dict.fromkeys(problem for cell in cells for problem in name_problems(cell))
    if problems:
        raise ConfigError(list(problems))
    config = cells[0]  # for the keys that all cells share: transport, workers, output folder
    torch.set_num_threads(config.client.threads)
    transport = open_transport(config, _chosen(search, cells), grid)
    total, at_once = (search.total, search.at_once) if search else (len(cells), len(cells))
    rounds = total * expected_rounds(config) if search else sum(expected_rounds(cell) for cell in cells)
    runner = _Cells(absolute_output_dir(config.output_dir), transport, ProgressLines(rounds), total, at_once, config.ray.parallel)
    try:
        if search:
            explore(search, lambda batch: evaluated(common, runner.output_dir, batch, runner.run_all, name_problems))
        else:
            runner.run_all(cells)
    finally:
        transport.close()
        runner.close()
    if runner.failures:
        raise CellsFailedError("failed: " + "; ".join(runner.failures))
    print(f"results are in {runner.output_dir}", flush=True)


def _planned(flat: Mapping[str, Any]) -> tuple[Search | None, dict[str, Any], list[Config]]:
    """The search that flat keys describe, if it is one; the keys that all its trials share; and its corners, or the cells of a sweep."""
    common = {key: value for key, value in flat.items() if key != "search"}
    if not flat.get("search"):
        return None, common, resolve_cells(flat)
    search = Search.from_json(str(flat["search"]))
    return search, common, [resolve({**common, **settings}) for settings in usable_corners(search, common, name_problems)]


def chosen_transport(flat: Mapping[str, Any]) -> str:
    """The transport of a launch. With `auto` it prints which one and why."""
    search, _, cells = _planned(flat)
    return _chosen(search, cells)


def _chosen(search: Search | None, cells: Sequence[Config]) -> str:
    if cells[0].grid.transport != "auto":
        return cells[0].grid.transport
    planned = [(cells[0], search.total * expected_rounds(cells[0]))] if search else [(cell, expected_rounds(cell)) for cell in cells]
    choice = choose_transport(planned, search.at_once if search else len(cells))
    print(f"transport: {choice.transport} ({choice.reason})", flush=True)
    return choice.transport


class _Cells:
    """Runs cells with a transport, at most as many at once as it has workers."""

    def __init__(self, output_dir: Path, transport: Transport, progress: ProgressLines, total: int, at_once: int, parallel: int) -> None:
        self.output_dir, self._transport, self._progress, self._total = output_dir, transport, progress, total
        self._parallel = min(at_once, transport.num_workers, parallel or transport.num_workers)
        self._max_messages, self._twins = transport.num_workers // self._parallel, output_dir / TWINS
        self.failures: list[str] = []
        self.close()  # an earlier launch may have used other code, another PyTorch or another device

    def close(self) -> None:
        """Remove the clean twins that the cells share while they run."""
        shutil.rmtree(self._twins, ignore_errors=True)

    def run_all(self, cells: Sequence[Config]) -> None:
        """Run the cells that are not complete. `failures` gets a sentence for each that fails."""
        if self._parallel == 1:
            self.failures.extend(filter(None, map(self._run, cells)))
            return
        with ThreadPoolExecutor(self._parallel) as pool:
            self.failures.extend(filter(None, pool.map(self._run, cells)))

    def _run(self, cell: Config) -> str:
        """Run a cell. Returns why it failed, empty if it did not."""
        planned, failure, folder = expected_rounds(cell), "", Path(cell.name)
        try:
            folder = run_folder(self.output_dir, cell)
            if not is_complete(folder):
                self._execute(cell, self._progress.of_run(folder.name, planned))
        except BaseException as error:  # code from outside may also raise SystemExit
            sentence, users = str(error).partition("\n")[0], isinstance(error, OutsideCodeError)
            reason = sentence if users else f"{type(error).__name__}: {sentence}"
            if folder.parent == self.output_dir and not isinstance(error, CannotWriteError | ProcessError) and not is_interrupt(error):
                write_failure(folder, reason)
            if self._total == 1 or isinstance(error, CannotWriteError) or is_interrupt(error):  # the other cells could not write either
                raise
            if users:
                print(error, file=sys.stderr)
            else:
                traceback.print_exc()
            failure = f"{folder.name}: {reason}"
        self._progress.finish(folder.name, planned, failure or "complete")
        return failure

    def _execute(self, cell: Config, progress: Progress) -> None:
        """Run a cell from this process, or as a whole in one worker, so that no round waits for messages."""
        by_messages = bool(cell.fault.kill_round or cell.client.timeout)  # keys that are about messages to workers
        in_one_worker = self._total > 1 and self._max_messages == 1 and not by_messages
        if in_one_worker and isinstance(self._transport, CellTransport):
            self._run_remotely(cell, self._transport, progress)
            return
        torch.set_num_threads(cell.client.threads)
        execute_run(cell, self.output_dir, self._transport, progress, self._max_messages, self._twins if self._total > 1 else None)

    def _run_remotely(self, cell: Config, transport: CellTransport, progress: Progress) -> None:
        """Run a cell in a worker; if the worker dies, once more, from the last checkpoint that arrived."""
        folder = run_folder(self.output_dir, cell)
        with run_lock(folder, cell.data.cache_dir):
            for last in (False, True):
                if is_complete(folder):  # another process may have completed it during the wait for the lock
                    return
                earlier = continuation(self.output_dir, folder)
                files = [*earlier, *(Piece(f"{TWINS}/{path.name}", path.read_bytes()) for path in twins_for(self._twins, cell))]
                try:
                    with closing(transport.run_cell(REMOTE_CELL, to_json(to_flat(cell)), folder.name, files)) as stream:
                        copy_run(self.output_dir, folder, cell, continues=bool(earlier), pieces=pieces_of(stream, progress))
                    return
                except WorkerDiedError as error:
                    if last:
                        raise
                    print(f"fl-sim: {error}; {folder.name}, which it ran, is run once more", flush=True)


def open_transport(config: Config, name: str, grid: Grid | None) -> Transport:
    """The transport `inline`, `flower` or `ray`."""
    if name == "inline":
        from clients.client_app import answer

        return InlineTransport(answer)
    if name == "flower":
        if grid is None:
            raise ValueError("expected Flower's grid with grid.transport = 'flower'; start it with `flwr run` or `fl-sim run`")
        return FlowerTransport(grid)
    from fl_sim.grid.ray_workers import RayTransport  # importing Ray takes a second, and the other transports do not need it

    ray, on_gpu = config.ray, device_of(config).type == "cuda"
    return RayTransport(WORKER, ray.num_workers, ray.gpus_per_worker, on_gpu=on_gpu, start_timeout=ray.start_timeout)


def absolute_output_dir(output_dir: str) -> Path:
    """The output folder as an absolute path. A relative one is below FL_SIM_HOME (default ~/.fl-sim), because plain `flwr run` may use a
    SuperLink that was started in another working directory. `fl-sim` itself passes an absolute path.
    """
    return Path(os.environ.get("FL_SIM_HOME", "~/.fl-sim")).expanduser() / Path(output_dir).expanduser()
