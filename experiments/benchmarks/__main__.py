"""`python -m experiments.benchmarks`: times the legs of each workload in turn, one process per leg; a table, a figure, benchmark.json."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from experiments.benchmarks.figure import curve_figure
from experiments.benchmarks.workloads import CURVE, WORKLOADS, Workload, data_name, make_data, workload_of
from experiments.records.folder import plain
from fl_sim.atomic_files import write_whole

Leg = tuple[str, list[str]]  # name; module and its arguments


def legs_of(workload: Workload, root: Path, prefixes: Sequence[str]) -> list[Leg]:
    """The legs of a workload whose names begin with one of the prefixes, in the order of one repetition."""
    data = str(root / "data" / data_name(workload))
    legs: list[Leg] = []
    for strategy, theirs in workload.strategies.items():
        for transport in ("ray", "inline"):
            rounds = str(workload.rounds["ours"])
            legs.append((f"ours {transport} · {strategy}", ["ours", workload.name, str(root), rounds, transport, strategy]))
        if "stock" in workload.rounds and f"stock · {theirs}" not in dict(legs):
            legs.append((f"stock · {theirs}", ["stock", workload.name, str(root), str(workload.rounds["stock"]), strategy]))
    if "loop" in workload.rounds:
        legs.append(("loop", ["loop", workload.name, data, str(workload.rounds["loop"])]))
    if "pfl" in workload.rounds and importlib.util.find_spec("pfl"):
        legs.append(("pfl", ["pfl_leg", workload.name, data, str(workload.rounds["pfl"])]))
    legs.append(("floor", ["floor", workload.name, str(workload.rounds["ours"])]))
    return [leg for leg in legs if any(leg[0].startswith(name) for name in prefixes)]


def run_leg(arguments: Sequence[str]) -> dict[str, Any]:
    """The times of one leg, which runs in a process of its own. Raises RuntimeError with its last lines if it fails."""
    module, *rest = arguments
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}
    line = [sys.executable, "-m", f"experiments.benchmarks.{module}", *rest]
    process = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError("\n".join([f"{' '.join(line)} failed", *process.stderr.splitlines()[-20:]]))
    return json.loads(process.stdout.strip().splitlines()[-1])


def measure(names: Sequence[str], root: Path, repeats: int, prefixes: Sequence[str], console: Console) -> dict[str, dict[str, list[Any]]]:
    """The times by workload and leg, one entry per repetition. `benchmark.json` is written after each leg."""
    plan = [(workload_of(name), repeat) for name in names for repeat in range(repeats)]
    times: dict[str, dict[str, list[Any]]] = {}
    with Progress(console=console) as progress:
        task = progress.add_task("", total=sum(len(legs_of(workload, root, prefixes)) for workload, _ in plan))
        for workload, _ in plan:
            make_data(workload, root)
            for name, arguments in legs_of(workload, root, prefixes):
                progress.update(task, description=f"{workload.name} · {name}")
                times.setdefault(workload.name, {}).setdefault(name, []).append(run_leg(arguments))
                write_record(root, times)
                progress.advance(task)
    return times


def write_record(root: Path, times: Mapping[str, Any]) -> None:
    """Write `benchmark.json`: the times, and on which machine and with which versions they were measured."""
    versions = {package: version(package) for package in ("flwr", "ray", "torch", "numpy")}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    record = {"machine": machine, "versions": versions, "seconds": times}
    write_whole(root / "benchmark.json", json.dumps(plain(record), indent=2) + "\n")


def middle(entries: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The median over repetitions."""
    values = [entry[key] for entry in entries if entry.get(key) is not None]
    return statistics.median(values) if values else None


def table_of(name: str, legs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Milliseconds per round without evaluation, and their parts: `messages` is the rest beside computation and strategy."""
    table = Table(title=f"{name}: {workload_of(name).title}", title_justify="left")
    table.add_column("")
    parts = ("compute", "strategy", "messages", "evaluation")
    for column in ("round (ms)", "least to most", "rounds/s", *(f"{part} (ms)" for part in parts), "start-up (s)"):
        table.add_column(column, justify="right")
    for leg, entries in legs.items():
        rounds = [entry["round"] * 1000 for entry in entries]
        middle_round, compute, aggregate, evaluation, startup = (
            middle(entries, key) for key in ("round", "compute", "aggregate", "evaluate", "startup")
        )
        assert middle_round is not None
        messages = None if compute is None else max(0.0, middle_round - compute - (aggregate or 0.0))
        table.add_row(
            leg,
            f"{middle_round * 1000:.1f}",
            f"{min(rounds):.1f} to {max(rounds):.1f}",
            f"{1 / middle_round:.1f}",
            *("-" if value is None else f"{value * 1000:.1f}" for value in (compute, aggregate, messages, evaluation)),
            f"{startup:.1f}",
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", default=["W1", "W2", "W3", "W4"], help=f"of {', '.join([*WORKLOADS, 'curve'])}")
    parser.add_argument("--repeats", type=int, default=3, help="of every leg, alternating")
    parser.add_argument("--only", default="ours,stock,loop,pfl,floor", help="legs by the beginning of their names")
    parser.add_argument("-o", "--output-dir", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args(argv)
    console, root = Console(), args.output_dir.resolve()
    unknown = sorted(set(args.workloads) - {*WORKLOADS, "curve"})
    if unknown:
        parser.error(f"expected workloads of {', '.join([*WORKLOADS, 'curve'])}, got {', '.join(unknown)}")
    names = [name for choice in args.workloads for name in (CURVE if choice == "curve" else [choice])]
    root.mkdir(parents=True, exist_ok=True)
    times = measure(names, root, args.repeats, args.only.split(","), console)
    for name, legs in times.items():
        console.print(table_of(name, legs))
    console.print(f"records: {root / 'benchmark.json'}")
    if "curve" in args.workloads:
        curve_figure(root / "clients.png", {workload_of(name).clients: times[name] for name in CURVE})
        console.print(f"figure:  {root / 'clients.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
