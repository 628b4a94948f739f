"""The configured model as a module with its initial parameters."""

from __future__ import annotations

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
from fl_sim.rng.streams import torch_stream


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
            with torch.device("meta"):
                MODELS[name](shape, federation.dataset.num_classes, NORMS[config.model.norm])
        else:
            new_module(config, federation)
    except ValueError as error:
        return str(error)
    return ""
