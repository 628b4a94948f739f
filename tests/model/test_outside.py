"""Models from outside: what is taken, with which parameters, and what is said of one that cannot be used."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.model.abilities import abilities
from fl_sim.model.architectures import is_plain
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import initial_module, model_problem, new_module
from fl_sim.model.outside import ModelError, build_outside
from fl_sim.model.vectors import flat_buffers, flat_parameters, load_buffers
from fl_sim.registry import offer

Configure = Callable[..., Config]
SHAPE = (1, 8, 8)


def build(thing: Any, shape: tuple[int, int, int] = SHAPE, seed: int = 1, **options: Any) -> nn.Module:
    return build_outside(offer(thing), options, image_shape=shape, num_classes=10, seed=seed)


class Mixed(nn.Module):
    """Layers of many kinds: an embedding of each pixel's sign, layer norm, attention, dropout."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.sign = nn.Embedding(2, width)
        self.encoder = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Dropout(0.5), nn.Linear(width, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(self.sign((images.flatten(1) > 0).long())).mean(dim=1))


def images(count: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(3))


def test_any_layers_with_their_own_initial_law_reproducibly() -> None:
    random_state, numpy_state, torch_state = random.getstate(), np.random.get_state()[1], torch.get_rng_state()
    first, same, other = build(Mixed), build(Mixed), build(Mixed, seed=2)
    assert torch.equal(flat_parameters(first), flat_parameters(same))
    assert not torch.equal(flat_parameters(first), flat_parameters(other))
    assert first.get_parameter("sign.weight").std().item() == pytest.approx(1.0, abs=0.5), "an embedding is drawn from N(0, 1)"
    assert random.getstate() == random_state
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert first.training
    assert build(Mixed, width=4).get_parameter("sign.weight").shape == (2, 4)


@pytest.mark.parametrize("shape", [SHAPE, (3, 4, 5), (1, 1, 7)])
def test_a_module_of_vectors_is_given_vectors_and_keeps_its_names(shape: tuple[int, int, int]) -> None:
    features = shape[0] * shape[1] * shape[2]
    module = build(lambda image_shape, num_classes: nn.Sequential(nn.Linear(features, 5), nn.Tanh(), nn.Linear(5, num_classes)), shape)
    assert list(module.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    given = images(3, shape)
    expected = torch.tanh(given.flatten(1) @ module.get_parameter("0.weight").T + module.get_parameter("0.bias"))
    expected = expected @ module.get_parameter("2.weight").T + module.get_parameter("2.bias")
    model = FlatModel(module)
    torch.testing.assert_close(model.logits(flat_parameters(module), given), expected)


def test_lazy_layers_get_their_shapes_and_the_same_parameters() -> None:
    def lazy(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.Linear(4, num_classes))

    first, second = build(lazy), build(lazy)
    assert first.get_parameter("1.weight").shape == (4, 64)
    assert torch.equal(flat_parameters(first), flat_parameters(second))


class Tied(nn.Module):
    """The same weights forth and back; a frozen layer; a counter and a mask beside batch statistics."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.forth, self.frozen, self.back = nn.Linear(64, 64, bias=False), nn.Linear(64, 16), nn.Linear(64, 64, bias=False)
        self.back.weight = self.forth.weight
        self.frozen.requires_grad_(False)
        self.norm, self.last = nn.BatchNorm1d(16), nn.Linear(16, num_classes)
        self.register_buffer("mask", torch.arange(64) % 2 == 0)
        self.register_buffer("scale", torch.tensor([0.5], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.frozen(self.back(torch.tanh(self.forth(x * self.mask * self.get_buffer("scale").float()))))))


def test_tied_parameters_count_once_and_frozen_ones_are_not_trained() -> None:
    module = build(Tied)
    model, theta = FlatModel(module), flat_parameters(module)
    assert list(model.layout) == ["forth.weight", "norm.weight", "norm.bias", "last.weight", "last.bias"]
    given, labels = images(4), torch.tensor([0, 1, 2, 3])
    loss = nn.functional.cross_entropy(module(given), labels)
    wanted = torch.autograd.grad(loss, [module.get_parameter(name) for name in model.layout])
    torch.testing.assert_close(model.gradient(theta, given, labels), torch.cat([gradient.flatten() for gradient in wanted]))
    moved = model.logits(theta + 0.1, given)
    with torch.no_grad():
        for name in model.layout:
            module.get_parameter(name).add_(0.1)
    torch.testing.assert_close(moved, module(given))


class SharedPart(nn.Module):
    """One layer under two names."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.one = nn.Linear(64, 64)
        self.other, self.last = self.one, nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.other(torch.tanh(self.one(x))))


def test_a_part_under_two_names_is_left_as_it_was() -> None:
    module = build(SharedPart)
    model, theta = FlatModel(module), flat_parameters(module)
    assert list(model.layout) == ["one.weight", "one.bias", "last.weight", "last.bias"]
    given, labels = images(4), torch.tensor([0, 1, 2, 3])
    gradient = model.gradient(theta, given, labels)
    assert torch.equal(flat_parameters(module), theta)
    wanted = torch.autograd.grad(nn.functional.cross_entropy(module(given), labels), [module.get_parameter(name) for name in model.layout])
    torch.testing.assert_close(gradient, torch.cat([part.flatten() for part in wanted]))


def test_all_buffers_travel_as_one_float32_vector() -> None:
    module = build(Tied)
    module(images(8))  # train mode: the statistics and the counter change
    flat = flat_buffers(module)
    assert flat.dtype == torch.float32
    assert flat.numel() == 64 + 1 + 16 + 16 + 1
    other = build(Tied)
    load_buffers(other, flat)
    for (name, buffer), copied in zip(module.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(buffer, copied), name
    assert int(other.get_buffer("norm.num_batches_tracked")) == 1


def sequential(*layers: nn.Module) -> Callable[..., nn.Module]:
    return lambda image_shape, num_classes: nn.Sequential(nn.Flatten(), *layers)


class Always(nn.Module):
    def __init__(self, image_shape: Any, num_classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.dropout(x.flatten(1)))


class Counts(Always):
    def __init__(self, image_shape: Any, num_classes: int) -> None:
        super().__init__(image_shape, num_classes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        return self.last(x.flatten(1))


@pytest.mark.parametrize(
    ("thing", "problem"),
    [
        (lambda image_shape, num_classes: 3, r"to make an nn\.Module, got int"),
        (sequential(nn.Linear(64, 7)), r"float32 logits \(n, 10\).*got for \(2, 1, 8, 8\): torch.float32 of shape \(2, 7\); for \(2, 64\)"),
        (sequential(nn.Linear(3, 10)), r"logits \(n, 10\) for images \(n, 1, 8, 8\) or vectors \(n, 64\), got .*RuntimeError"),
        (sequential(nn.Linear(64, 10).double()), r"got .*RuntimeError"),
        (lambda image_shape, num_classes: nn.LSTM(8, 10), r"got .*for \(2, 64\)"),
        (sequential(nn.Linear(64, 10).requires_grad_(False)), "to have a parameter that requires a gradient, got none"),
        (Always, "gives other logits the second time in eval mode"),
        (Counts, "changes its buffer 'calls' in eval mode"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(thing: Any, problem: str) -> None:
    with pytest.raises(ModelError, match=problem) as caught:
        build(thing)
    assert "\n" not in str(caught.value)


def test_half_and_double_parameters_are_refused() -> None:
    class Cast(nn.Module):
        def __init__(self, image_shape: Any, num_classes: int) -> None:
            super().__init__()
            self.last = nn.Linear(64, num_classes).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x.flatten(1).double()).float()

    with pytest.raises(ModelError, match=r"to be float32, got torch\.float64 in 'last\.weight'"):
        build(Cast)


def test_integers_that_float32_does_not_hold_are_refused() -> None:
    class Large(Always):
        def __init__(self, image_shape: Any, num_classes: int) -> None:
            super().__init__(image_shape, num_classes)
            self.register_buffer("keys", torch.tensor([2**24 + 1]))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x.flatten(1))

    with pytest.raises(ModelError, match=r"numbers that float32 holds exactly, got others of torch\.int64 in 'keys'"):
        build(Large)


SOURCE = """from torch import nn

class Net(nn.Module):
    def __init__(self, image_shape, num_classes, broken=""):
        super().__init__()
        if broken == "init":
            raise RuntimeError("no such\\nthing")
        self.broken, self.last = broken, nn.Linear(64, num_classes)

    def forward(self, x):
        if self.broken == "forward" or (self.broken == "train" and self.training):
            x = x @ x[0, 0, :3]
        return self.last(x.flatten(1))
"""


def test_errors_of_the_users_code_name_file_and_line(configure: Configure, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    config = configure(model__name=f"{path}:Net")
    assert model_problem(config, load_federation(config)) == ""
    for broken, line, error in (("init", 7, "RuntimeError: no such"), ("forward", 12, "RuntimeError: ")):
        config = configure(model__name=f"{path}:Net", model__options={"broken": broken})
        problem = model_problem(config, load_federation(config))
        assert f"{path}, line {line}: {error}" in problem
        assert "\n" not in problem
    config = configure(model__name=f"{path}:Net", model__options={"wrong": 1})
    assert "TypeError" in model_problem(config, load_federation(config))


def test_our_models_are_checked_without_drawing_them(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(model__name="cnn")
    federation = load_federation(config)
    assert model_problem(config, federation) == ""
    monkeypatch.setattr(type(federation.dataset), "image_shape", (1, 1, 30))
    assert "expected images of at least 4x4 pixels, got 1x30" in model_problem(config, federation)


def test_vmap_is_refused_where_it_does_not_work(configure: Configure) -> None:
    def branches(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        class Branches(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.last = nn.Linear(64, num_classes)

            def forward(self, x: Tensor) -> Tensor:
                return self.last(x.flatten(1) if self.last.bias.sum() > 0 else -x.flatten(1))

        return Branches()

    config = configure(model__name=offer(branches), client__engine="vmap")
    with pytest.raises(ModelError, match=r"expected client\.engine to be 'auto' or 'loop' .* got 'vmap' \(.*data-dependent control flow"):
        new_module(config, load_federation(config))
    auto = configure(model__name=offer(branches))
    assert abilities(FlatModel(new_module(auto, load_federation(auto))), SHAPE).no_vmap


def test_plain_are_the_layers_of_our_models_each_used_once() -> None:
    def plain(*layers: nn.Module) -> bool:
        return is_plain(nn.Sequential(*layers))

    linear, hooked, changed = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    changed.forward = lambda x: x  # pyright: ignore[reportAttributeAccessIssue]
    tied = nn.Linear(4, 4)
    tied.weight = linear.weight
    assert plain(nn.Flatten(), linear, nn.ReLU(), nn.Linear(4, 4))
    assert not plain(linear, linear)
    assert not plain(linear, tied)
    assert not plain(hooked)
    assert not plain(changed)
    assert not plain(nn.Linear(4, 4).requires_grad_(False), linear)
    assert not plain(linear, nn.ReLU(inplace=True))
    assert not plain(linear, nn.Dropout())
    assert not plain(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, track_running_stats=False))
    assert not is_plain(build(Mixed))


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18", "resnet20"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_ours_are_plain(configure: Configure, name: str, norm: str) -> None:
    assert is_plain(initial_module(configure(model__name=name, model__norm=norm), SHAPE, 10))


def test_our_models_take_no_options(configure: Configure) -> None:
    from fl_sim.model.architectures import models

    assert models.options_problem("cnn", {"norm": 1}, "model.options") == (
        "model.options: model.name = 'cnn' has no option norm; it takes none"
    )
    assert models.options_problem(offer(Mixed), {"width": 1}, "model.options") == ""
    assert "it takes width" in models.options_problem(offer(Mixed), {"depth": 1}, "model.options")


def test_a_model_that_writes_into_its_inputs_gets_copies(configure: Configure) -> None:
    """Else every evaluation would see another test set: here the accuracy would fall from round to round."""

    def inplace(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, num_classes))

    def plain(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(64, num_classes))

    written, clean = FlatModel(build(inplace)), FlatModel(build(plain))
    theta, batch, labels = flat_parameters(clean.module), images(20), torch.arange(20) % 10
    before = batch.clone()
    assert written.score(theta, batch, labels) == clean.score(theta, batch, labels)
    assert torch.equal(batch, before)
    torch.testing.assert_close(written.gradient(theta, batch, labels), clean.gradient(theta, batch, labels))
    assert torch.equal(batch, before)


class Deaf(nn.Module):
    """Turns gradients off for the whole process."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.layer(images.flatten(1))
        torch.set_grad_enabled(False)
        return logits


def test_a_model_that_changes_the_process_is_refused_and_the_process_is_as_before() -> None:
    with pytest.raises(
        ModelError, match=r"changes a setting of the whole process when it is called: gradients .*test_outside.py, line \d+"
    ):
        build(Deaf)
    assert torch.is_grad_enabled()
