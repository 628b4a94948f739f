"""Burn-in: clean central training before round 1, cached by a hash of everything that it depends on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_sim.atomic_files import load_tensors, remove_parts, save_tensors
from fl_sim.config.keys import Config
from fl_sim.config.resolve import hashed_keys, to_json
from fl_sim.data.augmentation import cropped_and_flipped
from fl_sim.data.batches import Indices
from fl_sim.data.federation import Federation
from fl_sim.data.population.resampled import ResampledShares
from fl_sim.data.splits import Splits
from fl_sim.device import device_of
from fl_sim.model.architectures import MODELS, is_plain
from fl_sim.model.module import batch_starts, new_module
from fl_sim.model.outside import failure
from fl_sim.model.vectors import flat_buffers, flat_parameters, trained_parameters
from fl_sim.outside_code import end_if_forked, is_interrupt, settings_kept
from fl_sim.process_ends import ends_refused
from fl_sim.rng.streams import seeded_global_generators, stream
from fl_sim.waits import locked

DEPENDS_ON = ("seed", "data.", "model.", "schedule.burn-in", "attack.data", "attack.set-size", "strategy.probe-size")


class StartModel(NamedTuple):
    """The model of round 0: trained parameters theta (d,), buffers (s,) (batch-norm statistics), and whether they came from the cache."""

    theta: Tensor
    buffers: Tensor
    cached: bool


def burn_in(config: Config, federation: Federation, progress: Callable[[int, int], None]) -> StartModel:
    """Train on the union of the clients' shares, or on the burn-in's own examples (`data.burn-in-share`), with SGD and momentum; or load
    the result of an equal burn-in from the cache.

    The module is in train mode here and in eval mode in the rounds: batch-norm statistics are learned here and then frozen
    (`fl_sim.model.architectures`); dropout acts here (the same draws for the same seed) and is off in the rounds. One thread, so that
    machines of the same kind give the same bytes. `progress(epoch, epochs)` is called after each epoch.
    Raises ModelError if an outside model fails, ProcessError if another process holds the same burn-in for too long.
    """
    path = Path(config.data.cache_dir).expanduser() / "burn-in" / f"{cache_key(config, federation)}.safetensors"
    if start := _load(path, federation):
        return start
    with locked(path.with_suffix(".lock"), "trains the same burn-in") as alive:  # cells of a sweep share it, in whatever process they run
        if start := _load(path, federation):
            return start
        remove_parts(path)

        def on_epoch(epoch: int, epochs: int) -> None:
            alive()
            progress(epoch, epochs)

        theta, buffers = _train(config, federation, on_epoch)
        save_tensors(path, {"theta": theta, "buffers": buffers})
    return StartModel(theta, buffers, cached=False)


def _load(path: Path, federation: Federation) -> StartModel | None:
    """The cached model; None if there is none or it is damaged."""
    try:
        tensors, _ = load_tensors(path)
    except (OSError, ValueError):
        return None
    return StartModel(tensors["theta"].to(federation.device), tensors["buffers"].to(federation.device), cached=True)


def cache_key(config: Config, federation: Federation, more: tuple[str, ...] = ()) -> str:
    """The hash of what the burnt-in model depends on: its keys (with the content of an outside model and of `model.start`), the data and
    its splits, the device and PyTorch. `more`: prefixes of further keys, for things computed from the burnt-in model.
    """
    keys = {key: value for key, value in hashed_keys(config).items() if key.startswith(DEPENDS_ON + more)}
    content = [federation.dataset.fingerprint, _splits_digest(federation.splits)]
    what = [to_json(keys), *content, str(device_of(config)), torch.__version__]
    return hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]


def _splits_digest(splits: Splits) -> str:
    shares = () if isinstance(splits.shares, ResampledShares) else splits.shares
    digest = hashlib.sha256(repr([len(share) for share in shares] or splits.shares).encode())
    for indices in (*shares, splits.own_set, splits.probe, splits.test, splits.burn_in, splits.public):
        digest.update(np.ascontiguousarray(indices).data)
    return digest.hexdigest()


def _train(config: Config, federation: Federation, progress: Callable[[int, int], None]) -> tuple[Tensor, Tensor]:
    module = new_module(config, federation)
    velocities = [torch.zeros_like(parameter) for parameter in trained_parameters(module).values()]
    examples = federation.splits.trained_before
    batches = batch_starts(len(examples), config.schedule.burn_in_batch_size, module, federation.dataset.image_shape)
    with settings_kept():  # a model from outside may change some when it is trained
        torch.set_num_threads(1)
        for epoch in range(config.schedule.burn_in_epochs):
            order = stream(config.seed, "burn-in", epoch).permutation(examples)
            with nullcontext() if is_plain(module) else _dropout_stream(config.seed, epoch, federation.device):
                _train_epoch(config, federation, module, velocities, np.split(order, batches), epoch)
            progress(epoch + 1, config.schedule.burn_in_epochs)
    return flat_parameters(module), flat_buffers(module)


def _train_epoch(
    config: Config, federation: Federation, module: nn.Module, velocities: list[Tensor], batches: list[Indices], epoch: int
) -> None:
    """One epoch of SGD with momentum over batches of training examples. Changes the module and the velocities."""
    schedule, parameters = config.schedule, list(trained_parameters(module).values())
    draws = stream(config.seed, "burn-in-augmentation", epoch)
    augment = partial(cropped_and_flipped, generator=draws) if schedule.burn_in_augmentation == "crop-flip" else None
    for indices in batches:
        batch = federation.batch(federation.dataset.train, indices, augment)
        process = os.getpid()
        try:
            with ends_refused():
                loss = F.cross_entropy(module(batch.inputs), batch.labels)
                gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)  # zero for a parameter that is not used
        except BaseException as error:  # an outside model may raise anything
            if config.model.name in MODELS or is_interrupt(error):
                raise
            raise failure(config.model.name, "failed in the burn-in (train mode)", error) from error
        finally:
            end_if_forked(process)
        with torch.no_grad():  # SGD with momentum by hand: torch.optim imports the compiler, 2 to 5 s of start-up
            for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
                velocity.mul_(schedule.burn_in_momentum).add_(gradient).add_(parameter, alpha=schedule.burn_in_weight_decay)
                parameter.sub_(schedule.burn_in_learning_rate * velocity)


@contextmanager
def _dropout_stream(seed: int, epoch: int, device: torch.device) -> Generator[None]:
    """Seeds the global generators, the device's too, from the stream `(seed, "dropout", epoch)` inside the block."""
    with seeded_global_generators(seed, "dropout", epoch), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if device.type == "cuda":
            torch.cuda.manual_seed(int(stream(seed, "dropout", epoch).integers(2**63)))
        yield
