"""The ServerApp: one run, or all cells of a sweep, over one set of workers."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from experiments.launch.name_checks import name_problems
from experiments.launch.progress import ProgressLines
from experiments.records.folder import is_complete, run_folder
from experiments.run.execute import execute_run, expected_rounds
from experiments.run.track import Progress
from experiments.sweep.search import Search, evaluated, explore
from fl_sim.atomic_files import CannotWriteError
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, resolve, resolve_cells, to_flat, to_json
from fl_sim.device import device_of
from fl_sim.grid.transports import FlowerTransport, HostingTransport, InlineTransport, Transport, WorkerDiedError

CLIENT_APP = "clients.client_app:app"
HOSTED_RUN = "experiments.launch.hosted:hosted_run"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's entry point."""
    serve(dict(context.run_config), grid)


def serve(flat: Mapping[str, Any], grid: Grid | None) -> None:
    """Run what the flat keys describe: a run, the cells of a sweep, or a search. `grid` is Flower's; None only with
    `grid.transport = "inline"`.

    Raises `ConfigError` for a bad configuration, `CannotWriteError` at once, and RuntimeError when a cell failed, after the others ended.
    """
    search = Search.from_json(str(flat["search"])) if flat.get("search") else None
    common = {key: value for key, value in flat.items() if key != "search"}
    cells = [resolve({**common, **settings}) for settings in search.corners()] if search else resolve_cells(flat)
    config = cells[0]  # for what all cells share: transport, workers, output folder
    problems = dict.fromkeys(problem for cell in cells for problem in name_problems(cell))
    if problems:
        raise ConfigError(list(problems))
    torch.set_num_threads(config.client.threads)
    output_dir = absolute_output_dir(config.output_dir)
    transport = open_transport(config, grid)
    total, at_once = (search.trials, search.batch) if search else (len(cells), len(cells))
    progress = ProgressLines(total * expected_rounds(config) if search else sum(expected_rounds(cell) for cell in cells))
    parallel = min(at_once, transport.num_workers, config.ray.parallel or transport.num_workers)
    orders, twins = transport.num_workers // parallel, output_dir / ".twins"

    def execute(cell: Config, report: Progress) -> None:
        whole = total > 1 and orders == 1 and not (cell.fault.kill_round or cell.client.timeout)  # about workers asked by messages
        if whole and isinstance(transport, HostingTransport) and transport.hosts:
            _host(cell, output_dir, twins, transport, report)
        else:
            torch.set_num_threads(cell.client.threads)
            execute_run(cell, output_dir, transport, report, orders, twins if total > 1 else None)

    def run(cell: Config) -> str:
        folder = run_folder(output_dir, cell)
        used = 0
        failure = ""
        if not is_complete(folder):
            try:
                execute(cell, progress.of_run(folder.name))
                used = (folder / "rounds.jsonl").read_text(encoding="utf-8").count("\n")
            except Exception as error:
                if total == 1 or isinstance(error, CannotWriteError):  # the other cells could not write either
                    raise
                traceback.print_exc()
                failure = f"{folder.name}: {type(error).__name__}: {error}"
        progress.finished(folder.name, expected_rounds(cell), used, failure or "complete")
        return failure

    failures: list[str] = []

    def run_all(cells: Sequence[Config]) -> None:
        if parallel == 1:
            failures.extend(filter(None, map(run, cells)))
            return
        with ThreadPoolExecutor(parallel) as pool:
            failures.extend(filter(None, pool.map(run, cells)))

    shutil.rmtree(twins, ignore_errors=True)  # another launch may have had other code, another PyTorch, another device
    try:
        if search:
            explore(search, lambda batch: evaluated(common, output_dir, batch, run_all))
        else:
            run_all(cells)
    finally:
        transport.close()
        shutil.rmtree(twins, ignore_errors=True)
    if failures:
        raise RuntimeError("failed: " + "; ".join(failures))
    print(f"results are in {output_dir}", flush=True)


def _host(cell: Config, output_dir: Path, twins: Path, transport: HostingTransport, report: Progress) -> None:
    """Run a cell in a worker; once more if the worker dies."""
    for last in (False, True):
        try:
            for steps in transport.host(HOSTED_RUN, to_json(to_flat(cell)), str(output_dir), str(twins)):
                for step in steps:
                    report(*step)
            return
        except WorkerDiedError:
            if last:
                raise


def open_transport(config: Config, grid: Grid | None) -> Transport:
    """The transport of `grid.transport`."""
    if config.grid.transport == "inline":
        from clients.client_app import app as client_app

        return InlineTransport(client_app)
    if config.grid.transport == "flower":
        if grid is None:
            raise ValueError("expected Flower's grid with grid.transport = 'flower'; start it with `flwr run` or `fl-sim run`")
        return FlowerTransport(grid)
    from fl_sim.grid.ray_workers import RayTransport  # Ray takes a second to import and the other transports do without

    return RayTransport(CLIENT_APP, config.ray.num_workers, config.ray.gpus_per_worker, on_gpu=device_of(config).type == "cuda")


def absolute_output_dir(output_dir: str) -> Path:
    """The output folder; a relative one is under FL_SIM_HOME (default ~/.fl-sim), because a SuperLink that outlives the
    command keeps the working directory it was started with. `fl-sim` passes an absolute one.
    """
    return Path(os.environ.get("FL_SIM_HOME", "~/.fl-sim")).expanduser() / Path(output_dir).expanduser()
