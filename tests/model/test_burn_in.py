"""The burn-in of any model: what acts in it, and what its cache depends on."""

from __future__ import annotations

import re
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
from fl_sim.model.architectures import build_model
from fl_sim.model.burn_in import burn_in, cache_key
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import batch_starts, model_problem, new_module
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


def batch_sizes(config: Config, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that a burn-in trains on."""
    sizes: list[int] = []
    federation = load_federation(config)
    batch = federation.batch

    def counted(part: Any, indices: Any, augment: Any = None) -> Any:
        sizes.append(len(indices))
        return batch(part, indices, augment)

    monkeypatch.setattr(federation, "batch", counted)
    burn_in(config, federation, lambda *_: None)
    return sizes


NORMED = """
from torch import nn
def net(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.{norm}, nn.ReLU(), nn.Linear(8, classes))
"""


@pytest.mark.parametrize(("norm", "sizes"), [("BatchNorm1d(8)", [41, 41, 42]), ("LayerNorm(8)", [41, 41, 41, 1])])
def test_a_last_batch_of_one_joins_the_one_before_where_a_batch_norm_needs_it(
    norm: str, sizes: list[int], configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 1,437 training images of digits without an own set of 1,313 are 124 = 3 x 41 + 1."""
    (tmp_path / "net.py").write_text(NORMED.format(norm=norm))
    config = configure(
        model__name=f"{tmp_path / 'net.py'}:net",
        attack__set_size=1313,
        schedule__burn_in_batch_size=41,
        schedule__burn_in_epochs=1,
        data__cache_dir=str(tmp_path),
    )
    assert model_problem(config, load_federation(config)) == ""
    assert batch_sizes(config, monkeypatch) == sizes


def test_our_batch_norm_counts_pixels_too() -> None:
    """ResNet-18 halves images three times: 8x8 pixels become one, 16x16 four."""
    for shape, starts in (((1, 8, 8), [10]), ((1, 16, 16), [10, 20])):
        module = build_model("resnet18", norm="batch", image_shape=shape, num_classes=10, generator=torch.Generator())
        assert batch_starts(21, 10, module, shape) == starts
        assert all(int(buffer.sum()) == 0 for name, buffer in module.named_buffers() if "num_batches" in name), "only a trial"
    grouped = build_model("resnet18", norm="group", image_shape=(1, 8, 8), num_classes=10, generator=torch.Generator())
    assert batch_starts(21, 10, grouped, (1, 8, 8)) == [10, 20]


def test_batches_of_one_are_refused_before_the_start(configure: Configure) -> None:
    config = configure(model__name="resnet18", model__norm="batch", schedule__burn_in_batch_size=1)
    federation = load_federation(config)
    message = r"expected schedule\.burn-in-batch-size >= 2 with model\.name = 'resnet18' \(model\.norm = 'batch'\), .*, got 1"
    assert re.fullmatch(message, model_problem(config, federation))
    for fine in (configure(schedule__burn_in_batch_size=1), configure(model__norm="batch", model__name="resnet18")):
        assert model_problem(fine, federation) == ""
    one = Federation(federation.dataset, replace(federation.splits, shares=(np.zeros(1, np.int64),)), federation.device, 1)
    assert "at least 2 training examples" in model_problem(configure(model__name="resnet18", model__norm="batch"), one)
