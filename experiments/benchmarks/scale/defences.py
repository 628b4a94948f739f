"""`python -m experiments.benchmarks.scale.defences`: what the strategies of `defences_matrix_digits` cost a round of 100 clients, in time
and memory: the CNN of 105,962 parameters, one Fashion-MNIST image per client, no attack, `inline`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from experiments.benchmarks.scale.commands import timed_run
from experiments.sweep.spec import read_sweep
from fl_sim.atomic_files import write_whole

STUDY = "defences_matrix_digits"
KEYS: Mapping[str, Any] = {
    "seed": 1, "model.name": "cnn", "data.num-clients": 100, "client.batch-size": 1, "attack.name": "none",
    "attack.malicious-fraction": 0.2, "attack.fire": "schedule", "monitor.action": "none", "schedule.burn-in-epochs": 1,
    "schedule.recovery-rounds": 0, "strategy.calibration-rounds": 20, "evaluate.every": 1000, "twin": False, "control": False,
}  # fmt: skip


def strategies() -> dict[str, dict[str, Any]]:
    """The study's strategies: their keys by the name in its tables."""
    found: dict[str, dict[str, Any]] = {}
    for cell in read_sweep(STUDY).cells:
        found.setdefault(cell.labels["strategy"], {key: value for key, value in cell.flat.items() if key.startswith("strategy.")})
    return found


def table_of(found: Mapping[str, Mapping[str, float]]) -> str:
    """Milliseconds of a round and of the strategy in it, and the memory beside that of the first strategy."""
    least = next(iter(found.values()))["peak"]
    lines = ["| strategy | round (ms) | the strategy in it (ms) | memory over the mean's (MB) |", "| --- | --- | --- | --- |"]
    for name, entry in found.items():
        parts = (1000 * entry["round"], 1000 * entry["aggregate"], (entry["peak"] - least) / 1e6)
        lines.append(f"| `{name}` | {' | '.join(f'{part:.0f}' if abs(part) >= 10 else f'{part:.1f}' for part in parts)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.scale.defences", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("-c", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="set a key of all runs")
    parser.add_argument("-o", "--output-dir", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args(argv)
    root, console = args.output_dir.resolve() / "defences", Console()
    root.mkdir(parents=True, exist_ok=True)
    common = {**KEYS, "schedule.accumulate-rounds": args.rounds - 1, "data.cache-dir": str(root / "cache")}
    common |= dict(word.split("=", 1) for word in args.overrides)
    found: dict[str, dict[str, Any]] = {}
    for number, (name, keys) in enumerate(track(strategies().items(), "strategies", console=console)):
        found[name] = timed_run("fashion-mnist", {**common, **keys}, root / f"{number}")
        write_whole(root / "defences.json", json.dumps(found, indent=2) + "\n")
    table = table_of(found)
    write_whole(root / "defences.md", table)
    console.print(table, markup=False, soft_wrap=True)
    console.print(f"records: {root / 'defences.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
