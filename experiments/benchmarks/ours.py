"""Our leg: a run through the product's own way in, and its times from the records."""

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
    """Medians a round in seconds: the whole without evaluation, the workers' computing, the strategy; an evaluation; the start-up."""
    flat = {**workload_of(workload).flat(root, strategy, transport, rounds), "output-dir": str(root / "runs" / f"{time.time_ns()}")}
    began = time.perf_counter()
    code = launch(flat, None, Console(stderr=True), workload)
    total = time.perf_counter() - began
    if code:
        raise RuntimeError(f"our leg of {workload} failed")
    lines = read_rounds(run_folder(Path(flat["output-dir"]), resolve(flat)))["attacked"]
    seconds = [line["seconds"] for line in lines]
    spent = sum(part["train"] + part["evaluate"] for part in seconds)
    middle = {name: statistics.median(part[name] for part in seconds) for name in ("train", "compute", "aggregate")}
    return {
        "round": middle["train"],
        "compute": middle["compute"],
        "aggregate": middle["aggregate"],
        "evaluate": statistics.median(line["seconds"]["evaluate"] for line in lines if "accuracy" in line),
        "rounds": rounds,
        "startup": total - spent,
    }


if __name__ == "__main__":
    _, chosen, folder, count, way, rule = sys.argv
    print(json.dumps(measure(chosen, Path(folder), int(count), way, rule)))
