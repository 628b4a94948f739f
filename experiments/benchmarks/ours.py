"""Our leg: a run as `fl-sim run` starts it, and its times from the records. A script that prints JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.benchmarks.workloads import workload_of
from experiments.launch.launch import launch
from experiments.records.folder import read_rounds, run_folder
from fl_sim.config.resolve import resolve


def measure(workload: str, root: Path, rounds: int, transport: str, strategy: str) -> dict[str, Any]:
    """Medians in seconds: of a round without evaluation, of the workers' computation and of the strategy in it, of an evaluation; and the
    seconds of the start-up."""
    flat = {**workload_of(workload).flat(root, strategy, transport, rounds), "output-dir": str(root / "runs" / f"{time.time_ns()}")}
    start_time = time.perf_counter()
    code = launch(flat, None, Console(stderr=True), workload)
    total = time.perf_counter() - start_time
    if code:
        raise RuntimeError(f"our leg of {workload} failed")
    lines = read_rounds(run_folder(Path(flat["output-dir"]), resolve(flat)))["attacked"]
    seconds = [line["seconds"] for line in lines]
    in_rounds = sum(part["train"] + part["evaluate"] for part in seconds)
    middle = {name: statistics.median(part[name] for part in seconds) for name in ("train", "compute", "aggregate")}
    return {
        "round": middle["train"],
        "compute": middle["compute"],
        "aggregate": middle["aggregate"],
        "evaluate": statistics.median(line["seconds"]["evaluate"] for line in lines if "accuracy" in line),
        "rounds": rounds,
        "startup": total - in_rounds,
    }


if __name__ == "__main__":
    _, workload_name, folder, count, way, rule = sys.argv
    print(json.dumps(measure(workload_name, Path(folder), int(count), way, rule)))
