"""The models: sizes, initial laws, independence of the global generator, and the batched gradients the clients rely on."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from fl_sim.model.architectures import MODELS, NORMS, build_model
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.vectors import flat_parameters
from fl_sim.rng.streams import torch_stream

DIGITS, FASHION, CIFAR = (1, 8, 8), (1, 28, 28), (3, 32, 32)


def build(name: str, norm: str = "group", image_shape: tuple[int, int, int] = DIGITS, num_classes: int = 10, seed: int = 0) -> nn.Module:
    generator = torch_stream(seed, "model")
    return build_model(name, norm=norm, image_shape=image_shape, num_classes=num_classes, generator=generator)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("name", "image_shape", "expected"),
    [
        ("mlp", DIGITS, 64 * 64 + 64 + 64 * 10 + 10),
        ("cnn", DIGITS, 13_802),
        ("cnn", FASHION, 105_962),
        ("resnet18", CIFAR, 11_173_962),
        ("resnet20", CIFAR, 269_722 + 576 + 2_176),
    ],
)
def test_sizes_are_those_of_the_published_architectures(name: str, image_shape: tuple[int, int, int], norm: str, expected: int) -> None:
    assert count(build(name, norm, image_shape)) == expected


@pytest.mark.parametrize("name", MODELS)
def test_parameters_come_from_the_generator_alone(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(name)
    assert torch.equal(torch.get_rng_state(), before), "building a model advanced the global generator"
    torch.manual_seed(2)
    for (key, ours), same, other in zip(first.named_parameters(), build(name).parameters(), build(name, seed=1).parameters(), strict=True):
        assert torch.equal(ours, same)
        if ours.ndim > 1:  # norm layers start at 1 and 0 whatever the seed
            assert not torch.equal(ours, other), key


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MODELS)
def test_initial_values_follow_pytorch_default_laws(name: str, norm: str) -> None:
    """Weights and biases uniform within 1 / sqrt(fan_in), so of standard deviation 1 / sqrt(3 fan_in); norm layers the identity."""
    model = build(name, norm)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters(recurse=False):
                assert parameter.abs().max() <= bound
                if parameter.numel() >= 512:
                    assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.get_buffer("running_mean") == 0).all()
            assert (module.get_buffer("running_var") == 1).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MODELS)
def test_batched_gradients_equal_a_loop_over_clients(name: str, norm: str) -> None:
    """Three clients with a batch of one image each; in eval mode nothing but the parameters changes, so vmap and loop agree."""
    model = build(name, norm).eval()
    parameters = {key: value.detach() for key, value in model.named_parameters()}
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    images = torch.randn(3, 1, *DIGITS, generator=torch_stream(0, "images"))
    labels = torch.tensor([[0], [1], [2]])

    def loss(parameters: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, (parameters, buffers), (images,)), labels)

    together = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)
    for client in range(3):
        model.zero_grad()
        cross_entropy(model(images[client]), labels[client]).backward()
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(together[key][client], parameter.grad, rtol=1e-3, atol=1e-5)
    for key, value in model.named_buffers():
        assert torch.equal(value, buffers[key]), key


def test_batch_norm_learns_statistics_in_train_mode_only() -> None:
    model = build("cnn", "batch")
    images = 5 + torch.randn(8, *DIGITS, generator=torch_stream(0, "images"))
    model.eval()(images)
    assert (model.get_buffer("1.running_mean") == 0).all()
    model.train()(images)
    assert (model.get_buffer("1.running_mean") != 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_resnet18_is_torchvisions_with_another_stem(norm: str) -> None:
    from torchvision.models import resnet18

    ours = build("resnet18", norm, (3, 9, 9), num_classes=7).eval()  # odd sizes, where a wrong stride or padding shows
    theirs = resnet18(num_classes=7, norm_layer=partial(NORMS[norm], 32)).eval()
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = cast(Any, nn.Identity())
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 9, 9, generator=torch_stream(0, "images"))
    torch.testing.assert_close(ours(images), theirs(images))


def test_group_norm_never_asks_for_more_groups_than_channels() -> None:
    layers = [cast(nn.GroupNorm, NORMS["group"](32, channels)) for channels in (4, 64)]
    assert [layer.num_groups for layer in layers] == [4, 32]


@pytest.mark.parametrize(("name", "groups", "convolutions"), [("resnet18", 32, 20), ("resnet20", 8, 21)])
def test_residual_networks_have_one_number_of_groups(name: str, groups: int, convolutions: int) -> None:
    modules = list(build(name, "group", CIFAR).modules())
    assert {module.num_groups for module in modules if isinstance(module, nn.GroupNorm)} == {groups}
    assert sum(isinstance(module, nn.Conv2d) for module in modules) == convolutions  # with the projections


def test_errors_name_key_and_choice() -> None:
    with pytest.raises(ValueError, match=r"model\.name: expected one of mlp, cnn, resnet18, resnet20, got 'vgg'"):
        build("vgg")
    with pytest.raises(ValueError, match=r"model\.norm: expected one of group, batch, got 'layer'"):
        build("cnn", "layer")
    with pytest.raises(ValueError, match="at least 4x4 pixels, got 3x8"):
        build("cnn", image_shape=(1, 3, 8))


@pytest.mark.parametrize("image_shape", [DIGITS, FASHION, CIFAR, (1, 11, 7)])
def test_without_gradients_the_pooling_takes_another_way_to_the_same_numbers(image_shape: tuple[int, int, int]) -> None:
    model = build("cnn", image_shape=image_shape).eval()
    images = torch.randn(5, *image_shape, generator=torch_stream(0, "images"))
    with torch.no_grad():
        fast = model(images)
    assert torch.equal(fast, model(images).detach())


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_logits_and_gradient_are_those_of_their_own_passes(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    model = FlatModel(build(name, image_shape=FASHION))
    theta, inputs = flat_parameters(model.module).detach(), torch.randn(64, 1, 28, 28, generator=generator)
    labels = torch.randint(0, 10, (64,), generator=generator)
    logits, gradient = model.logits_and_gradient(theta, inputs, labels)
    with torch.no_grad():
        assert torch.equal(logits, model.logits(theta, inputs))
    assert torch.equal(gradient, model.gradient(theta, inputs, labels))
    assert not logits.requires_grad
