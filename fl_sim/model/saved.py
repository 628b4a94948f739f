"""`final.safetensors`: a run's last model by the names of its parameters, and the module back from it."""

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
from fl_sim.model.module import built
from fl_sim.model.start import load_state
from fl_sim.model.vectors import trained_parameters
from fl_sim.registry import OutsideError

SHAPE, CLASSES, SOURCE = "image-shape", "num-classes", "model-source"  # of the file's metadata


def named_state(model: FlatModel, theta: Tensor, buffers: Tensor) -> dict[str, Tensor]:
    """The `state_dict` of a model with the trained parameters theta (d,) and the buffers (s,), on the CPU.

    Trained parameters are float32. What the rounds do not train is not: floating-point buffers and frozen parameters are float64 (exactly
    the numbers that they were), other buffers have their own type. A tensor that the module has under two names is there once.
    """
    module, state = model.module, dict[str, Tensor]()
    names, persistent = trained_parameters(module), module.state_dict()
    for (name, parameter), part in zip(names.items(), theta.split([value.numel() for value in names.values()]), strict=True):
        state[name] = part.detach().cpu().to(torch.float32).view(parameter.shape).clone()
    for name, parameter in module.named_parameters():
        if name not in names:
            state[name] = parameter.detach().cpu().to(torch.float64)
    held = dict(module.named_buffers())
    for (name, buffer), part in zip(held.items(), buffers.split([value.numel() for value in held.values()]), strict=True):
        if name in persistent:
            kind = torch.float64 if buffer.is_floating_point() else buffer.dtype
            state[name] = part.detach().cpu().to(kind).view(buffer.shape).clone()
    return state


def final_record(config: Config, dataset: Dataset) -> dict[str, str]:
    """The metadata of `final.safetensors`: what a module is built from besides the configuration, and the digest of an outside model."""
    return {
        SHAPE: json.dumps(dataset.image_shape),
        CLASSES: json.dumps(dataset.num_classes),
        SOURCE: models.content(config.model.name),
    }


def load_model(folder: Path | str) -> nn.Module:
    """The last model of a complete run as a module in eval mode on the CPU, from the run's folder.

    Raises FileNotFoundError where the folder holds no complete run, ValueError where it is damaged, of another version, or of an outside
    model that is not there or has changed since.
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
    shape, classes = _built_from(config, record, folder / "final.safetensors")
    module = built(config, shape, classes)
    load_state(module, tensors, str(folder / "final.safetensors"))
    return module.eval()


def _built_from(config: Config, record: Mapping[str, str], path: Path) -> tuple[tuple[int, int, int], int]:
    """Image shape and classes of a file's metadata, if the model is still what it was."""
    try:
        channels, height, width = json.loads(record[SHAPE])
        classes = int(record[CLASSES])
    except (KeyError, ValueError):
        raise ValueError(f"{path} does not say for which images it was trained: it is of another version") from None
    try:
        source = models.content(config.model.name)
    except OutsideError as error:
        raise ValueError(f"cannot load model.name = {config.model.name!r}, which {path} is of: {error}") from None
    if source != record.get(SOURCE, ""):
        raise ValueError(
            f"model.name = {config.model.name!r} has changed since {path} was written (its source was {record.get(SOURCE)}, is {source}); "
            "put the old file back, or fill a module of your own: safetensors.torch.load_model(module, PATH)"
        )
    return (channels, height, width), classes
