"""Our models by name. Every parameter is drawn from a generator that the caller passes, none from PyTorch's global one.

Group norm works within one image and has no running statistics. Batch norm follows one rule in the whole simulator: its statistics are
learned during burn-in (`model.train()`) and frozen in the federated rounds, where clients and server run `model.eval()` and train only
the affine parameters. So an update is d numbers, a client may hold a single image, and `vmap(grad(...))` over `functional_call` works.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from fl_sim.registry import Registry

Shape = tuple[int, int, int]
Layer = Callable[[int], nn.Module]  # channels -> layer
Norm = Callable[[int, int], nn.Module]  # (most groups, channels) -> layer

NORMS: Mapping[str, Norm] = {
    "group": lambda groups, channels: nn.GroupNorm(min(groups, channels), channels),
    "batch": lambda groups, channels: nn.BatchNorm2d(channels),
}


@final
class _HalvingPool(nn.Module):
    """Max-pooling over 2x2 pixels, (n, C, H, W) -> (n, C, H // 2, W // 2).

    PyTorch's own takes 60 % of the CNN's forward pass on a CPU. Without gradients two element-wise maxima give the same numbers in a
    quarter of that time; with gradients they would be slower.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or torch.is_grad_enabled():
            return max_pool2d(x, 2)
        height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
        rows = torch.maximum(x[..., 0:height:2, :], x[..., 1:height:2, :])
        return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


def _mlp(image_shape: Shape, num_classes: int, norm: Norm) -> nn.Module:
    """One hidden layer of 64 and no norm layer: 4,810 parameters on digits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), 64), nn.ReLU(), nn.Linear(64, num_classes))


def _cnn(image_shape: Shape, num_classes: int, norm: Norm) -> nn.Module:
    """Two 3x3 convolutions of 16 and 32 channels, each followed by a pooling that halves the image, and a hidden layer of 64; 8 groups."""
    channels, height, width = image_shape
    if min(height, width) < 4:
        raise ValueError(f"model.name = 'cnn': expected images of at least 4x4 pixels, got {height}x{width}")
    return nn.Sequential(
        *(nn.Conv2d(channels, 16, 3, padding=1), norm(8, 16), nn.ReLU(), _HalvingPool()),
        *(nn.Conv2d(16, 32, 3, padding=1), norm(8, 32), nn.ReLU(), _HalvingPool()),
        *(nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), 64), nn.ReLU(), nn.Linear(64, num_classes)),
    )


@final
class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, figure 2; the projection shortcut where the shape changes)."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Layer) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.downsample = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels_in, H, W) -> (n, channels, H / stride, W / stride)."""
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + self.downsample(x))


def _resnet(channels: Sequence[int], blocks: int, image_shape: Shape, num_classes: int, norm: Norm) -> nn.Module:
    """A stem for small images (a 3x3 convolution of stride 1, no pooling); a stage of `blocks` blocks for each of `channels`, where each
    stage after the first halves height and width; the mean over the pixels; one linear layer. A group is two channels of the first stage.

    Own code, because torchvision's `resnet18` takes each worker seconds and 160 MB to import. A test shows that ours computes the same
    function; the parameters have the same names. Source: He et al. 2016, "Deep residual learning for image recognition", table 1 and
    section 4.2. Where we differ: ResNet-20 has projection shortcuts (option B) instead of zero padding (A), 2,752 parameters more.
    """
    first, last = channels[0], channels[-1]
    layer = partial(norm, first // 2)
    model = nn.Sequential(
        OrderedDict[str, nn.Module](conv1=nn.Conv2d(image_shape[0], first, 3, padding=1, bias=False), bn1=layer(first), relu=nn.ReLU())
    )
    for stage, (before, width) in enumerate(zip((first, *channels), channels, strict=False), start=1):
        entry = _BasicBlock(before, width, 1 if stage == 1 else 2, layer)
        model.add_module(f"layer{stage}", nn.Sequential(entry, *(_BasicBlock(width, width, 1, layer) for _ in range(blocks - 1))))
    model.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc", nn.Linear(last, num_classes))
    return model


_resnet18 = partial(_resnet, (64, 128, 256, 512), 2)  # 11,173,962 parameters on CIFAR-10; 32 groups
_resnet20 = partial(_resnet, (16, 32, 64), 3)  # 272,474 parameters on CIFAR-10; 8 groups


MODELS: Mapping[str, Callable[[Shape, int, Norm], nn.Module]] = {"mlp": _mlp, "cnn": _cnn, "resnet18": _resnet18, "resnet20": _resnet20}


OWN_LAYERS = frozenset[type[nn.Module]](
    {
        *(nn.Sequential, nn.Flatten, nn.Linear, nn.ReLU, nn.Conv2d, nn.GroupNorm, nn.BatchNorm2d, nn.AdaptiveAvgPool2d),
        *(_HalvingPool, _BasicBlock),
    }
)


def is_plain(module: nn.Module) -> bool:
    """Whether a module consists only of layers that our own models have: each used once, not modified, and trained.

    Then it has the properties of our models: `torch.func.vmap` works, no example depends on the others in its batch, and the gradient of a
    layer's parameters follows from the layer's input and output. Nothing is assumed of other models.
    """
    layers = [layer for _, layer in module.named_modules(remove_duplicate=False)]
    parameters = [parameter for _, parameter in module.named_parameters(remove_duplicate=False)]
    return (
        all(type(layer) in OWN_LAYERS and not _is_modified(layer) for layer in layers)
        and len(set(layers)) == len(layers)
        and len(set(parameters)) == len(parameters)
        and all(parameter.requires_grad for parameter in parameters)
    )


def _is_modified(layer: nn.Module) -> bool:
    """Whether a layer differs from ours of the same type: by a hook, an own `forward`, in-place operation, or batch statistics."""
    hooks = any(vars(layer).get(name) for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"))
    statistics = isinstance(layer, nn.BatchNorm2d) and layer.running_mean is None
    return hooks or "forward" in vars(layer) or bool(getattr(layer, "inplace", False)) or statistics


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise one layer as PyTorch does: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases, 1 and 0 in norm layers."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
        if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison] - torch's stub forgets bias=False
            bound = 1 / math.sqrt(module.weight[0].numel())
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
        module.reset_parameters()
    elif next(module.parameters(recurse=False), None) is not None or next(module.buffers(recurse=False), None) is not None:
        raise TypeError(f"expected a layer with a known initialisation, got {type(module).__name__}")


def build_model(name: str, *, norm: str, image_shape: Shape, num_classes: int, generator: torch.Generator) -> nn.Module:
    """The model `name` on the CPU in train mode, in float32, for images (n, C, H, W) and logits (n, c).

    Its d parameters depend on the state of `generator` (a CPU one) alone; PyTorch's global generator is neither read nor advanced.

    norm: `group`, or `batch` under the rule at the top of this file. `mlp` has no norm layer.
    Raises ValueError for an unknown name or norm, and for images too small for the model.
    """
    if name not in MODELS:
        raise ValueError(f"model.name: expected one of {', '.join(MODELS)}, got {name!r}")
    if norm not in NORMS:
        raise ValueError(f"model.norm: expected one of {', '.join(NORMS)}, got {norm!r}")
    # Layers initialise themselves from the global generator when they are built. On the meta device that draws no numbers.
    with torch.device("meta"):
        model = MODELS[name](image_shape, num_classes, NORMS[norm])
    model = model.to_empty(device="cpu")
    for module in model.modules():
        _initialise(module, generator)
    return model


def _options_taker(thing: Callable[..., nn.Module]) -> Callable[..., Any]:
    """What takes `model.options`: a model from outside; ours take none."""
    return _without_options if thing in MODELS.values() else thing


def _without_options(image_shape: Shape, num_classes: int) -> None: ...


models: Registry[Callable[..., nn.Module]] = Registry(
    "model", "model.name", MODELS, "fl_sim.models", arguments=2, options_taker=_options_taker
)
