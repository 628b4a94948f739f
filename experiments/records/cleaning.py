"""What a cleaning did, for the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def auroc(clean: Sequence[int], poisoned: Sequence[int]) -> float | None:
    """The share of pairs of a clean and a poisoned image in which the poisoned one has the higher score; a pair in one bin counts one half.
    None without a pair.

    Args: how many images of each have a score in each bin.
    """
    pairs, wins, below = sum(clean) * sum(poisoned), 0.0, 0
    for ours, theirs in zip(clean, poisoned, strict=True):
        wins += theirs * (below + 0.5 * ours)
        below += ours
    return wins / pairs if pairs else None


def binned(lines: Iterable[Mapping[str, Any]], key: str) -> list[int]:
    """How many images have a score in each bin, over all lines. key: `scores`, or `poisoned_scores`."""
    counts = [line["cleaning"][key] for line in lines if key in line.get("cleaning", {})]
    return [sum(column) for column in zip(*counts, strict=True)]


def clean_lines(attacked: Sequence[Mapping[str, Any]], twin: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines with the clean images to compare poisoned ones with: the clean twin's of the rounds before the recovery; without a twin the
    attacked track's own. (After a trigger clean images look poisoned to a broken model.)"""
    acting = {line["round"] for line in attacked if line["phase"] != "recover"}
    return [line for line in twin or attacked if line["round"] in acting]


def cleaning_summary(
    attacked: Sequence[Mapping[str, Any]], twin: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]] = ()
) -> dict[str, float | None] | None:
    """What a cleaning did: the shares of clean (`clean_lines`) and of poisoned images that it changed or dropped; and the AUROC of its
    scores of the poisoned images of the accumulative phase, of the triggers, and of the control's triggers, against the clean ones. None
    without a cleaning."""
    if not any("cleaning" in line for line in attacked):
        return None
    clean = clean_lines(attacked, twin)
    shares = {"flagged": flagged(clean, ""), "poisoned_flagged": flagged(attacked, "poisoned_")}
    scores = binned(clean, "scores")
    for name, lines, phase in (("accumulate", attacked, "accumulate"), ("trigger", attacked, "trigger"), ("control", control, "trigger")):
        poisoned = binned([line for line in lines if line["phase"] == phase], "poisoned_scores")
        shares[f"auroc_{name}"] = auroc(scores, poisoned) if scores and poisoned else None
    return shares


def flagged(lines: Iterable[Mapping[str, Any]], name: str) -> float | None:
    """The share of images that were changed or dropped, over all lines; None without images. name: empty, or `poisoned_`."""
    figures = [line["cleaning"] for line in lines if line.get("cleaning", {}).get(f"{name}images")]
    images = sum(part[f"{name}images"] for part in figures)
    return sum(part[f"{name}changed"] + part[f"{name}dropped"] for part in figures) / images if images else None


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
