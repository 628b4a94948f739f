"""A small smooth float64 model and what a coalition knows of a round with it, for tests of attacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clients.knowledge import HonestSum, HonestUpdates, Knowledge, KnownRule
from fl_sim.config.keys import Attack, Client
from fl_sim.data.batches import Batch, CohortBatches
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.vectors import flat_parameters
from fl_sim.training.clipping import Clip

N, M = 10, 3


def knowledge_of(m: int = M, **settings: Any) -> Knowledge:
    """A small smooth float64 model, 10 sampled clients of which m are malicious, unequal weights."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    theta = flat_parameters(module)

    def batch(size: int) -> Batch:
        inputs = torch.randn(size, 1, 2, 3, generator=generator, dtype=torch.float64)
        return Batch(inputs, torch.randint(3, (size,), generator=generator))

    return Knowledge(
        round=1,
        phase="accumulate",
        accumulate=True,
        may_fire=True,
        total_rounds=5,
        model=FlatModel(module),
        num_classes=3,
        theta=theta,
        members=tuple(range(m)),
        batches=CohortBatches(
            torch.randn(m, 1, 4, 1, 2, 3, generator=generator, dtype=torch.float64),
            torch.randint(3, (m, 1, 4), generator=generator),
            torch.full((m, 1, 4), 0.25, dtype=torch.float64),
            [4] * m,
        ),
        client=Client.model_validate({}),
        updates=torch.randn(m, len(theta), generator=generator, dtype=torch.float64),
        weights=torch.arange(1.0, m + 1.0, dtype=torch.float64),
        num_sampled=N,
        server_lr=0.1,
        validation=batch(20),
        drawn=torch.arange(0, 20, 2),
        trigger_batch=batch(7),
        settings=Attack.model_validate(
            {"fire": "schedule", **{key.rstrip("_").replace("_", "-"): value for key, value in settings.items()}}
        ),
        own_seed=1,
        rule=KnownRule("mean", None, None),
        coalition=tuple(range(m)),
        random_model=lambda seed: torch.randn(len(theta), generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
        edge_images=lambda: torch.arange(12.0, dtype=torch.float64).view(2, 1, 2, 3),
        seen=HonestSum(torch.randn(len(theta), generator=generator, dtype=torch.float64), 17.0),
    )


def shown(knowledge: Knowledge, rows: Tensor) -> Knowledge:
    """The same, with every honest update (h, d) shown; all weights are 1."""
    h, m = len(rows), len(knowledge.members)
    return dataclasses.replace(
        knowledge,
        num_sampled=h + m,
        weights=torch.ones(m, dtype=rows.dtype),
        seen=HonestSum(rows.sum(dim=0), float(h)),
        shown=HonestUpdates(rows, torch.ones(h, dtype=rows.dtype)),
    )


def combining(knowledge: Knowledge, combine: Callable[[Tensor, Tensor], Tensor], before: Clip | None = None) -> Knowledge:
    """The same, with a known rule that combines `(updates, weights)` so."""
    return dataclasses.replace(knowledge, rule=KnownRule("some", before, None, combine))


def knowing(knowledge: Knowledge, before: Clip | None = None, after: Clip | None = None) -> Knowledge:
    """The same, with a known rule."""
    return dataclasses.replace(knowledge, rule=KnownRule("some", before, after))
