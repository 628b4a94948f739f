"""`python -m experiments.benchmarks.sweep`: 16 cells of W5 (W1's model under the accumulative attack, DGC) as one sweep and as 16 runs.

Each way has caches of its own. The time is that of the whole command.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tomli_w
from rich.console import Console
from rich.progress import track

from fl_sim.atomic_files import write_whole

SEEDS = range(1, 17)
W5 = {
    "model.name": "mlp",
    "client.batch-size": 10,
    "strategy.name": "dgc",
    "twin": False,
    "control": False,
    "evaluate.every": 10,
}


def command(*arguments: str) -> float:
    """The seconds of an `fl-sim` command. Raises RuntimeError if it fails."""
    start_time = time.perf_counter()
    line = [sys.executable, "-m", "experiments", *arguments]
    process = subprocess.run(line, env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError("\n".join([f"{' '.join(line)} failed", *(process.stdout + process.stderr).splitlines()[-20:]]))
    return time.perf_counter() - start_time


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.sweep", description=__doc__)
    parser.add_argument("-o", "--output-dir", type=Path, default=Path("runs/benchmarks"))
    root = parser.parse_args(argv).output_dir.resolve()
    root.mkdir(parents=True, exist_ok=True)
    console, stamp = Console(), f"{time.time_ns()}"
    spec = root / "w5.toml"
    spec.write_text(tomli_w.dumps({"base": "digits", "set": W5, "axes": {"seed": list(SEEDS)}}), encoding="utf-8")
    caches = {way: ["-c", f"data.cache-dir={root / 'caches' / stamp / way}"] for way in ("sweep", "runs")}
    with console.status("one sweep"):
        sweep = command("sweep", str(spec), *caches["sweep"], "-o", str(root / "sweep" / stamp))
    overrides = [item for key, value in W5.items() for item in ("-c", f"{key}={str(value).lower()}")]
    runs = [
        command("run", "digits", *overrides, "-c", f"seed={seed}", *caches["runs"], "-o", str(root / "single" / stamp))
        for seed in track(SEEDS, "single runs", console=console)
    ]
    for way in ("sweep", "single"):
        if (complete := len(list((root / way / stamp).rglob("summary.json")))) != len(SEEDS):
            raise RuntimeError(f"expected {len(SEEDS)} complete runs of {way}, got {complete}")
    record = {"sweep": sweep, "runs": runs, "cells_per_hour": {"sweep": 3600 * len(runs) / sweep, "runs": 3600 * len(runs) / sum(runs)}}
    write_whole(root / "sweep.json", json.dumps(record, indent=2) + "\n")
    console.print(
        f"one sweep of {len(runs)} cells: {sweep:.1f} s; {len(runs)} runs: {sum(runs):.1f} s, median {statistics.median(runs):.1f} s"
    )
    console.print(f"cells per hour: {sum(runs) / sweep:.2f} times as many in a sweep")
    return 0


if __name__ == "__main__":
    sys.exit(main())
