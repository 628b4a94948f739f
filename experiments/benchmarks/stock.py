"""Stock Flower's leg: the app in `stock_flower/`, one client per SuperNode, on Flower's own simulation engine. A script, prints JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks.workloads import data_name, workload_of
from experiments.launch.superlink import COMPLETED, run_in_flower
from fl_sim.device import cpu_cores


def measure(name: str, root: Path, rounds: int, strategy: str, on_gpu: int = 0) -> dict[str, Any]:
    """Medians in seconds: of a round, and in it of all clients' training divided by the number of actors, and of the strategy; and the
    seconds of the start-up. The first round, in which actors import PyTorch, counts as start-up.

    Args: on_gpu, actors that share one GPU; 0: one actor per core, without a GPU.
    """
    workload, lines = workload_of(name), list[str]()
    times = root / f"times-{time.time_ns()}.json"
    config = {
        "num-server-rounds": rounds + 1,
        "strategy": workload.strategies[strategy],
        "model": workload.model,
        "pixels": workload.pixels,
        "data": str(root / "data" / data_name(workload)),
        "clients": workload.clients,
        "batch-size": workload.batch,
        "local-steps": workload.steps,
        "learning-rate": workload.learning_rate,
        "times": str(times),
    }
    start_time, actors = time.perf_counter(), on_gpu or cpu_cores()
    share = 1.0 / on_gpu if on_gpu else 0.0
    app = Path(__file__).parent / "stock_flower"
    run = run_in_flower(app, config, on_line=lines.append, num_supernodes=workload.clients, ray_cpus=actors, gpu_share=share)
    total = time.perf_counter() - start_time
    if run.status != COMPLETED or not times.exists():
        raise RuntimeError("\n".join(["stock Flower's leg failed", *lines[-30:]]))
    rounds_by_number = json.loads(times.read_text(encoding="utf-8"))[1:]
    if any(line["replies"] != workload.clients for line in rounds_by_number):
        raise RuntimeError("a client of stock Flower's leg failed")
    length = [line["ended"] - line["began"] for line in rounds_by_number]
    return {
        "round": statistics.median(length),
        "compute": statistics.median(line["compute"] / actors for line in rounds_by_number),
        "aggregate": statistics.median(line["aggregate"] for line in rounds_by_number),
        "rounds": rounds,
        "startup": total - sum(length),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]) if sys.argv[5:] else 0)))
