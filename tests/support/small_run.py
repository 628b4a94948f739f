"""The words that make a run of the command small."""

from __future__ import annotations

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
ALONE: Mapping[str, Any] = {"twin": False, "control": False}


def words(settings: Mapping[str, Any]) -> list[str]:
    """`-c` words for flat keys."""
    text = {key: str(value).lower() if isinstance(value, bool) else value for key, value in settings.items()}
    return [word for key, value in text.items() for word in ("-c", f"{key}={value}")]


SMALL = words(SETTINGS)
