"""Clipped sums without single updates, against single updates in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fl_sim.config.keys import Client
from fl_sim.data.batches import CohortBatches
from fl_sim.model.architectures import build_model
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.vectors import flat_parameters
from fl_sim.rng.streams import torch_stream
from fl_sim.training import ghost_clipping as ghost
from fl_sim.training.clipping import Clip, Norm
from fl_sim.training.local import block_sum, weighted_sum


def cohort(k: int, b: int, shape: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> CohortBatches:
    """Batches of k clients, the last of which has one example and padding."""
    generator = torch_stream(0, "images")
    weights = torch.full((k, 1, b), 1.0 / b, dtype=dtype)
    weights[-1] = 0.0
    weights[-1, 0, 0] = 1.0
    images = torch.randn(k, 1, b, *shape, generator=generator, dtype=dtype)
    return CohortBatches(images, torch.randint(10, (k, 1, b), generator=generator), weights, [b] * (k - 1) + [1])


def single(model: FlatModel, theta: torch.Tensor, batches: CohortBatches) -> torch.Tensor:
    rows = zip(batches.inputs[:, 0], batches.labels[:, 0], batches.weights[:, 0], strict=True)
    return torch.stack([model.gradient(theta, *row) for row in rows])


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("b", [1, 3])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (1, 8, 8)),
        ("cnn", (1, 8, 8)),
        ("cnn", (3, 13, 11)),
        pytest.param("resnet18", (3, 9, 9), marks=pytest.mark.slow),
        ("resnet20", (3, 9, 9)),
    ],
)
def test_the_clipped_sum_is_that_of_single_updates(name: str, shape: tuple[int, int, int], b: int, norm: str) -> None:
    module = build_model(name, norm=norm, image_shape=shape, num_classes=10, generator=torch_stream(1, "model")).double()
    model, theta, batches = FlatModel(module), flat_parameters(module), cohort(4, b, shape)
    updates, weights = single(model, theta, batches), [3.0, 1.0, 2.0, 5.0]
    bound = Clip("l2", float(updates.norm(dim=1).sort().values[1:3].mean()))
    expected = weighted_sum(updates, weights, bound)
    total, lengths = ghost.clipped_sum(model, theta, batches, weights, bound)
    torch.testing.assert_close(total, expected.total, rtol=1e-8, atol=1e-10)
    assert lengths.tolist() == pytest.approx(expected.norms, rel=1e-8)
    assert sum(length > bound.bound for length in lengths.tolist()) == 2, "some are clipped, some are not"


def test_an_infinite_bound_clips_nothing_and_a_broken_client_is_noticed() -> None:
    module = build_model("mlp", norm="group", image_shape=(1, 8, 8), num_classes=10, generator=torch_stream(1, "model"))
    model, theta, batches = FlatModel(module), flat_parameters(module), cohort(3, 2, (1, 8, 8), torch.float32)
    total, _ = ghost.clipped_sum(model, theta, batches, [1.0, 1.0, 1.0], Clip("l2", float("inf")))
    torch.testing.assert_close(total, single(model, theta, batches).sum(dim=0))
    batches.inputs[1] = float("nan")
    total, lengths = ghost.clipped_sum(model, theta, batches, [1.0, 1.0, 1.0], Clip("l2", 1.0))
    assert not bool(torch.isfinite(total).all())
    assert torch.isfinite(lengths).tolist() == [True, False, True]


def test_where_it_is_used() -> None:
    def wins(module: nn.Module, b: int, shape: tuple[int, int, int], norm: Norm = "l2") -> bool:
        return ghost.wins(FlatModel(module), flat_parameters(module), cohort(2, b, shape, torch.float32), Clip(norm, 1.0))

    def built(name: str, shape: tuple[int, int, int]) -> nn.Module:
        return build_model(name, norm="group", image_shape=shape, num_classes=10, generator=torch_stream(1, "model"))

    assert wins(built("mlp", (1, 8, 8)), 10, (1, 8, 8))
    assert wins(built("resnet18", (1, 8, 8)), 10, (1, 8, 8))
    assert not wins(built("cnn", (1, 28, 28)), 10, (1, 28, 28))
    assert not wins(built("mlp", (1, 8, 8)), 10, (1, 8, 8), "linf")
    unknown = nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10))
    assert not wins(unknown, 1, (1, 8, 8))
    dilated = nn.Sequential(nn.Conv2d(1, 8, 3, dilation=2), nn.Flatten(), nn.Linear(128, 10))
    assert not wins(dilated, 1, (1, 8, 8))
    grouped = nn.Sequential(nn.Conv2d(1, 8, 3, groups=1), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(128, 10))
    assert not wins(grouped, 1, (1, 8, 8))


def test_a_block_takes_this_way_where_it_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build_model("mlp", norm="group", image_shape=(1, 8, 8), num_classes=10, generator=torch_stream(1, "model"))
    model, theta, batches = FlatModel(module), flat_parameters(module), cohort(3, 2, (1, 8, 8), torch.float32)
    calls = list[Clip]()
    fused = ghost.clipped_sum
    monkeypatch.setattr(ghost, "clipped_sum", lambda *args: (calls.append(args[-1]), fused(*args))[1])
    sums = {
        engine: block_sum(model, theta, batches, Client.model_validate({"engine": engine}), Clip("l2", 1.0)) for engine in ("auto", "vmap")
    }
    assert calls == [Clip("l2", 1.0)], "auto did, vmap did not"
    torch.testing.assert_close(sums["auto"].total, sums["vmap"].total)
    assert sums["auto"].norms == pytest.approx(sums["vmap"].norms, rel=1e-5)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_numbers_are_counted_on_the_device_of_the_model(norm: str) -> None:
    module = build_model("cnn", norm=norm, image_shape=(1, 8, 8), num_classes=10, generator=torch_stream(1, "model"))
    on_meta = FlatModel(module.to("meta"))
    theta = torch.zeros(sum(shape.numel() for shape in on_meta.layout.values()), device="meta")
    assert ghost.wins(on_meta, theta, cohort(2, 1, (1, 8, 8), torch.float32), Clip("l2", 1.0))
