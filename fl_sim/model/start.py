"""`model.start`: somebody's `state_dict` as the parameters from which the burn-in starts."""

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
    """Fill a module with the `state_dict` of a file: safetensors, or what `torch.save` wrote (no code in it is run).

    Raises ModelError where the file cannot be read, or does not fit the module in names and shapes.
    """
    load_state(module, _read(Path(path).expanduser()), f"model.start = {path!r}")


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], whose: str) -> None:
    """`module.load_state_dict`, with what is missing, unexpected or of another shape in one sentence. A parameter that a module uses under
    two names may be there under either.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    there = {id(tensor) for name, tensor in _named(module) if name in given}
    twins = {name for name, tensor in _named(module) if id(tensor) in there}
    problems = {
        "missing": [name for name in wanted if name not in given and name not in twins],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [f"{name} {given[name]} for {shape}" for name, shape in wanted.items() if given.get(name, shape) != shape],
    }
    if any(problems.values()):
        words = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
        raise ModelError(f"expected {whose} to fit the model, got {words}")
    module.load_state_dict(dict(tensors), strict=False)


def _named(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, each under all of its names."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _listed(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            safe = file.read(9)[8:] == b"{"  # a header in JSON after its length
        value: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"expected model.start to be a file that can be read, got {str(path)!r} ({error.strerror or error})") from None
    except Exception:  # either reader raises anything, and torch.load advises to run the code that it found
        raise ModelError(f"expected model.start = {str(path)!r} to hold {FORMS}, got a file of another kind or a damaged one") from None
    if not isinstance(value, Mapping):
        raise ModelError(f"expected model.start = {str(path)!r} to hold {FORMS}, got a {type(value).__name__}")
    entries = {str(name): tensor for name, tensor in cast(Mapping[Any, Any], value).items()}
    if others := [name for name, tensor in entries.items() if not isinstance(tensor, Tensor)]:
        raise ModelError(f"expected model.start = {str(path)!r} to hold {FORMS}, got other values under {_listed(others)}")
    return entries
