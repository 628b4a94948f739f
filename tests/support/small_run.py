"""The words that make a run of the command small."""

from __future__ import annotations

SETTINGS = {
    "model.name": "mlp",
    "data.num-clients": 12,
    "attack.malicious-fraction": 0.17,
    "attack.fire": "schedule",
    "schedule.burn-in-epochs": 1,
    "schedule.accumulate-rounds": 4,
    "checkpoint.every": 2,
}
SMALL = [word for key, value in SETTINGS.items() for word in ("-c", f"{key}={value}")]
