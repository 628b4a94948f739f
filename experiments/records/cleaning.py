"""What a cleaning did, for the records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clients.cleaning.cohort import Cleaner
from fl_sim.config.keys import Config
from fl_sim.data.batches import CohortBatches
from fl_sim.data.datasets import normalised
from fl_sim.data.federation import Federation
from fl_sim.model.flat_model import FlatModel
from fl_sim.wire.messages import CleaningCounts

SHOWN = 8  # images before and after the cleaning


def cleaning_figures(round_: int, fitted: Mapping[str, Tensor], clean: CleaningCounts, poisoned: CleaningCounts) -> dict[str, Any]:
    """The figures of a round: of the clients' own images and, where there are any, of the attacker's."""
    line = _part(clean, "") | (_part(poisoned, "poisoned_") if poisoned.images else {})
    if "start" in fitted:
        line["threshold"] = float(fitted["start"] + fitted["growth"] * round_)
    return line


def _part(counts: CleaningCounts, name: str) -> dict[str, Any]:
    left = counts.images - counts.dropped
    figures: dict[str, Any] = {
        f"{name}images": counts.images,
        f"{name}changed": counts.changed,
        f"{name}dropped": counts.dropped,
        f"{name}shift": counts.shift / left if left else 0.0,
    }
    return figures | ({f"{name}scores": list(counts.bins)} if counts.bins else {})


def cleaning_record(
    config: Config, fitted: Mapping[str, Tensor], federation: Federation, model: FlatModel, theta: Tensor
) -> dict[str, Any]:
    """What `cleaning.json` holds: the threshold, the edges of the bins of scores, and the first test images before and after the cleaning
    under the burnt-in model. Empty without a cleaning."""
    if config.cleaning.name == "none":
        return {}
    record: dict[str, Any] = {name: float(fitted[name]) for name in ("start", "growth") if name in fitted}
    if "edges" in fitted:
        record["edges"] = fitted["edges"].tolist()
    batch = federation.batch(federation.dataset.test, federation.splits.test[:SHOWN])
    size = len(batch.labels)
    batches = CohortBatches(
        batch.inputs[None, None], batch.labels[None, None], torch.full((1, 1, size), 1.0 / size).to(batch.inputs), [size]
    )
    after = Cleaner(config, federation, model, theta, 0, fitted)([0], batches)
    shown = {"before": batch.inputs, "after": after.batches.inputs[0, 0]}
    return record | {"labels": batch.labels.tolist()} | {name: _pixels(federation, inputs).tolist() for name, inputs in shown.items()}


def _pixels(federation: Federation, inputs: Tensor) -> Tensor:
    """Normalised inputs (e, C, H, W) as pixels from 0 to 255."""
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, inputs.shape[1], 1, 1)
    black, white = normalised(ends, federation.dataset).to(inputs)
    return (255.0 * (inputs - black) / (white - black)).round().clamp(0, 255).to(torch.uint8)
