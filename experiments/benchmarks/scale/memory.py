"""`python -m experiments.benchmarks.scale.memory`: the most memory that a run of 1,000 clients of ResNet-18 under `clip-before` takes."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from matplotlib.figure import Figure
from rich.console import Console

from experiments.benchmarks.ours import measure
from experiments.benchmarks.workloads import make_data, workload_of
from fl_sim.atomic_files import write_whole


class Sample(NamedTuple):
    """seconds: since the watch began; pss: bytes of memory with shared pages counted once; rss: with shared pages counted per process; at:
    the value of the watch's `at`."""

    seconds: float
    pss: int
    rss: int
    at: int


class Watch(threading.Thread):
    """Samples the resident memory of this process and all its descendants, twice per second. `at`: returns how far the work is."""

    def __init__(self, at: Callable[[], int] = lambda: 0) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._at, self._end_event = at, threading.Event()

    def run(self) -> None:
        me, start_time = psutil.Process(), time.perf_counter()
        while not self._end_event.wait(0.5):
            pss = rss = 0
            for process in [me, *me.children(recursive=True)]:
                with suppress(psutil.Error):
                    memory = process.memory_full_info()
                    pss, rss = pss + memory.pss, rss + memory.rss
            self.samples.append(Sample(time.perf_counter() - start_time, pss, rss, self._at()))

    def end(self) -> None:
        self._end_event.set()
        self.join()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.scale.memory", description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("-o", "--output-dir", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args(argv)
    root, name = args.output_dir.resolve(), f"W4x{args.clients}"
    make_data(workload_of(name), root)
    watch, console = Watch(), Console()
    watch.start()
    times = measure(name, root, args.rounds, "ray", "clip-before 1")
    watch.end()
    peak = max(sample.pss for sample in watch.samples)
    write_whole(root / "memory.json", json.dumps({**times, "peak": peak, "samples": watch.samples}) + "\n")
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([sample.seconds for sample in watch.samples], [sample.pss / 1e9 for sample in watch.samples], color="#0072B2", linewidth=1.3)
    axes.set(xlabel="seconds", ylabel="memory of all processes (GB)", title=workload_of(name).title, ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(root / "memory.png", dpi=160)
    console.print(f"peak {peak / 1e9:.2f} GB, {times['round']:.1f} s per round; figure: {root / 'memory.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
