"""Local training where a GPU's memory is too small or its half precision wanted; on a CPU, with the same code."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clients import client_app
from fl_sim.config.keys import Config
from fl_sim.config.resolve import to_flat, to_json
from fl_sim.data.batches import CohortBatches
from fl_sim.data.federation import load_federation
from fl_sim.model import burn_in as burning
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from fl_sim.model.vectors import flat_parameters
from fl_sim.training.clipping import Clip
from fl_sim.training.local import BlockSum, block_sum, block_updates

Configure = Callable[..., Config]
WAYS = [(None, "auto"), (None, "vmap"), (Clip("l2", 0.5), "auto"), (Clip("l2", 0.5), "vmap"), (Clip("linf", 0.01), "auto")]


def parts(config: Config, **options: Any) -> tuple[FlatModel, Tensor, CohortBatches]:
    """The model functions of a configuration, its initial parameters, and the batches of seven clients."""
    federation = load_federation(config)
    module = new_module(config, federation)
    batches = federation.cohort(list(range(7)), 1, config.client.local_steps, config.client.batch_size)
    return FlatModel(module, **options), flat_parameters(module), batches


def small_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Makes a batch of more than `most` examples raise as CUDA does; the sizes of the batches that were asked for."""
    asked = list[int]()
    for name in ("gradient", "gradients", "loss"):
        original = getattr(FlatModel, name)

        def limited(
            self: FlatModel, theta: Tensor, inputs: Tensor, labels: Tensor, *rest: Tensor, original: Callable[..., Tensor] = original
        ) -> Tensor:
            asked.append(labels.numel())
            if labels.numel() > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(self, theta, inputs, labels, *rest)

        monkeypatch.setattr(FlatModel, name, limited)
    return asked


@pytest.mark.parametrize(("before", "engine"), WAYS)
@pytest.mark.parametrize("steps", [1, 2])
def test_what_does_not_fit_the_memory_is_halved_and_goes_on(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, before: Clip | None, engine: str, steps: int
) -> None:
    config = configure(client__batch_size=4, client__engine=engine, client__local_steps=steps)
    model, theta, batches = parts(config)
    whole, rows = block_sum(model, theta, batches, config.client, before), block_updates(model, theta, batches, config.client)
    asked = small_memory(monkeypatch, most=9)  # two clients of four examples
    found = block_sum(model, theta, batches, config.client, before)
    assert isinstance(found, BlockSum)
    torch.testing.assert_close(found.total, whole.total, rtol=1e-4, atol=1e-5)
    assert found.weights == whole.weights
    assert found.norms == pytest.approx(whole.norms, rel=1e-4, nan_ok=True)
    torch.testing.assert_close(block_updates(model, theta, batches, config.client), rows, rtol=1e-4, atol=1e-6)
    assert max(asked) > 9
    asked.clear()
    monkeypatch.undo()
    small_memory(monkeypatch, most=3)
    with pytest.raises(torch.OutOfMemoryError):
        block_sum(model, theta, batches, config.client, before)


@pytest.mark.parametrize(("before", "engine"), WAYS)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_bfloat16_rounds_the_layers_and_nothing_else(configure: Configure, before: Clip | None, engine: str, name: str) -> None:
    config = configure(model__name=name, client__batch_size=4, client__engine=engine)
    exact, theta, batches = parts(config)
    half, _, _ = parts(config, bfloat16=True)
    wanted, found = (block_sum(model, theta, batches, config.client, before).total for model in (exact, half))
    assert found.dtype == torch.float32
    assert not torch.equal(found, wanted)
    assert float(torch.nn.functional.cosine_similarity(found, wanted, dim=0)) > 0.995  # ten roundings of 2^-8, each another way
    assert float(found.norm() / wanted.norm()) == pytest.approx(1.0, rel=0.02)


def test_rounds_in_bfloat16_learn_as_those_in_float32(configure: Configure) -> None:
    config = configure()
    federation, start = load_federation(config), burning.burn_in(config, load_federation(config), lambda *_: None)
    thetas, accuracies = list[Tensor](), list[float]()
    for bfloat16 in (False, True):
        model, theta = FlatModel(new_module(config, federation), bfloat16=bfloat16), start.theta
        for round_ in range(1, 41):
            summed = block_sum(model, theta, federation.cohort(list(range(12)), round_, 1, 10), config.client, None)
            theta = theta - 0.2 * summed.total / sum(summed.weights)
        thetas.append(theta)
        accuracies.append(model.score(theta, *federation.test())[0])
    before, _ = FlatModel(new_module(config, federation)).score(start.theta, *federation.test())
    assert accuracies[0] > before + 5.0, "they learn"
    assert accuracies[1] == pytest.approx(accuracies[0], abs=2.0)
    assert not torch.equal(*thetas)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_worker_computes_in_the_configured_precision(configure: Configure, precision: str) -> None:
    text = to_json(to_flat(configure(client__precision=precision)))
    assert client_app._model(text, (), b"").bfloat16 == (precision == "bfloat16")  # pyright: ignore[reportPrivateUsage]


def test_a_data_set_is_in_memory_once_whatever_looks_at_it(configure: Configure) -> None:
    one, other = (load_federation(configure(seed=seed)) for seed in (90001, 90002))  # that no other test has left in the cache
    assert one is not other
    assert one.dataset is other.dataset


def test_cells_that_burn_in_at_once_share_one(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(data__cache_dir=str(tmp_path))
    federation, trained, original = load_federation(config), list[int](), burning._train  # pyright: ignore[reportPrivateUsage]

    def slow(*arguments: Any) -> tuple[Tensor, Tensor]:
        trained.append(1)
        time.sleep(0.2)
        return original(*arguments)

    monkeypatch.setattr(burning, "_train", slow)
    with ThreadPoolExecutor(3) as pool:
        starts = list(pool.map(lambda _: burning.burn_in(config, federation, lambda *_: None), range(3)))
    assert len(trained) == 1
    assert sorted(start.cached for start in starts) == [False, True, True]
    assert all(torch.equal(start.theta, starts[0].theta) for start in starts)
