"""What a rule sees in a round, for tests without a server."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fl_sim.data.batches import Batch
from fl_sim.model.flat_model import FlatModel
from strategies.rule import RuleView

SIZE = 31


def small_model() -> FlatModel:
    """A network with 3 inputs, 4 hidden units and 3 classes: SIZE parameters in four layers of 12, 4, 12 and 3 numbers."""
    return FlatModel(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))


def rule_view(theta: Tensor, clients: Tensor, state: dict[str, Tensor], seed: int = 0, **others: Any) -> RuleView:
    """A round with server_lr = client_lr = 0.1 and momentum 0.9."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(6, 3, generator=torch.Generator().manual_seed(7)) * 4.0 - 2.0
    values: dict[str, Any] = {
        "clients": clients,
        "theta": theta,
        "model": small_model(),
        "server_data": Batch(images, torch.zeros(6, dtype=torch.int64)),
        "server_lr": 0.1,
        "server_momentum": 0.9,
        "client_lr": 0.1,
        "generator": generator,
        "state": state,
        "report": {},
    }
    return RuleView(**{**values, **others})
