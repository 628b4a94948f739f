"""The words that make a run of the command small."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SETTINGS: Mapping[str, Any] = {
    "model.name": "mlp",
    "data.num-clients": 12,
    "attack.malicious-fraction": 0.17,
    "attack.fire": "schedule",
    "schedule.burn-in-epochs": 1,
    "schedule.accumulate-rounds": 4,
    "schedule.recovery-rounds": 2,
    "checkpoint.every": 2,
}
# A process that computes by `vmap` first imports PyTorch's compiler, for more than a second.
LEAN: Mapping[str, Any] = {"client.engine": "loop"}
ALONE: Mapping[str, Any] = {"twin": False, "control": False}


def words(settings: Mapping[str, Any]) -> list[str]:
    """`-c` words for flat keys."""
    return [word for key, value in settings.items() for word in ("-c", f"{key}={json.dumps(value)}")]


SMALL = words(SETTINGS)
