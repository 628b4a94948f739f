"""`final.safetensors`: a run's last model by the names of its parameters; and how it is loaded again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fl_sim.atomic_files import load_tensors
from fl_sim.config.keys import Config
from fl_sim.config.resolve import from_json
from fl_sim.data.datasets import Dataset
from fl_sim.model.architectures import models
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import initial_module
from fl_sim.model.start import load_state
from fl_sim.model.vectors import trained_parameters
from fl_sim.registry import OutsideError

SHAPE, CLASSES, SOURCE = "image-shape", "num-classes", "model-source"  # of the file's metadata


def named_state(model: FlatModel, theta: Tensor, buffers: Tensor) -> dict[str, Tensor]:
    """The `state_dict` of a model with the trained parameters theta (d,) and the buffers (s,), on the CPU.

    Trained parameters are float32. Frozen parameters and floating-point buffers are float64, which holds their values exactly; other
    buffers keep their type. A tensor that the module has under two names is stored once.
    """
    module, state = model.module, dict[str, Tensor]()
    names, persistent = trained_parameters(module), module.state_dict()
    for (name, parameter), part in zip(names.items(), theta.split([value.numel() for value in names.values()]), strict=True):
        state[name] = part.detach().cpu().to(torch.float32).view(parameter.shape).clone()
    for name, parameter in module.named_parameters():
        if name not in names:
            state[name] = parameter.detach().cpu().to(torch.float64)
    by_name = dict(module.named_buffers())
    for (name, buffer), part in zip(by_name.items(), buffers.split([value.numel() for value in by_name.values()]), strict=True):
        if name in persistent:
            kind = torch.float64 if buffer.is_floating_point() else buffer.dtype
            state[name] = part.detach().cpu().to(kind).view(buffer.shape).clone()
    return state


def final_record(config: Config, dataset: Dataset) -> dict[str, str]:
    """The metadata of `final.safetensors`: what a module needs besides the configuration, and the digest of an outside model."""
    return {
        SHAPE: json.dumps(dataset.image_shape),
        CLASSES: json.dumps(dataset.num_classes),
        SOURCE: models.content(config.model.name),
    }


def load_model(folder: Path | str) -> nn.Module:
    """The last model of a complete run as a module in eval mode on the CPU, from the run's folder.

    Raises FileNotFoundError if the folder holds no complete run; ValueError if it is damaged, of another version, or of an outside model
    that is missing or has changed since.
    """
    folder = Path(folder).expanduser()
    for name, what in (("config.json", "no run's folder"), ("final.safetensors", "the folder of a run that is not complete")):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is {what}: {name} is missing")
    try:
        config = from_json((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{folder / 'config.json'} is no configuration of this version: {error}") from None
    tensors, record = load_tensors(folder / "final.safetensors")
    shape, classes = _shape_and_classes(config, record, folder / "final.safetensors")
    module = initial_module(config, shape, classes)
    load_state(module, tensors, str(folder / "final.safetensors"))
    return module.eval()


def _shape_and_classes(config: Config, record: Mapping[str, str], path: Path) -> tuple[tuple[int, int, int], int]:
    """Image shape and number of classes in a file's metadata. Raises ValueError if they are missing or an outside model has changed."""
    try:
        channels, height, width = json.loads(record[SHAPE])
        classes = int(record[CLASSES])
    except (KeyError, ValueError):
        raise ValueError(f"{path} does not state image shape and classes: it is of another version") from None
    try:
        source = models.content(config.model.name)
    except OutsideError as error:
        raise ValueError(f"cannot load model.name = {config.model.name!r}, the model of {path}: {error}") from None
    if source != record.get(SOURCE, ""):
        raise ValueError(
            f"model.name = {config.model.name!r} has changed since {path} was written (its source was {record.get(SOURCE)}, is {source}); "
            "put the old file back, or fill a module of your own: safetensors.torch.load_model(module, PATH)"
        )
    return (channels, height, width), classes
