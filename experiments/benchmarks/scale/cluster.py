"""`python -m experiments.benchmarks.scale.cluster`: cells per hour of a sweep by the number of workers, one on each declared node.

The nodes are Ray nodes on this machine, each with its own folder for temporary files. Each cluster first runs one sweep that is not timed:
after it, burn-in and calibration are cached. The time is that of the whole second command, start of the workers included. The numbers of
workers alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tomli_w
from rich.console import Console

from experiments.benchmarks.sweep import W5, command
from fl_sim.atomic_files import write_whole

START_LIMIT = 120.0  # seconds in which `ray start` must end


@contextmanager
def nodes(count: int, folder: Path) -> Generator[str]:
    """A Ray cluster of nodes of one core each. Yields its address. `folder`: of their files, with a short name (sockets lie below it)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1", "--disable-usage-stats"]
    head = ["--head", "--port", str(port), "--node-ip-address", "127.0.0.1", "--include-dashboard", "false", "--temp-dir", str(folder)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(count):
            own = folder / f"node{number}"
            own.mkdir(parents=True)
            words = [*ray, "--object-store-memory", "100000000", *(head if number == 0 else ["--address", f"127.0.0.1:{port}"])]
            environment = {**os.environ, "TMPDIR": str(own), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
            with (own / "log").open("wb") as log:
                processes.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
            _await_start(own / "log")
        yield f"127.0.0.1:{port}"
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(START_LIMIT)
        shutil.rmtree(folder, ignore_errors=True)


def _await_start(log: Path) -> None:
    until = time.monotonic() + START_LIMIT
    while "Ray runtime started" not in log.read_text(encoding="utf-8", errors="replace"):
        if time.monotonic() > until:
            raise RuntimeError(f"Ray did not start within {START_LIMIT:.0f} s:\n{log.read_text(encoding='utf-8', errors='replace')}")
        time.sleep(0.1)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.scale.cluster", description=__doc__)
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--cells", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("-o", "--output-dir", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args(argv)
    root, console = args.output_dir.resolve() / "cluster", Console()
    root.mkdir(parents=True, exist_ok=True)
    rates: dict[int, list[float]] = {count: [] for count in args.workers}
    for repetition in range(args.repetitions):
        for count in args.workers:
            out = root / f"{time.time_ns()}"
            with nodes(count, Path(tempfile.mkdtemp(prefix="fl-sim-", dir="/tmp"))) as address:
                for name, cells in (("first", count), ("timed", args.cells)):
                    spec = root / f"{name}.toml"
                    axes = {"seed": [1], "attack.norm-bound": [1.0 + number for number in range(cells)]}
                    spec.write_text(tomli_w.dumps({"base": "digits", "set": W5, "axes": axes}), encoding="utf-8")
                    where = ("--workers", str(count), "--ray-address", address, "-o", str(out), "-c", f"data.cache-dir={root / 'cache'}")
                    seconds = command("sweep", str(spec), *where)
            if (complete := len(list((out / "timed").rglob("summary.json")))) != args.cells:
                raise RuntimeError(f"expected {args.cells} complete runs, got {complete}")
            rates[count].append(3600.0 * args.cells / seconds)
            console.print(f"repetition {repetition + 1}, {count} workers: {seconds:.1f} s, {rates[count][-1]:.0f} cells per hour")
    write_whole(root / "cluster.json", json.dumps(rates, indent=2) + "\n")
    for count, values in rates.items():
        console.print(f"{count} workers: {statistics.median(values):.0f} cells per hour ({min(values):.0f} to {max(values):.0f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
