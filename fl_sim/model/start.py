"""`model.start`: the file with the `state_dict` from which the burn-in starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fl_sim.model.outside import ModelError

FORMS = "a state_dict (safetensors, or torch.save(module.state_dict(), FILE))"


def load_start(module: nn.Module, path: str) -> None:
    """Fill a module with the `state_dict` of a file: safetensors, or written by `torch.save` (no code in it is run).

    Raises ModelError if the file cannot be read, or its names or shapes do not fit the module.
    """
    load_state(module, _read(Path(path).expanduser()), f"model.start = {path!r}")


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], whose: str) -> None:
    """`module.load_state_dict`. Raises ModelError with everything that is missing, unexpected or of another shape. A parameter that the
    module has under two names may be stored under either.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    present = {id(tensor) for name, tensor in _all_names(module) if name in shapes}
    aliases = {name for name, tensor in _all_names(module) if id(tensor) in present}
    problems = {
        "missing": [name for name in expected if name not in shapes and name not in aliases],
        "unexpected": [name for name in shapes if name not in expected],
        "of another shape": [f"{name} {shapes[name]} for {shape}" for name, shape in expected.items() if shapes.get(name, shape) != shape],
    }
    if any(problems.values()):
        words = "; ".join(f"{kind}: {_list_of(names)}" for kind, names in problems.items() if names)
        raise ModelError(f"expected {whose} to fit the model, got {words}")
    module.load_state_dict(dict(tensors), strict=False)


def _all_names(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, each with all of its names."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _list_of(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            safe = file.read(9)[8:] == b"{"  # a header in JSON after its length
        value: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"expected model.start to be a file that can be read, got {str(path)!r} ({error.strerror or error})") from None
    except Exception:  # both may raise anything; torch.load's own message advises to run the code in the file
        raise ModelError(f"expected model.start = {str(path)!r} to hold {FORMS}, got a file of another kind or a damaged one") from None
    if not isinstance(value, Mapping):
        raise ModelError(f"expected model.start = {str(path)!r} to hold {FORMS}, got a {type(value).__name__}")
    entries = {str(name): tensor for name, tensor in cast(Mapping[Any, Any], value).items()}
    if others := [name for name, tensor in entries.items() if not isinstance(tensor, Tensor)]:
        raise ModelError(f"expected model.start = {str(path)!r} to hold {FORMS}, got other values under {_list_of(others)}")
    return entries
