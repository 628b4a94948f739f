"""Burn-in: clean central training before round 1, cached by the hash of everything that it depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor

from fl_sim.atomic_files import load_tensors, remove_parts, save_tensors
from fl_sim.config.keys import Config
from fl_sim.config.resolve import to_flat, to_json
from fl_sim.data.augmentation import cropped_and_flipped
from fl_sim.data.federation import Federation
from fl_sim.device import device_of
from fl_sim.model.module import new_module
from fl_sim.rng.streams import stream
from fl_sim.wire.arrays import flat_buffers, flat_parameters

DEPENDS_ON = ("seed", "data.", "model.", "schedule.burn-in", "attack.data", "attack.set-size", "strategy.probe-size")


class StartModel(NamedTuple):
    """The model of round 0: parameters theta (d,), batch-norm statistics (s,), and whether they came from the cache."""

    theta: Tensor
    buffers: Tensor
    cached: bool


def burn_in(config: Config, federation: Federation, progress: Callable[[int, int], None]) -> StartModel:
    """Train on the union of the clients' shares with SGD and momentum, or load what an equal burn-in left in the cache.

    Batch-norm statistics are learned here and frozen from here on (`fl_sim.model.architectures`). One thread, so that the same bytes come
    out on any machine of one kind. `progress(epoch, epochs)` is called after each epoch.
    """
    path = Path(config.data.cache_dir).expanduser() / "burn-in" / f"{cache_key(config, federation)}.safetensors"
    if found := _load(path, federation):
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # cells of a sweep share a burn-in, whichever process they run in
        if found := _load(path, federation):
            return found
        remove_parts(path)
        theta, buffers = _train(config, federation, progress)
        save_tensors(path, {"theta": theta, "buffers": buffers})
    return StartModel(theta, buffers, cached=False)


def _load(path: Path, federation: Federation) -> StartModel | None:
    """The cached model, or None where there is none or it is damaged."""
    try:
        found, _ = load_tensors(path)
    except (OSError, ValueError):
        return None
    return StartModel(found["theta"].to(federation.device), found["buffers"].to(federation.device), cached=True)


def cache_key(config: Config, federation: Federation, more: tuple[str, ...] = ()) -> str:
    """The hash of what the burnt-in model depends on: its keys, the data's statistics, the device and PyTorch. `more`: beginnings of
    further keys, for what is computed from the burnt-in model.
    """
    left_out = ("data.root", "data.cache-dir", "data.download")
    kept = {key: value for key, value in to_flat(config).items() if key.startswith(DEPENDS_ON + more) and not key.startswith(left_out)}
    data = [*federation.dataset.mean, *federation.dataset.std, len(federation.dataset.train.labels)]
    what = [to_json(kept), str(device_of(config)), torch.__version__, repr(data)]
    return hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]


def _train(config: Config, federation: Federation, progress: Callable[[int, int], None]) -> tuple[Tensor, Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    schedule, module = config.schedule, new_module(config, federation).train()
    parameters = list(module.parameters())
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    everything = np.sort(np.concatenate(federation.splits.shares))
    for epoch in range(schedule.burn_in_epochs):
        order = stream(config.seed, "burn-in", epoch).permutation(everything)
        draws = stream(config.seed, "burn-in-augmentation", epoch)
        augment = partial(cropped_and_flipped, generator=draws) if schedule.burn_in_augmentation == "crop-flip" else None
        for start in range(0, len(order), schedule.burn_in_batch_size):
            batch = federation.batch(federation.dataset.train, order[start : start + schedule.burn_in_batch_size], augment)
            gradients = torch.autograd.grad(F.cross_entropy(module(batch.inputs), batch.labels), parameters)
            with torch.no_grad():  # SGD with momentum by hand: torch.optim imports the compiler, 2 to 5 s of start-up
                for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
                    velocity.mul_(schedule.burn_in_momentum).add_(gradient).add_(parameter, alpha=schedule.burn_in_weight_decay)
                    parameter.sub_(schedule.burn_in_learning_rate * velocity)
        progress(epoch + 1, schedule.burn_in_epochs)
    torch.set_num_threads(threads)
    return flat_parameters(module), flat_buffers(module)
