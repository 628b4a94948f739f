"""The records of a small study, written without running it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.records.folder import run_folder
from experiments.sweep.spec import Cell, label
from experiments.sweep.study import Run, Study, complete_runs, write_study
from fl_sim.config.resolve import resolve, to_flat, to_json

STRATEGIES = ("mean", "dgc")
RATIOS = (0.0, 0.1, 0.2)
SEEDS = (1, 2)


def accuracy_left(strategy: str, ratio: float, seed: int) -> float:
    """What the trigger leaves in these records."""
    return 99.0 - seed if strategy == "dgc" or not ratio else 50.0 - 100.0 * ratio - seed


def write_study_records(folder: Path, seeds: Sequence[int] = SEEDS, **study: Any) -> list[Run]:
    """Two strategies by three ratios by the seeds: the folder of each run, and study.json. Returns the runs."""
    base = {"name": "small", "model.name": "mlp"}
    cells = [
        Cell(
            {"strategy.name": strategy, "attack.poison-ratio": ratio, "seed": seed},
            {"strategy": strategy, "attack.poison-ratio": label(ratio), "seed": str(seed)},
        )
        for strategy in STRATEGIES
        for ratio in RATIOS
        for seed in seeds
    ]
    places = [write_run(folder, {**base, **cell.flat}) for cell in cells]
    whole = Study("small", base, tuple(cells), tuple(place.name for place in places), **study)
    write_study(folder, whole)
    return complete_runs(folder, whole).runs


def write_run(folder: Path, flat: dict[str, Any]) -> Path:
    """One complete run's records; the trigger fires in round 4 plus the seed, of 10; even rounds are evaluated."""
    config = resolve(flat)
    left = accuracy_left(config.strategy.name, config.attack.poison_ratio, config.seed)
    fired = 4 + config.seed if config.attack.poison_ratio else 0
    place = run_folder(folder, config)
    place.mkdir(parents=True)
    (place / "config.json").write_text(to_json(to_flat(config)))
    meta = {
        "versions": {"python": "3.11", "torch": "2", "flwr": "1", "ray": "2"},
        "device": "cpu <of a test>",
        "git_commit": "",
        "started": "2026-01-01",
        "finished": "2026-01-02",
    }
    (place / "meta.json").write_text(json.dumps(meta))
    lines = [_line(round_, fired, left, config.strategy.name) for round_ in range(1, 11)]
    (place / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "accuracy": {"burn_in": 97.0, "before_trigger": 98.5, "after_trigger": left, "final": 99.0},
        "drop": 98.5 - left,
        "stealth_gap": 0.5 if fired else None,
        "gain": None,
        "worst_loss_in_phase": 0.0,
        "trigger_round": fired or None,
        "triggers": [fired] if fired else [],
        "client_failures": 0,
        "retries": 0,
        "clean_twin": None,
        "control": None,
        "poison_ratio": {"configured": config.attack.poison_ratio, "realised_mean": config.attack.poison_ratio},
        "rounds": 10,
        "seconds": {
            **dict.fromkeys(["attacked_round", "aggregation", "honest_round"]),
            **{"total": 1.5, "burn_in": 0.5, "rounds": 1.0},
        },
    }
    (place / "summary.json").write_text(json.dumps(summary))
    return place


def _line(round_: int, fired: int, left: float, strategy: str) -> dict[str, Any]:
    """A line of rounds.jsonl; the scores under DGC alone."""
    line: dict[str, Any] = {"track": "attacked", "round": round_, "phase": "recover" if fired and round_ > fired else "accumulate"}
    line |= {"poison_ratio": 0.1, "honest_norm": 1.0, "strategy": {"combined_norm": 1.0}}
    if strategy == "dgc":
        line["strategy"] |= {"history": 0.1, "history_threshold": 0.2, "refused": 0.0, "drifted": 0.0}
    if round_ % 2 == 0:
        line["accuracy"] = 98.0
    if fired and round_ <= fired:
        line["attack"] = {"scale": 0.5, "malicious_norm": 2.0, "own_loss": 0.1, "fired": float(round_ == fired)}
    if round_ == fired:
        line |= {"phase": "trigger", "before_trigger": 98.5, "after_trigger": left}
    return line
