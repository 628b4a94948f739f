"""Which transport a run with `grid.transport = "auto"` uses: the one that is likely to end first. All give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.device import device_of
from fl_sim.grid.gpu_shares import workers_here
from fl_sim.grid.ray_runtime import cluster_address
from fl_sim.model.module import new_module

# Measured on one core, docs/results/performance.md: W1 to W3, and the start-up.
RATE = 10e9  # floating-point operations per second
FIXED = 0.005  # seconds of a round that do not depend on the model
WAVE = 0.013  # seconds that a wave of messages over Ray adds to a round
START = 7.0  # seconds from the start to the first round, over Ray less `inline`


class Choice(NamedTuple):
    """A transport, and why it was chosen (empty if the configuration names it)."""

    transport: str
    reason: str = ""


def choose_transport(cells: Sequence[tuple[Config, int]], at_once: int) -> Choice:
    """The transport of a launch.

    With C seconds of computation in R rounds on one core and k workers that have something to do, `inline` takes C and Ray
    `START + C / k + R * WAVE`; the cells of a sweep run inside the workers, without messages. The smaller one wins.

    Args: cells, configurations with the number of their rounds; they share the transport's keys; at_once, the cells that may run at once.
    """
    config, rounds = cells[0][0], sum(rounds for _, rounds in cells)
    if config.grid.transport != "auto":
        return Choice(config.grid.transport)
    if reason := needs_ray(config):
        return Choice("ray", reason)
    workers = workers_here(config)[0]
    busy = min(workers, at_once) if at_once > 1 else min(workers, _blocks(config))
    if busy == 1:
        return Choice("inline", "there is work for one worker")
    if device_of(config).type == "cuda":
        return Choice("ray", f"there are {workers} GPUs")
    kinds: dict[str, float] = {}  # operations by what they depend on
    alone = 0.0
    for cell, rounds_of_cell in cells:
        kind = repr((cell.data, cell.model, cell.client, cell.clients_per_round))
        if kind not in kinds:
            kinds[kind] = operations(cell)
        alone += rounds_of_cell * (FIXED + kinds[kind] / RATE)
    over_ray = START + alone / busy + (rounds * WAVE if at_once == 1 else 0.0)
    estimate = f"about {alone:.0f} s in this process, {over_ray:.0f} s over Ray with {busy} busy workers"
    return Choice("ray" if over_ray < alone else "inline", estimate)


def needs_ray(config: Config) -> str:
    """The key that asks for Ray's workers; empty if there is none."""
    if cluster_address():
        return "RAY_ADDRESS is set"
    asked = {
        "ray.num-workers": config.ray.num_workers,
        "ray.gpus-per-worker": config.ray.gpus_per_worker,
        "client.timeout": config.client.timeout,
        "fault.kill-round": config.fault.kill_round,
    }
    return next((f"{key} is set" for key, value in asked.items() if value), "")


def _blocks(config: Config) -> int:
    """The most blocks that the clients of a round are in."""
    ids = config.clients_per_round if config.data.partition == "resampled" else config.data.num_clients
    return min(config.clients_per_round, -(-ids // config.client.block))


def operations(config: Config) -> float:
    """The floating-point operations of a round's training: three times those of the forward pass, for each example."""
    examples = config.clients_per_round * config.client.local_steps * config.client.batch_size
    return 3.0 * examples * _forward_operations(config)


def _forward_operations(config: Config) -> float:
    """Two for each weight of a matrix and each place to which a layer applies it, for one example."""
    here = config.model_copy(update={"device": "cpu"})
    federation, total = load_federation(here), 0.0

    def count(layer: nn.Module, arguments: Any, output: Any) -> None:
        nonlocal total
        for weight in layer.parameters(recurse=False):
            if weight.dim() > 1 and isinstance(output, Tensor):
                total += 2.0 * weight.numel() * output.numel() / len(weight)

    module = new_module(here, federation).eval()
    for layer in module.modules():
        layer.register_forward_hook(count)
    with torch.no_grad():
        module(torch.zeros(1, *federation.dataset.image_shape))
    return total
