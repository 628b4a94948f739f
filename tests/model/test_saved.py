"""`final.safetensors` by name, the module back from a run's folder, and `model.start`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import load_model as load_safely
from torch import Tensor, nn

from fl_sim.atomic_files import save_tensors
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, config_hash, hashed_keys, to_flat, to_json
from fl_sim.data.federation import Federation, load_federation
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import model_problem, new_module
from fl_sim.model.outside import ModelError
from fl_sim.model.saved import final_record, load_model, named_state
from fl_sim.model.start import load_start
from fl_sim.model.vectors import flat_buffers, flat_parameters

Configure = Callable[..., Config]
NET = """import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, image_shape, num_classes, width=16):
        super().__init__()
        self.forth, self.back = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
        self.back.weight = self.forth.weight
        self.frozen, self.norm = nn.Linear(64, width).requires_grad_(False), nn.BatchNorm1d(width)
        self.last = nn.Linear(width, num_classes)
        self.register_buffer("mask", torch.arange(64) > 2)
        self.register_buffer("scale", torch.full((1,), 1 / 3), persistent=False)

    def forward(self, x):
        return self.last(self.norm(self.frozen(self.back(self.forth(x * self.mask * self.scale)))))
"""


def write_run(folder: Path, config: Config) -> tuple[Federation, FlatModel, Tensor]:
    """What a run of a configuration leaves of its model, with parameters and statistics that no fresh model has."""
    federation = load_federation(config)
    module = new_module(config, federation)
    module(federation.test(64).inputs)  # in train mode: batch statistics
    theta = flat_parameters(module) + torch.linspace(-0.1, 0.1, len(flat_parameters(module)))
    buffers = flat_buffers(module)
    model = FlatModel(new_module(config, federation), buffers)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(to_flat(config)))
    save_tensors(folder / "final.safetensors", named_state(model, theta, buffers), final_record(config, federation.dataset))
    return federation, model, theta


def outside(configure: Configure, folder: Path, **keys: Any) -> Config:
    (folder / "net.py").write_text(NET)
    return configure(model__name=f"{folder / 'net.py'}:Net", **keys)


def floats(path: Path) -> Tensor:
    """The float32 numbers of a file, sorted."""
    return torch.cat([tensor.flatten() for tensor in load_file(path).values() if tensor.dtype == torch.float32]).sort().values


@pytest.mark.parametrize(("name", "norm"), [("mlp", "group"), ("cnn", "batch"), ("resnet20", "batch")])
def test_a_torch_user_fills_our_modules_and_float32_is_what_was_trained(configure: Configure, tmp_path: Path, name: str, norm: str) -> None:
    config = configure(model__name=name, model__norm=norm)
    federation, model, theta = write_run(tmp_path / "run", config)
    path = tmp_path / "run" / "final.safetensors"
    module = new_module(config, federation).eval()
    assert str(module.load_state_dict(load_file(path))) == "<All keys matched successfully>"
    test = federation.test(32)
    with torch.no_grad():
        expected = model.logits(theta, test.inputs)
        assert torch.equal(module(test.inputs), expected)
        again = load_model(tmp_path / "run")
        assert not again.training
        assert torch.equal(again(test.inputs), expected)
    assert torch.equal(floats(path), theta.sort().values)


def test_an_outside_module_comes_back_with_all_of_its_state(configure: Configure, tmp_path: Path) -> None:
    config = outside(configure, tmp_path, model__options={"width": 8})
    federation, model, theta = write_run(tmp_path / "run", config)
    path = tmp_path / "run" / "final.safetensors"
    held = load_file(path)
    assert torch.equal(floats(path), theta.sort().values)
    assert sorted(held) == sorted(set(model.module.state_dict()) - {"back.weight"}), "tied once"
    assert {name for name, tensor in held.items() if tensor.dtype == torch.float64} == {
        "frozen.weight",
        "frozen.bias",
        "norm.running_mean",
        "norm.running_var",
    }
    assert held["mask"].dtype == torch.bool
    assert int(held["norm.num_batches_tracked"]) == 1
    again, test = load_model(tmp_path / "run"), federation.test(32)
    with torch.no_grad():
        assert torch.equal(again(test.inputs), model.logits(theta, test.inputs))
        other = new_module(config, federation).eval()
        load_safely(other, path)  # safetensors' own way, which knows of tied parameters
        assert torch.equal(other(test.inputs), again(test.inputs))


def test_what_is_no_complete_run_is_said(configure: Configure, tmp_path: Path) -> None:
    config = outside(configure, tmp_path)
    write_run(tmp_path / "run", config)
    (tmp_path / "net.py").write_text(NET.replace("x * self.mask", "x + self.mask"))
    with pytest.raises(ValueError, match=r"net\.py:Net' has changed since .*final\.safetensors was written"):
        load_model(tmp_path / "run")
    (tmp_path / "net.py").unlink()
    with pytest.raises(ValueError, match=r"cannot load model\.name = .*there is no file"):
        load_model(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"no.key": 1}')
    with pytest.raises(ValueError, match=r"config\.json is no configuration of this version"):
        load_model(tmp_path / "run")
    (tmp_path / "run" / "final.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"run that is not complete: final\.safetensors is missing"):
        load_model(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"no run's folder: config\.json is missing"):
        load_model(tmp_path)


def test_a_damaged_or_strange_file_is_said(configure: Configure, tmp_path: Path) -> None:
    config = configure()
    _, model, theta = write_run(tmp_path / "run", config)
    path = tmp_path / "run" / "final.safetensors"
    save_tensors(path, named_state(model, theta, torch.zeros(0)))
    with pytest.raises(ValueError, match="does not state image shape and classes"):
        load_model(tmp_path / "run")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="is damaged"):
        load_model(tmp_path / "run")


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_run_starts_from_somebodys_state_dict(configure: Configure, tmp_path: Path, kind: str) -> None:
    config = configure(seed=5)
    federation = load_federation(config)
    wanted = new_module(config, federation).state_dict()
    path = tmp_path / "start"
    save_tensors(path, wanted) if kind == "safetensors" else torch.save(wanted, path)
    started = new_module(configure(model__start=str(path)), federation)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in started.state_dict().items())
    assert not torch.equal(flat_parameters(new_module(configure(), federation)), flat_parameters(started))


def test_a_run_starts_from_the_last_model_of_another(configure: Configure, tmp_path: Path) -> None:
    config = outside(configure, tmp_path)
    federation, model, theta = write_run(tmp_path / "run", config)
    config = outside(configure, tmp_path, model__start=str(tmp_path / "run" / "final.safetensors"))
    started = new_module(config, federation)
    assert torch.equal(flat_parameters(started), theta)
    for name in ("frozen.weight", "norm.running_mean", "norm.num_batches_tracked"):
        assert torch.equal(started.state_dict()[name], model.module.state_dict()[name])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: {name: tensor for name, tensor in state.items() if name != "1.bias"}, r"got missing: 1\.bias$"),
        (lambda state: state | {"4.weight": torch.zeros(1)}, r"got unexpected: 4\.weight$"),
        (lambda state: state | {"1.bias": torch.zeros(3)}, r"got of another shape: 1\.bias \(3,\) for \(64,\)$"),
        (
            lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
            r"missing: 1\.weight, .*; unexpected: module\.1\.weight",
        ),
        (lambda state: {"state_dict": state, "epoch": 3}, "to hold a state_dict .*, got other values under state_dict, epoch$"),
        (lambda state: [1, 2], "to hold a state_dict .*, got a list$"),
        (lambda state: nn.Linear(1, 1), "to hold a state_dict .*, got a file of another kind"),
    ],
)
def test_a_file_that_does_not_fit_is_described(configure: Configure, tmp_path: Path, change: Callable[[Any], Any], problem: str) -> None:
    config = configure()
    federation = load_federation(config)
    torch.save(change(dict(new_module(config, federation).state_dict())), tmp_path / "start.pt")
    with pytest.raises(ModelError, match=problem):
        load_start(new_module(config, federation), str(tmp_path / "start.pt"))
    assert "model.start" in model_problem(configure(model__start=str(tmp_path / "start.pt")), federation)


def test_no_code_of_a_file_is_run(configure: Configure, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"1.weight": Harm()}, tmp_path / "start.pt")
    config = configure()
    with pytest.raises(ModelError, match="to hold a state_dict"):
        load_start(new_module(config, load_federation(config)), str(tmp_path / "start.pt"))
    assert not (tmp_path / "harm").exists()


def test_the_content_of_the_start_is_in_the_hash_and_its_place_is_not(configure: Configure, tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("other", 2.0)):
        torch.save({"w": torch.full((3,), value)}, tmp_path / name)
    shutil.copy(tmp_path / "one", tmp_path / "copy")
    one, other, copy = (configure(model__start=str(tmp_path / name)) for name in ("one", "other", "copy"))
    assert config_hash(one) == config_hash(copy)
    assert len({config_hash(config) for config in (one, other, configure())}) == 3
    assert json.loads(to_json(to_flat(one)))["model.start"] == str(tmp_path / "one")
    assert str(tmp_path) not in str(hashed_keys(one)["model.start"])
    torch.save({"w": torch.full((3,), 3.0)}, tmp_path / "one")
    assert config_hash(one) not in (config_hash(copy), config_hash(other)), "a changed file is another run"


@pytest.mark.parametrize(("place", "reason"), [("missing.pt", "No such file or directory"), (".", "Is a directory")])
def test_a_missing_start_is_a_problem_of_the_configuration(configure: Configure, tmp_path: Path, place: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"expected model\.start to be a file with a state_dict, got .*\({reason}\)"):
        configure(model__start=str(tmp_path / place))
