"""The configured model as a module with its initial parameters."""

from __future__ import annotations

import copy
from functools import lru_cache

import torch
from torch import nn

from fl_sim.config.keys import Config
from fl_sim.config.options import parse_options
from fl_sim.data.federation import Federation
from fl_sim.model.abilities import abilities
from fl_sim.model.architectures import MODELS, NORMS, Shape, build_model
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.outside import ModelError, build_outside
from fl_sim.model.start import load_start
from fl_sim.process_ends import ProcessEndError, ends_refused
from fl_sim.rng.streams import seeded_global_generators, torch_stream


def new_module(config: Config, federation: Federation) -> nn.Module:
    """The configured model in train mode on the federation's device. Its parameters are drawn from stream `(seed, "model")`, or read from
    `model.start`. Raises ModelError.
    """
    image_shape = federation.dataset.image_shape
    module = initial_module(config, image_shape, federation.dataset.num_classes)
    if config.model.start:
        load_start(module, config.model.start)
    module = module.to(federation.device)
    if config.client.engine == "vmap" and (reason := abilities(FlatModel(module), image_shape).no_vmap):
        raise ModelError(f"expected client.engine to be 'auto' or 'loop' with model.name = {config.model.name!r}, got 'vmap' ({reason})")
    return module.train()


def initial_module(config: Config, image_shape: Shape, num_classes: int) -> nn.Module:
    """The configured architecture with randomly drawn parameters, on the CPU, without `model.start`. Raises ModelError."""
    name, options = config.model.name, parse_options(config.model.options)
    if name not in MODELS:
        return build_outside(name, options, image_shape=image_shape, num_classes=num_classes, seed=config.seed)
    try:
        return build_model(
            name,
            norm=config.model.norm,
            image_shape=image_shape,
            num_classes=num_classes,
            generator=torch_stream(config.seed, "model"),
        )
    except ValueError as error:
        raise ModelError(str(error)) from None


def model_problem(config: Config, federation: Federation) -> str:
    """What is wrong with the configured model for a federation's data, as a sentence; empty if nothing. For the check before a run: our
    models are not initialised.
    """
    shape, name = federation.dataset.image_shape, config.model.name
    try:
        if name in MODELS and not config.model.start:
            module = _shapes(name, config.model.norm, shape, federation.dataset.num_classes)
        else:
            module = new_module(config, federation)
    except ValueError as error:
        return str(error)
    return _single_problem(config, federation, module)


@lru_cache(maxsize=16)
def _shapes(name: str, norm: str, image_shape: Shape, num_classes: int) -> nn.Module:
    """One of our models without values (a process-wide cache: the cells of a sweep share it). Raises ValueError."""
    with torch.device("meta"):
        return MODELS[name](image_shape, num_classes, NORMS[norm])


def _single_problem(config: Config, federation: Federation, module: nn.Module) -> str:
    """Why the burn-in would have to train a model on one example although it cannot; empty if it would not."""
    size, examples = config.schedule.burn_in_batch_size, len(federation.splits.trained_before)
    if not config.schedule.burn_in_epochs or min(size, examples) > 1 or _takes_one(module, federation.dataset.image_shape):
        return ""
    what = f"model.name = {config.model.name!r} (model.norm = {config.model.norm!r}), whose layers cannot be trained on one example"
    if size == 1:
        return f"expected schedule.burn-in-batch-size >= 2 with {what}, got 1"
    return f"expected at least 2 training examples with {what}, got {examples}"


def batch_starts(examples: int, size: int, module: nn.Module, image_shape: Shape) -> list[int]:
    """Where the second and every later batch of an epoch starts. A last batch of one example is joined to the one before if the module
    cannot be trained on one example (a batch norm whose statistics would be of one number)."""
    starts = list(range(size, examples, size))
    if starts and examples - starts[-1] == 1 and size > 1 and not _takes_one(module, image_shape):
        starts.pop()
    return starts


def _takes_one(module: nn.Module, image_shape: Shape) -> bool:
    """Whether a module in train mode takes a batch of one example. The module itself is not changed."""
    device = next(module.parameters()).device
    try:
        with torch.no_grad(), seeded_global_generators(0, "trial"), ends_refused():
            copy.deepcopy(module).train()(torch.zeros(1, *image_shape, device=device))
    except (Exception, ProcessEndError):  # an outside model may raise anything
        return False
    return True
