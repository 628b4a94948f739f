"""Checks before a process is started: everything that can be known to fail."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from rich.console import Console

from experiments.launch.name_checks import name_problems
from fl_sim.atomic_files import CannotWriteError
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, resolve
from fl_sim.data.federation import Federation, load_federation, read_federation
from fl_sim.model.module import model_problem
from strategies.catalogue import reads_weights_of
from strategies.checks import strategy_notes

CONNECT_LIMIT = 5.0  # seconds


def checked(flats: Sequence[Mapping[str, Any]], console: Console) -> list[Config]:
    """The configurations of flat keys, after `preflight`. Raises ConfigError with the problems of all of them."""
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
    """Check everything that can be known to fail before a process is started: unknown names; missing, damaged or too little data; a device
    that is not there; an output folder that cannot be written. It reads the data, so that workers find it in the cache.
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
    problems |= dict.fromkeys(filter(None, [_ray_problem()] if any(config.grid.transport == "ray" for config in configs) else []))
    if any(config.device == "cuda" for config in configs) and not torch.cuda.is_available():
        problems["expected device to be 'auto' or 'cpu' on a machine without a CUDA device, got 'cuda'"] = None
    if problems:
        raise ConfigError(list(problems))


def notes(configs: Sequence[Config]) -> list[str]:
    """Warnings about valid configurations that may not do what the user expects, one sentence each."""
    sentences = dict[str, None]()
    for config in configs:
        federation = load_federation(config.model_copy(update={"device": "cpu"}))
        sentences |= dict.fromkeys([*federation.dataset.notes, *strategy_notes(config), *_weight_notes(config, federation)])
    return list(sentences)


def _weight_notes(config: Config, federation: Federation) -> list[str]:
    """That a strategy ignores the weights of clients, if these differ."""
    shares = [len(share) for share in federation.splits.shares]
    weights = {"batch": {min(share, config.client.batch_size) for share in shares}, "share": set(shares), "equal": {1}}
    if len(weights[config.client.weight]) == 1 or reads_weights_of(config):
        return []
    return [f"{config.strategy.name} ignores client.weight = {config.client.weight!r}: every client counts the same, for the coalition too"]


def _place_problem(key: str, place: str) -> str:
    """Why a folder, which need not exist yet, cannot be written into; empty if it can."""
    try:
        folder = Path(place).expanduser()
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if "\0" in place:
            raise ValueError("embedded null byte")
        with TemporaryFile(dir=folder) as file:  # os.access is not enough: for root it is true even on a read-only disk
            file.write(b"0")
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL byte; RuntimeError: ~user of a user who does not exist
        reason = error.strerror if isinstance(error, OSError) else error
        return f"expected {key} to be a folder that can be written, got {place!r} ({reason})"
    return ""


def _data_problems(config: Config, console: Console) -> list[str]:
    """What is wrong with the data set, its splits and the model for it. Loads the data."""
    data = config.data
    try:
        with console.status(f"reading {data.name}") as status:
            here = config.model_copy(update={"device": "cpu"})  # this process needs no GPU
            federation = read_federation(here, lambda done, total: status.update(f"reading {data.name}: {done}/{total}"))
        if problem := model_problem(here, federation):
            return [problem]
    except CannotWriteError as error:
        return [f"expected data.cache-dir to have room for the data, got {data.cache_dir!r} ({error})"]
    except (ValueError, OSError) as error:
        return [str(error)]
    return []


def _ray_problem() -> str:
    """Why the Ray cluster at RAY_ADDRESS cannot be joined; empty if it answers, or if there is no address."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():  # "auto" and the like: Ray finds the cluster itself
        return ""
    try:
        with socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=CONNECT_LIMIT):
            return ""
    except OSError as error:
        return f"expected RAY_ADDRESS (--ray-address) to be that of a running Ray cluster, got {address!r} ({error.strerror or error})"
