"""The burn-in of any model: what acts in it, and what its cache depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fl_sim.config.keys import Config
from fl_sim.data.federation import Federation, load_federation
from fl_sim.model.burn_in import burn_in, cache_key
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from fl_sim.model.outside import ModelError
from fl_sim.registry import offer

Configure = Callable[..., Config]


class Dropped(nn.Module):
    """A linear model behind dropout, with a layer that is never called."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, share: float = 0.5) -> None:
        super().__init__()
        self.dropout, self.unused, self.last = nn.Dropout(share), nn.Linear(2, 2), nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(x.flatten(1)))


def trained(config: Config) -> Tensor:
    start = burn_in(config, load_federation(config), lambda *_: None)
    assert not start.cached
    return start.theta


def test_dropout_acts_in_the_burn_in_repeatably_and_not_in_the_rounds(configure: Configure, tmp_path: Path) -> None:
    def config(name: str, share: float) -> Config:
        return configure(model__name=offer(Dropped), model__options={"share": share}, data__cache_dir=str(tmp_path / name))

    first = trained(config("a", 0.5))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(trained(config("b", 0.5)), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(trained(config("c", 0.0)), first), "it acts"
    federation = load_federation(config("a", 0.5))
    module, batch = new_module(config("a", 0.5), federation), federation.test(16)
    exact = nn.functional.linear(batch.inputs.flatten(1), module.get_parameter("last.weight"), module.get_parameter("last.bias"))
    model = FlatModel(module)
    theta = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    torch.testing.assert_close(model.logits(theta, batch.inputs), exact)


def test_a_parameter_that_is_never_used_stays(configure: Configure, tmp_path: Path) -> None:
    config = configure(model__name=offer(Dropped), data__cache_dir=str(tmp_path))
    module = new_module(config, load_federation(config))
    assert torch.equal(trained(config)[:4], module.get_parameter("unused.weight").detach().flatten())


def test_a_model_that_fails_in_train_mode_names_its_line(configure: Configure, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self, shape, classes):\n        super().__init__(64, classes)\n"
        "    def forward(self, x):\n        x = x.flatten(1)\n        return super().forward(x if not self.training else x[:, :3])\n"
    )
    threads = torch.get_num_threads()
    with pytest.raises(ModelError, match=rf"failed in the burn-in \(train mode\): {path}, line 7: RuntimeError: "):
        trained(configure(model__name=f"{path}:Net", data__cache_dir=str(tmp_path)))
    assert torch.get_num_threads() == threads


def with_labels(federation: Federation, **changes: Any) -> Federation:
    return Federation(replace(federation.dataset, **changes), federation.splits, federation.device, federation.seed)


def test_the_cache_depends_on_content(configure: Configure, tmp_path: Path) -> None:
    config = configure()
    federation = load_federation(config)
    key = cache_key(config, federation)
    assert cache_key(configure(), load_federation(configure())) == key
    assert cache_key(configure(attack__rho=0.3, strategy__name="mean"), federation) == key, "what comes after the burn-in"

    other = with_labels(federation, fingerprint="other pixels")
    assert cache_key(config, other) != key
    shares = tuple(np.roll(share, 1) for share in federation.splits.shares)
    moved = Federation(federation.dataset, replace(federation.splits, shares=shares), federation.device, federation.seed)
    assert cache_key(config, moved) != key


def test_the_cache_depends_on_the_files_of_the_model_and_the_start(configure: Configure, tmp_path: Path) -> None:
    net, start = tmp_path / "net.py", tmp_path / "start.pt"
    keys = set[str]()
    for source, value in (("1", 1.0), ("2", 1.0), ("2", 2.0)):
        net.write_text(f"from torch import nn\ndef net(shape, classes):\n    return nn.Linear(64, classes)  # {source}\n")
        torch.save({"weight": torch.full((10, 64), value), "bias": torch.zeros(10)}, start)
        config = configure(model__name=f"{net}:net", model__start=str(start))
        keys.add(cache_key(config, load_federation(config)))
    assert len(keys) == 3
