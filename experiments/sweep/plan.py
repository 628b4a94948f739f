"""What a sweep would run and about how long it would take, without running it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from clients.client_app import answer
from experiments.records.folder import is_complete
from experiments.records.identity import run_hash
from experiments.run.evaluator import Evaluator
from experiments.run.phases import expected_rounds
from experiments.run.track import RunInputs
from experiments.sweep.spec import Cell
from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.grid.grid import ClientGrid, play_round
from fl_sim.grid.transports import InlineTransport, claim_identity
from fl_sim.model.burn_in import StartModel
from fl_sim.model.module import new_module
from fl_sim.model.vectors import flat_buffers, flat_parameters

START_UP = {"inline": 3.5, "ray": 10.0, "flower": 40.0}  # seconds on two cores, by transport (docs/results/performance.md)
ATTACK = 1.3  # a round of the default attack over an honest one: 15 and 11.6 ms with W5 of docs/results/performance.md
TICK = 0.1  # seconds: no wave of Flower's own engine is faster


def plan_table(cells: Sequence[Cell], configs: Sequence[Config], folders: Sequence[Path], transport: str, workers: int) -> Table:
    """Every cell with its hash, whether it is complete already, its rounds and the seconds that they may take; and the sum.

    Not counted: burn-ins, calibrations, DGC's scores, figures. The rounds of a clean twin that several cells share are counted for each of
    them.
    """
    round_times: dict[str, float] = {}  # by what the time of a round depends on
    table = Table(caption_justify="left")
    for column in (*cells[0].labels, "hash", "rounds", "seconds"):
        table.add_column(column, justify="right" if column in ("rounds", "seconds") else "left")
    left = estimate = 0.0
    for cell, config, folder in zip(cells, configs, folders, strict=True):
        parts = (config.data, config.model, config.client, config.server, config.strategy, config.evaluate)
        key = repr(parts)
        rounds, done = expected_rounds(config), is_complete(folder)
        if not done:
            round_times[key] = round_times[key] if key in round_times else round_seconds(config)
            factor = 1.0 if config.attack.name == "none" else ATTACK
            least = TICK if transport == "flower" else 0.0
            estimate = rounds * max(factor * round_times[key], least)
            left += estimate
        table.add_row(*cell.labels.values(), run_hash(config), str(rounds), "complete" if done else f"{estimate:.0f}")
    todo = sum(not is_complete(folder) for folder in folders)
    together = START_UP[transport] + left / workers if todo else 0.0
    table.caption = f"{len(cells)} cells, {todo} to run: about {together / 60:.0f} min with {workers} workers (an estimate)"
    return table


def round_seconds(config: Config) -> float:
    """Seconds of an honest round of a configuration and of its share of an evaluation, measured in this process on the initial model."""
    torch.set_num_threads(config.client.threads)
    claim_identity()
    federation = load_federation(config)
    module = new_module(config, federation)
    start = StartModel(flat_parameters(module), flat_buffers(module), cached=False)
    inputs = RunInputs(config, InlineTransport(answer), federation, start, Evaluator(config, federation, start), None, 0, {})
    strategy, grid = inputs.new_strategy(), ClientGrid(inputs.transport, config, start.buffers)
    seconds: list[float] = []
    for round_ in (1, 2):
        played = play_round(strategy, grid, round_, phase="")
        began = time.perf_counter()
        inputs.evaluator.part(start.theta)
        seconds.append(played.seconds + (time.perf_counter() - began) / config.evaluate.every)
    return min(seconds)
