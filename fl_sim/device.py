"""Where models run: decided here and nowhere else."""

from __future__ import annotations

import torch

from fl_sim.config.keys import Config


def device_of(config: Config) -> torch.device:
    """Where models run: `device`, or a GPU if there is one with `auto`."""
    wanted = config.device
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")
