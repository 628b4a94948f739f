"""Checks before a process is started: everything that can be known to fail."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil
import torch
from rich.console import Console

from clients.cleaning.fitted import cleaning_problem
from experiments.launch.name_checks import class_problem, name_problems
from experiments.launch.progress.counted import counted
from experiments.records.identity import same_keys_other_data
from experiments.run.attack_success import success_problem
from fl_sim.atomic_files import CannotWriteError
from fl_sim.config.idle_keys import idle_key_notes
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, resolve
from fl_sim.data.federation import DataSource, Federation, data_source, load_federation, read_data
from fl_sim.data.sampling import malicious_clients
from fl_sim.device import cpu_cores, gpus_here
from fl_sim.grid.gpu_shares import gpu_problem, workers_here
from fl_sim.grid.ray_runtime import cluster_address, cluster_problem, short_folder
from fl_sim.grid.transport_choice import needs_ray
from fl_sim.model.module import model_problem
from strategies.catalogue import reads_weights_of
from strategies.checks import strategy_notes

CELL_MEMORY = 40.0  # bytes of a number of a confusion matrix, as a tensor and in a list
WORKER_MEMORY = 0.15e9  # bytes that a worker needs at least, on its own


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
    sources: dict[DataSource, list[str]] = {}
    with counted(console, "checking the cells", len(configs)) as on_step:
        for done, config in enumerate(configs):
            on_step(done)
            problems |= dict.fromkeys(_problems(config, sources, partial(on_step, done)))
    problems |= dict.fromkeys(_process_problems(configs[0]))
    if any(config.device == "cuda" for config in configs) and not torch.cuda.is_available():
        problems["expected device to be 'auto' or 'cpu' on a machine without a CUDA device, got 'cuda'"] = None
    if problems:
        raise ConfigError(list(problems))


def _problems(config: Config, sources: dict[DataSource, list[str]], on_step: Callable[[str], None]) -> list[str]:
    """What is wrong with one configuration. sources: the data sets that have been read, and what was wrong with each."""
    unwritable = [
        text
        for key, folder in (("output-dir", config.output_dir), ("data.cache-dir", config.data.cache_dir))
        if (text := _place_problem(key, folder))
    ]
    of_names = name_problems(config)
    again = any(text.startswith(("data.", "model.", "attack.")) for text in of_names)  # it would be the same problem
    return [*of_names, *unwritable, *([] if unwritable or again else _data_problems(config, sources, on_step))]


def notes(configs: Sequence[Config], folders: Sequence[Path], console: Console) -> list[str]:
    """Warnings about valid configurations that may not do what the user expects, one sentence each. folders: of their runs."""
    sentences = dict.fromkeys([*same_keys_other_data(folders, configs), *idle_key_notes(configs), *_nobody_malicious(configs)])
    with counted(console, "looking at the cells once more", len(configs)) as on_step:
        for done, config in enumerate(configs):
            on_step(done)
            federation = load_federation(config.model_copy(update={"device": "cpu"}))
            sentences |= dict.fromkeys([*federation.dataset.notes, *strategy_notes(config), *_weight_notes(config, federation)])
    return list(sentences)


def _nobody_malicious(configs: Sequence[Config]) -> list[str]:
    """That no configuration with an attack has a malicious client."""
    attacked = [config for config in configs if config.attack.name != "none"]
    if not attacked or any(malicious_clients(config) for config in attacked):
        return []
    share = attacked[0].attack
    what = (
        f"attack.poison-ratio = {share.poison_ratio}"
        if share.poison_ratio >= 0
        else f"attack.malicious-fraction = {share.malicious_fraction}"
    )
    return [f"no client is malicious ({what}): attack.name = {share.name!r} does nothing"]


def _weight_notes(config: Config, federation: Federation) -> list[str]:
    """That a strategy ignores the weights of clients, if these differ."""
    shares = federation.splits.sizes
    weights = {"batch": {min(share, config.client.batch_size) for share in shares}, "share": shares, "equal": {1}}
    if len(weights[config.client.weight]) == 1 or reads_weights_of(config):
        return []
    return [f"{config.strategy.name} ignores client.weight = {config.client.weight!r}: every client counts the same, for the coalition too"]


def _place_problem(key: str, place: str) -> str:
    """Why a folder, which need not exist yet, cannot be written into; empty if it can."""
    if not place:  # it would be the working directory, which is another one in other processes
        return f"expected {key} to be a folder that can be written, got ''"
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


def _data_problems(config: Config, sources: dict[DataSource, list[str]], on_step: Callable[[str], None]) -> list[str]:
    """What is wrong with the data set, its splits and the model for it. Reads a data set that is not in `sources`."""
    here, name = config.model_copy(update={"device": "cpu"}), config.data.name  # this process needs no GPU
    if (source := data_source(here)) not in sources:
        on_step(f"reading {name}")
        with _problems_of(config) as problems:
            read_data(here, lambda done, total: on_step(f"reading {name}: {done}/{total}"))
        sources[source] = problems
    if sources[source]:
        return sources[source]
    with _problems_of(config) as problems:
        federation = load_federation(here)
        checks = (model_problem, success_problem, class_problem, cleaning_problem, _matrix_problem)
        problems += list(islice(filter(None, (check(here, federation) for check in checks)), 1))
    return problems


@contextmanager
def _problems_of(config: Config) -> Generator[list[str]]:
    """Yields a list, to which is added why the data cannot be used if the block raises that."""
    problems: list[str] = []
    try:
        yield problems
    except CannotWriteError as error:
        problems.append(f"expected data.cache-dir to have room for the data, got {config.data.cache_dir!r} ({error})")
    except (ValueError, OSError) as error:
        problems.append(str(error))


def _matrix_problem(_: Config, federation: Federation) -> str:
    """Why there are too many classes for a confusion matrix, as a sentence; empty if there are not."""
    classes, room = federation.dataset.num_classes, psutil.virtual_memory().available
    most = int((room / CELL_MEMORY) ** 0.5)
    if classes <= most:
        return ""
    return f"expected data with at most {most} classes ({room / 1e9:.1f} GB of memory are free for a confusion matrix), got {classes}"


def _process_problems(config: Config) -> list[str]:
    """Why the processes of a transport cannot be started or joined, for the keys that all cells of a launch share."""
    if config.grid.transport == "inline" or (config.grid.transport == "auto" and not needs_ray(config)):
        return []
    try:
        short_folder()
    except ConfigError as error:
        return error.problems
    if problem := cluster_problem():
        return [problem]
    return [] if config.grid.transport == "flower" or cluster_address() else list(filter(None, _worker_problems(config)))


def _worker_problems(config: Config) -> list[str]:
    """Why this machine has no place for the workers of a Ray of our own. (A cluster's GPUs are counted when it is joined.)"""
    count, share = workers_here(config)
    room = psutil.virtual_memory().available
    most = max(int(room / WORKER_MEMORY), 1)
    return [
        gpu_problem(count, share, cpu_cores(), [gpus_here()], "this machine"),
        f"expected ray.num-workers <= {most} ({room / 1e9:.1f} GB of memory are free), got {count}" if count > most else "",
    ]
