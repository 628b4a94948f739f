"""The device that models run on, decided here and nowhere else; and the CPU cores of this process."""

from __future__ import annotations

import os

import torch

from fl_sim.config.keys import Config


def device_of(config: Config) -> torch.device:
    """The device of the key `device`; with `auto` a GPU if there is one."""
    setting = config.device
    return torch.device("cuda" if setting == "cuda" or (setting == "auto" and torch.cuda.is_available()) else "cpu")


def cpu_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_here() -> int:
    """The CUDA devices that this process sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
