"""The configured model as a module with its initial parameters."""

from __future__ import annotations

import torch

from fl_sim.config.keys import Config
from fl_sim.data.federation import Federation
from fl_sim.model.architectures import build_model
from fl_sim.rng.streams import torch_stream


def new_module(config: Config, federation: Federation) -> torch.nn.Module:
    """The configured architecture with its initial parameters, from stream `(seed, "model")`."""
    return build_model(
        config.model.name,
        norm=config.model.norm,
        image_shape=federation.dataset.image_shape,
        num_classes=federation.dataset.num_classes,
        generator=torch_stream(config.seed, "model"),
    ).to(federation.device)
