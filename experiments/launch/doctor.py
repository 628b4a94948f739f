"""`fl-sim doctor`: what this installation can do, and what is wrong with it."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.text import Text

from experiments.launch.app_folder import app_folder
from experiments.records.folder import PACKAGES
from fl_sim.config.resolve import resolve
from fl_sim.device import cpu_cores
from fl_sim.registry import how_to_install

OPTIONAL = ("byzfl", "tensorboard", "wandb", "mlflow", "pyarrow", "datasets")
EXTRAS = {"pyarrow": "parquet"}  # of fl-sim, where it is not the module's name


def doctor(console: Console) -> int:
    """Print one line per check and return 0 if all passed, else 1."""
    failures = 0
    for name, check in CHECKS.items():
        try:
            result = check()
            console.print(Text.assemble(("ok", "green"), f"    {name}: {result}"), highlight=False, soft_wrap=True)
        except Exception as error:  # a broken installation may raise anything
            failures += 1
            console.print(Text.assemble(("wrong", "red"), f" {name}: {type(error).__name__}: {error}"), highlight=False, soft_wrap=True)
    return 1 if failures else 0


def _packages() -> str:
    for name in PACKAGES:
        importlib.import_module(name)
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def _optional() -> str:
    versions = [f"{name} {_version(name)}" for name in OPTIONAL if find_spec(name)]
    missing = [f"no {name} ({how_to_install(EXTRAS.get(name, name))})" for name in OPTIONAL if not find_spec(name)]
    return ", ".join(versions + missing)


def _version(module: str) -> str:
    """The version of the distribution that holds a module: `mlflow` is also in mlflow-skinny."""
    for name in dict.fromkeys([module, *packages_distributions().get(module, [])]):
        with suppress(PackageNotFoundError):
            return version(name)
    return "of an unknown version"


def _vision() -> str:
    import torch
    from torchvision.ops import nms

    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # raises where torch and torchvision are of different builds
    return "torchvision's operators load"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} GPU, {torch.cuda.get_device_name()}"
    return f"no GPU, {cpu_cores()} CPU cores"


def _app() -> str:
    if not (app_folder() / "pyproject.toml").is_file():
        raise FileNotFoundError(f"{app_folder()} has no pyproject.toml: this installation is damaged")
    return str(app_folder())


def _cache() -> str:
    folder = Path(resolve({}).data.cache_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written; set data.cache-dir")
    return str(folder)


CHECKS: dict[str, Callable[[], str]] = {
    "python": platform.python_version,
    "packages": _packages,
    "optional packages": _optional,
    "torchvision": _vision,
    "device": _device,
    "Flower app": _app,
    "cache": _cache,
}
