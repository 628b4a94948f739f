"""A device without hardware, with real values: on the device `standin` tensors compute on the CPU, and refuse to meet CPU tensors as those
of a GPU do. Autograd, `vmap(grad(...))`, convolutions, norms and autocast work; every copy between host and device is counted.

For tests of the GPU path on a machine without one. It says nothing about speed, or about a GPU's rounding. PyTorch's registration of a
device in Python is experimental: its use stays in this file.
"""

# pyright: reportPrivateUsage=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false, reportUnknownMemberType=false
# pyright: reportIncompatibleMethodOverride=false, reportUnknownParameterType=false, reportMissingParameterType=false

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fl_sim.config.keys import Config

NAME = "standin"
MOVES = ("aten::_to_copy", "aten::copy_")
LOWERED = (torch.ops.aten.linear, torch.ops.aten.matmul, torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.conv2d)
WIDENED = (torch.ops.aten.cross_entropy_loss,)  # as under CUDA's autocast


class Copies(Counter[str]):
    """How often something travelled: `up` to the device, `down` from it (a number that Python reads counts); and how often by shape."""

    def add(self, way: str, values: torch.Tensor) -> None:
        self[way] += 1
        self[f"{way} {tuple(values.shape)}"] += 1


copies = Copies()
memory = {"largest": float("inf")}  # numbers that a tensor on the device may have; a larger one raises torch.OutOfMemoryError


class StandInTensor(torch.Tensor):
    """A tensor that says it is on the stand-in device and keeps its values in a CPU tensor."""

    values: torch.Tensor
    is_cuda = True  # pyright: ignore[reportAssignmentType] - so that rules for GPUs apply

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> StandInTensor:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=torch.device(NAME, 0),  # with an index: the autograd engine asserts one
        )
        wrapper.values = values
        return wrapper

    def numpy(self, *, force: bool = False) -> Any:
        """As on a GPU: only with `force`, and it is a copy to the host."""
        if not force:
            raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy; use Tensor.cpu() first")
        copies.add("down", self)
        return self.values.detach().clone().numpy()

    def tolist(self) -> Any:
        copies.add("down", self)
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})


def compute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operator on the values, and refuse to mix devices."""
    name, kwargs, tensors = operation._schema.name, dict(kwargs), list[torch.Tensor]()
    tree_map(lambda x: tensors.append(x) if isinstance(x, torch.Tensor) else None, (args, kwargs))
    here, moving = any(isinstance(x, StandInTensor) for x in tensors), name in MOVES
    if here and not moving and any(x.dim() > 0 for x in tensors if not isinstance(x, StandInTensor)):
        raise RuntimeError(f"expected all tensors of {name} on one device, got {NAME} and cpu")
    stays = here
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == NAME
        kwargs["device"] = torch.device("cpu")
        if moving and stays != here:
            copies.add("up" if stays else "down", args[0])
    if name == "aten::_local_scalar_dense" and here:
        copies.add("down", args[0])
    if name == "aten::copy_":
        stays, source = isinstance(args[0], StandInTensor), isinstance(args[1], StandInTensor)
        if stays != source:
            copies.add("up" if stays else "down", args[1])
    args_, kwargs_ = tree_map(lambda x: x.values if isinstance(x, StandInTensor) else x, (args, kwargs))
    result = operation(*args_, **kwargs_)
    if name.endswith("_") and isinstance(args[0], StandInTensor):
        return args[0]
    if stays and isinstance(result, torch.Tensor) and result.numel() > memory["largest"]:
        raise torch.OutOfMemoryError(f"{NAME}: {result.numel()} numbers")
    return tree_map(lambda x: StandInTensor(x) if isinstance(x, torch.Tensor) and stays else x, result)


class _Factories(TorchFunctionMode):
    """`torch.tensor([...], device="standin")` and an index that is a list allocate below the dispatcher: they are made on the CPU and
    moved."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        where = kwargs.get("device")
        if function in (torch.tensor, torch.as_tensor, torch.asarray) and where is not None and torch.device(where).type == NAME:
            return function(*args, **(kwargs | {"device": "cpu"})).to(where)
        if function is torch.Tensor.new_tensor and isinstance(args[0], StandInTensor):
            return torch.tensor(*args[1:], **({"dtype": args[0].dtype} | kwargs | {"device": "cpu"})).to(args[0].device)
        if (
            function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
            and isinstance(args[0], StandInTensor)
            and isinstance(args[1], list)
        ):
            args = (args[0], torch.tensor(args[1], dtype=torch.long).to(args[0].device), *args[2:])
        return function(*args, **kwargs)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})


class _DeviceModule(backend_registration._DummyBackendModule):
    """What `torch.autocast` asks of a device."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


_libraries: list[torch.library.Library] = []  # they live as long as the process


def register() -> None:
    """Make the device known to this process, before its first backward pass: autograd starts a thread for each device that it knows then."""
    if _libraries:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, _DeviceModule())
    every, some = (torch.library.Library(namespace, "IMPL", "AutocastPrivateUse1") for namespace in ("_", "aten"))
    every.fallback(torch.library.fallthrough_kernel)
    for packets, dtype in ((LOWERED, torch.bfloat16), (WIDENED, torch.float32)):
        for packet in packets:
            some.impl(packet.default, _cast_to(packet.default, dtype))
    _libraries.extend((every, some))


def _cast_to(operation: Any, dtype: torch.dtype) -> Callable[..., Any]:
    """The operator with its floating-point tensors cast."""

    def call(*args: Any, **kwargs: Any) -> Any:
        key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(key):
            args, kwargs = tree_map(lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x, (args, kwargs))
            return operation(*args, **kwargs)

    return call


@contextlib.contextmanager
def stand_in_device(monkeypatch: pytest.MonkeyPatch) -> Generator[Copies]:
    """Inside the block a configuration with `device = "auto"` computes on the stand-in device. Yields the copies, counted from 0."""
    register()

    def device_of(config: Config) -> torch.device:
        return torch.device("cpu") if config.device == "cpu" else torch.device(NAME, 0)

    for place in ("fl_sim.data.federation", "fl_sim.model.burn_in", "clients.client_app"):
        monkeypatch.setattr(f"{place}.device_of", device_of)
    # In an order the device is called "cuda", as a server with a GPU writes it.
    monkeypatch.setattr("fl_sim.grid.grid.device_of", lambda config: torch.device("cuda" if device_of(config).type == NAME else "cpu"))
    copies.clear()
    with _Factories(), _Dispatch():
        yield copies
