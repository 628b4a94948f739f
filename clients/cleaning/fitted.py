"""The fitted parts of a cleaning, cached by a hash of everything that they depend on, like a burn-in."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from clients.cleaning.catalogue import cleaning_of
from clients.cleaning.fitting import LEAST_PUBLIC, Fitting, Progress
from clients.pixels import pixel_scale
from fl_sim.atomic_files import load_tensors, remove_parts, save_tensors
from fl_sim.config.keys import Config
from fl_sim.config.options import parse_options
from fl_sim.data.federation import Federation
from fl_sim.model.burn_in import burn_in, cache_key
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from fl_sim.waits import locked

VERSION = 1  # of what is fitted and how; caches of other versions are ignored
DEPENDS_ON = ("cleaning.", "client.", "server.")  # beside what the burn-in depends on


class Fitted(NamedTuple):
    """Named tensors on the CPU, their digest (empty without any), and the key of the cache."""

    tensors: dict[str, Tensor]
    digest: str = ""
    key: str = ""


def cleaning_problem(config: Config, federation: Federation) -> str:
    """Why the cleaning of a configuration cannot be used with its data, as a sentence; empty if it can."""
    name = config.cleaning.name
    if name == "none":
        return ""
    if federation.dataset.train.inputs.is_floating_point():
        return f"expected a data set of images with cleaning.name = {name!r}, got features (data.name = {config.data.name!r})"
    if cleaning_of(name).public and len(federation.splits.public) < LEAST_PUBLIC:
        return f"expected data.public-size >= {LEAST_PUBLIC} with cleaning.name = {name!r}, got {config.data.public_size}"
    return ""


def fitted(config: Config, federation: Federation, progress: Progress = lambda done, steps: None) -> Fitted:
    """What the cleaning of a configuration needs, fitted or from the cache. The same for the server and for every worker.

    Raises ValueError if the cleaning cannot be used with the data.
    """
    if config.cleaning.name == "none":
        return Fitted({})
    if problem := cleaning_problem(config, federation):
        raise ValueError(problem)
    key = _purifier_key(config, federation) if cleaning_of(config.cleaning.name).stored else cache_key(config, federation, DEPENDS_ON)
    path = Path(config.data.cache_dir).expanduser() / f"cleaning-{VERSION}" / f"{key}.safetensors"
    return _loaded(str(path)) or _fit(config, federation, path, progress)


def _purifier_key(config: Config, federation: Federation) -> str:
    """The hash of what a purifier depends on: less than other cleanings, because its training takes long."""
    iterations = parse_options(config.cleaning.options).get("iterations")
    digest = hashlib.sha256(repr((config.cleaning.name, config.seed, iterations, str(federation.device), torch.__version__)).encode())
    digest.update(federation.dataset.fingerprint.encode())
    digest.update(federation.splits.public.tobytes())
    return digest.hexdigest()[:16]


def _fit(config: Config, federation: Federation, path: Path, progress: Progress) -> Fitted:
    with locked(path.with_suffix(".lock"), "fits the same cleaning") as alive:
        if before := _loaded(str(path)):
            return before
        remove_parts(path)

        def on_step(done: int, steps: int) -> None:
            alive()
            progress(done, steps)

        start = burn_in(config, federation, lambda _done, _epochs: alive())
        model = FlatModel(new_module(config, federation), start.buffers, bfloat16=config.client.precision == "bfloat16")
        scale = pixel_scale(federation.dataset, federation.device)
        assert scale is not None
        tensors = cleaning_of(config.cleaning.name).fit(Fitting(config, federation, model, start, scale, on_step))
        save_tensors(path, {**tensors, "fitted": torch.ones(1)})
    result = _loaded(str(path))
    assert result is not None
    return result


def _loaded(path: str) -> Fitted | None:
    """The cached tensors; None if there are none or they are damaged."""
    try:
        stat = Path(path).stat()
        return _read(path, stat.st_mtime_ns)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=4)
def _read(path: str, changed: int) -> Fitted:
    """A process-wide cache by the file and the time of its last change."""
    tensors, _ = load_tensors(Path(path))
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return Fitted(tensors, digest.hexdigest()[:16], Path(path).stem)
