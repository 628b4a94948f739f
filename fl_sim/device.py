"""The device that models run on: decided here and nowhere else."""

from __future__ import annotations

import torch

from fl_sim.config.keys import Config


def device_of(config: Config) -> torch.device:
    """The device of the key `device`; with `auto` a GPU if there is one."""
    setting = config.device
    return torch.device("cuda" if setting == "cuda" or (setting == "auto" and torch.cuda.is_available()) else "cpu")
