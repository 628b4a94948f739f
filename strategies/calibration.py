"""DGC's thresholds, from clean rounds at the end of the burn-in that are then forgotten."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from fl_sim.atomic_files import write_whole
from fl_sim.config.keys import Config
from fl_sim.data.federation import Federation
from fl_sim.data.sampling import sample_clients
from fl_sim.grid.grid import ClientGrid, play_round
from fl_sim.grid.transports import Transport
from fl_sim.model.burn_in import StartModel, cache_key
from fl_sim.model.flat_model import FlatModel
from strategies.catalogue import build_strategy
from strategies.dgc.thresholds import Calibration, Threshold, fitted, upper_quartile
from strategies.rule_strategy import RuleStrategy

VERSION = 3  # of what a calibration does: caches of others are not read
FIRST = 1_000_000  # rounds of a calibration are numbered from here: other samples than any round of the run, and other batches, except
# where a client's share is no larger than its batch and every round trains on all of it
DEPENDS_ON = ("client.", "server.", "strategy.", "fault.")
LEAST_RISE = 0.02  # of the burnt-in model's probe loss: where learning was so steady that no clean round raised it, one may still
SCORES: tuple[str, ...] = ("history", "fixed", "rise", "fragility")


def calibrate(
    config: Config,
    transport: Transport,
    start: StartModel,
    federation: Federation,
    model: FlatModel,
    *,
    max_messages: int,
    progress: Callable[[int, int], None],
) -> tuple[Calibration, dict[str, Any]]:
    """Thresholds for `strategy.guard`, and the record of how they came about.

    `strategy.calibration-rounds` rounds of the federation from the burnt-in model, every client honest, nothing refused; then a
    probation is rehearsed, and as many rounds after it, because what the clip held back comes at once when it ends; else one false alarm
    would bring the next. Then the model is forgotten: the run begins where it begins under any other strategy. Cached like the burn-in.
    """
    folder = Path(config.data.cache_dir).expanduser() / f"calibration-{VERSION}"
    path = folder / f"{cache_key(config, federation, DEPENDS_ON)}.json"
    if not (record := _load(path)):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # cells of a sweep share a calibration, whichever process they run in
            if not (record := _load(path)):
                grid = ClientGrid(transport, config, start.buffers, max_messages=max_messages)
                record = _measure(config, grid, start, federation, model, progress)
                write_whole(path, json.dumps({"record": record, "sha256": _digest(record)}, indent=2) + "\n")
    loss = model.score(start.theta.to(federation.device), *federation.probe())[1]
    known = fitted(config.strategy, record["scores"], record["probation"], least_rise=LEAST_RISE * loss, upper_norm=record["upper-norm"])
    for kind, lines in (("thresholds", known.thresholds), ("during-probation", known.during_probation), ("typical", known.typical)):
        record[kind] = {name: line._asdict() for name, line in lines.items()}
    record["levels"] = {name: level._asdict() for name, level in known.levels.items()}
    return known, record


def _load(path: Path) -> dict[str, Any] | None:
    """The cached record, or None where there is none or it is damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept["record"] if kept["sha256"] == _digest(kept["record"]) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _measure(
    config: Config, grid: ClientGrid, start: StartModel, federation: Federation, model: FlatModel, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """The scores of clean rounds by name, and the upper quartile of the norms of clients' updates before the rehearsed probation."""
    nobody = config.model_copy(update={"attack": config.attack.model_copy(update={"name": "none", "poison_ratio": -1.0})})
    endless: dict[str, Threshold] = dict.fromkeys(SCORES, Threshold(float("inf"), 0.0))
    strategy = build_strategy(
        config,
        start.theta.cpu(),
        lambda round_: sample_clients(nobody, round_),
        model=model,
        federation=federation,
        calibration=Calibration(endless, endless, endless, {}, float("inf")),
        calibrating=True,
    )
    assert isinstance(strategy, RuleStrategy)
    scores, norms, norm = dict[str, list[float]](), list[float](), float("inf")
    settings = config.strategy
    probation = settings.probation if settings.scope == "aggregate" else 0
    rounds = settings.calibration_rounds + 2 * probation
    for number in range(1, rounds + 1):
        if number == settings.calibration_rounds + 1:
            norm = upper_quartile(torch.tensor(norms))
            strategy.begin_probation(probation, norm)
        try:
            played = play_round(strategy, grid, FIRST + number, phase="")
        except RuntimeError as error:
            raise RuntimeError(f"calibration, round {number}: {error}") from error
        for name in SCORES:
            if name in played.metrics:
                scores.setdefault(name, []).append(played.metrics[name])
        norms += [report.norm for report in played.outcome.reports if not report.failure]
        progress(number, rounds)
    rehearsed = list(range(settings.calibration_rounds + 1, settings.calibration_rounds + probation + 1))
    return {
        "rounds": rounds,
        "probation": rehearsed,
        "scores": scores,
        "upper-norm": norm if probation else upper_quartile(torch.tensor(norms)),
    }
