"""What each cleaning needs before round 1: an earlier model, a threshold, references, a trained purifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from clients.cleaning.calibration import bin_edges, clean_discrepancies, fit_threshold, quantile
from clients.cleaning.images import Context
from clients.cleaning.networks import Denoiser, Energy, Loss, denoiser_loss, energy_loss, trained
from clients.cleaning.outliers import SCORES, features, references_of
from clients.pixels import PixelScale
from fl_sim.config.keys import Config
from fl_sim.config.options import parse_options
from fl_sim.data.federation import Federation
from fl_sim.model.burn_in import StartModel, burn_in
from fl_sim.model.flat_model import FlatModel

LEAST_PUBLIC = 20  # images that a filter or a purifier is fitted to
Progress = Callable[[int, int], None]


class Fitting(NamedTuple):
    """What a cleaning is fitted to: the burnt-in model, the data, and the scale of their pixels; progress(done, all) may be called."""

    config: Config
    federation: Federation
    model: FlatModel
    start: StartModel
    scale: PixelScale
    progress: Progress = lambda done, steps: None


def earlier_model(task: Fitting) -> dict[str, Tensor]:
    """`history` (d,): the model of the burn-in after `cleaning.history` of its epochs. (With batch norm it is used with the statistics of
    the burnt-in model.)"""
    schedule = task.config.schedule
    epochs = round(task.config.cleaning.history * schedule.burn_in_epochs)
    earlier = task.config.model_copy(update={"schedule": schedule.model_copy(update={"burn_in_epochs": epochs})})
    return {"history": burn_in(earlier, task.federation, lambda _done, _epochs: None).theta}


def discrepancy_threshold(task: Fitting) -> dict[str, Tensor]:
    """`history`; `start` and `growth` of the threshold, calibrated or `cleaning.p0` and `cleaning.growth`; `edges` of bins of scores."""
    settings, earlier = task.config.cleaning, earlier_model(task)
    context = Context(task.model, task.start.theta, 0, settings, task.scale, earlier)
    rounds = clean_discrepancies(task.config, task.federation, context)
    start, growth = fit_threshold(rounds, settings.fpr) if settings.p0 < 0.0 else (settings.p0, settings.growth)
    return {**earlier, **_line(start, growth), "edges": bin_edges(torch.cat(rounds))}


def detector(name: str, task: Fitting) -> dict[str, Tensor]:
    """The references of a filter, from the first half of the public images, and its threshold, from the second: the `1 - cleaning.fpr`
    quantile of their scores. `model` (d,): the burnt-in one."""
    theta, public = task.start.theta, task.federation.splits.public
    halves = [
        task.federation.batch(task.federation.dataset.train, half) for half in (public[: len(public) // 2], public[len(public) // 2 :])
    ]
    fitted = references_of(task.model, theta, halves[0], task.federation.dataset.num_classes)
    scores = SCORES[name](features(task.model, theta, halves[1].inputs), fitted)
    limit = quantile(scores.cpu(), 1.0 - task.config.cleaning.fpr)
    return {**fitted, "model": theta, **_line(limit, 0.0), "edges": bin_edges(scores)}


def purifier(kind: type[Energy] | type[Denoiser], loss: Loss, default: int, task: Fitting) -> dict[str, Tensor]:
    """`network.*`: the parameters of a purifier trained on the public images, in one thread. default: its `iterations`."""
    iterations = int(parse_options(task.config.cleaning.options).get("iterations", default))
    if iterations < 1:
        raise ValueError(f"expected the option iterations of cleaning.name = {task.config.cleaning.name!r} to be >= 1, got {iterations}")
    public = task.federation.batch(task.federation.dataset.train, task.federation.splits.public).inputs
    images = 2.0 * (public - task.scale.black) / task.scale.unit - 1.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = trained(kind, loss, images, seed=task.config.seed, iterations=iterations, progress=task.progress)
    finally:
        torch.set_num_threads(threads)
    return {f"network.{name}": value for name, value in network.state_dict().items()}


train_energy = partial(purifier, Energy, energy_loss, 800)
train_denoiser = partial(purifier, Denoiser, denoiser_loss, 1500)
detectors: Mapping[str, Callable[[Fitting], dict[str, Tensor]]] = {name: partial(detector, name) for name in SCORES}


def _line(start: float, growth: float) -> dict[str, Tensor]:
    return {"start": torch.tensor(start, dtype=torch.float64), "growth": torch.tensor(growth, dtype=torch.float64)}
