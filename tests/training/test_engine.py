"""How the updates of a model are computed that is none of ours: only in ways that are right for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_sim.config.keys import Client
from fl_sim.data.batches import CohortBatches
from fl_sim.model.abilities import abilities
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.vectors import flat_parameters
from fl_sim.rng.streams import torch_stream
from fl_sim.training import ghost_clipping as ghost
from fl_sim.training import local
from fl_sim.training.clipping import Clip
from fl_sim.training.local import block_sum, block_updates, single_updates_by_vmap

SHAPE = (1, 4, 4)
SETTINGS = Client.model_validate({})


def cohort(k: int = 3, b: int = 4, steps: int = 1) -> CohortBatches:
    """Batches of k clients, the last of which has two examples and padding."""
    draws = torch_stream(0, "images")
    weights = torch.full((k, steps, b), 1.0 / b)
    weights[-1] = torch.tensor([0.5, 0.5] + [0.0] * (b - 2))
    inputs = torch.randn(k, steps, b, *SHAPE, generator=draws)
    return CohortBatches(inputs, torch.randint(5, (k, steps, b), generator=draws), weights, [b] * (k - 1) + [2])


def one_by_one(model: FlatModel, theta: Tensor, batches: CohortBatches, rate: float) -> Tensor:
    """The updates (k, d) of plain SGD on a copy of the module, in eval mode: what a torch user would write."""
    rows = list[Tensor]()
    for i, size in enumerate(batches.sizes):
        local = theta.clone()
        for step in range(batches.labels.shape[1]):
            local = local - rate * model.gradient(local, batches.inputs[i, step, :size], batches.labels[i, step, :size])
        rows.append((theta - local) / rate)
    return torch.stack(rows)


class Body(nn.Module):
    """A linear model; subclasses do something to the inputs that not every way of computing gradients stands."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 5)


class Branches(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1) if self.last.bias.sum() > 0 else -x.flatten(1))


class InPlace(Body):
    def forward(self, x: Tensor) -> Tensor:
        filled = torch.zeros(x.shape[0], 16)
        filled[:, ::2] = x.flatten(1)[:, ::2]
        return self.last(filled)


class Recurrent(Body):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(4, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cell(x.flatten(1, 2))[0][:, -1])


class BatchMean(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1) - x.flatten(1).mean(dim=0))


def hidden_mean() -> nn.Module:
    module = BatchMean()
    nn.init.zeros_(module.last.weight)  # at first it says the same of every batch
    return module


def batch_statistics() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 5))


def normed() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU(), nn.Dropout(), nn.Linear(16, 5))


MODELS: dict[str, tuple[Any, bool, bool]] = {  # how to make it, whether vmap works, whether examples are separate
    "layer norm": (normed, True, True),
    "branches": (Branches, False, True),
    "in place": (InPlace, False, True),
    "recurrent": (Recurrent, False, True),
    "mean of the batch": (BatchMean, False, False),
    "a mean that shows later": (hidden_mean, False, False),
    "statistics of the batch": (batch_statistics, False, False),
}


def made(name: str, **options: Any) -> tuple[FlatModel, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = MODELS[name][0]()
    return FlatModel(module, **options), flat_parameters(module)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_whatever_the_model_does_its_updates_are_those_of_one_client_after_the_other(name: str, steps: int) -> None:
    (model, theta), batches = made(name), cohort(steps=steps)
    wanted = one_by_one(model, theta, batches, SETTINGS.learning_rate)
    torch.testing.assert_close(block_updates(model, theta, batches, SETTINGS), wanted, rtol=1e-3, atol=1e-5)
    settings = SETTINGS.model_copy(update={"local_steps": steps})
    weights = torch.tensor([4.0, 4.0, 2.0]) * steps
    for before in (None, Clip("l2", float(wanted.norm(dim=1).median()))):
        rows = wanted if before is None else wanted * torch.clamp(before.bound / wanted.norm(dim=1, keepdim=True), max=1.0)
        torch.testing.assert_close(block_sum(model, theta, batches, settings, before).total, weights @ rows, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_can_do_is_seen_before_it_is_relied_on(name: str) -> None:
    _, by_vmap, separate = MODELS[name]
    model, theta = made(name)
    skills = abilities(model, SHAPE)
    assert (not skills.no_vmap, skills.separate) == (by_vmap, separate)
    assert single_updates_by_vmap(model, theta, cohort(), SETTINGS) == by_vmap
    assert not single_updates_by_vmap(model, theta, cohort(), SETTINGS.model_copy(update={"engine": "loop"}))


@pytest.mark.parametrize("name", ["layer norm", "branches"])
def test_the_answer_is_the_same_in_bfloat16_and_is_found_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = made(name, bfloat16=True)
    skills = abilities(model, SHAPE)
    assert (not skills.no_vmap) == MODELS[name][1]
    monkeypatch.setattr(FlatModel, "gradient", None)
    assert abilities(model, SHAPE) is skills


class Twice(nn.Module):
    """One layer called twice; another whose weights are used by hand; a third never called; a subclass with a forward of its own."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.first, self.last = what, nn.Linear(16, 16), nn.Linear(16, 5)
        self.unused = nn.Linear(3, 3) if what == "unused" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        if self.what == "twice":
            x = self.first(x)
        if self.what == "by hand":
            x = x @ self.first.weight
        return self.last(x)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(2 * input)


def wide(features: int) -> tuple[nn.Module, ...]:
    """Layers so large that fusing would win."""
    return nn.Linear(features, 200), nn.ReLU(), nn.Linear(200, 5)


shared = nn.Linear(16, 16)
DOUBTFUL = {
    "twice": lambda: Twice("twice"),
    "by hand": lambda: Twice("by hand"),
    "unused": lambda: Twice("unused"),
    "subclass": lambda: nn.Sequential(nn.Flatten(), Scaled(16, 5)),
    "the same twice": lambda: nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared, nn.Linear(16, 5)),
    "norm without weights": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4, affine=False), nn.Flatten(), *wide(16)),
    "linear on pixels": lambda: nn.Sequential(nn.Linear(4, 4), nn.Flatten(), *wide(16)),
    "padding by name": lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding="same"), nn.Flatten(), *wide(64)),
    "frozen": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 16).requires_grad_(False), nn.Linear(16, 5)),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_clipped_sums_are_fused_only_where_that_is_surely_right(name: str) -> None:
    module = DOUBTFUL[name]()
    model, theta, batches = FlatModel(module), flat_parameters(module), cohort(b=2)
    rows = one_by_one(model, theta, batches, SETTINGS.learning_rate)
    before = Clip("l2", float(rows.norm(dim=1).median()))
    assert not ghost.wins(model, theta, batches, before)
    summed = block_sum(model, theta, batches, SETTINGS, before)
    assert summed.norms == pytest.approx(rows.norm(dim=1).tolist(), rel=1e-4)


def test_a_plain_model_from_outside_is_fused_as_ours_are() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 5))
    model, theta, batches = FlatModel(module), flat_parameters(module), cohort(b=2)
    assert ghost.wins(model, theta, batches, Clip("l2", 1.0))


def test_a_large_model_is_computed_client_by_client(monkeypatch: pytest.MonkeyPatch) -> None:
    model, theta = made("layer norm")
    assert single_updates_by_vmap(model, theta, cohort(), SETTINGS)
    monkeypatch.setattr(local, "VMAP_PARAMETERS", len(theta) - 1)
    assert not single_updates_by_vmap(model, theta, cohort(), SETTINGS)
