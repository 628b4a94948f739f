"""`python -m experiments.benchmarks.soak`: a long run under attack, to see whether memory and the time per round stay constant."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from experiments.benchmarks.scale.memory import Sample, Watch
from experiments.launch.launch import launch
from experiments.launch.preflight import checked
from experiments.records.folder import read_rounds, run_folder
from fl_sim.atomic_files import write_whole

PART = 200  # rounds at the beginning and at the end that are compared
WARM_UP = 20  # rounds before the first part


def growth(seconds: Sequence[float], samples: Sequence[Sample]) -> dict[str, float]:
    """The growth of a run's time per round and of its memory. Args: seconds, of each round; samples, of the memory.

    Time: the median of the last `PART` rounds over that of the first `PART` after the warm-up. Memory: the median of the last `PART`
    rounds, and the maximum, over the median of the second `PART` rounds.
    """
    rounds = len(seconds)
    first, last = seconds[WARM_UP : WARM_UP + PART], seconds[-PART:]
    figures = {"seconds first": statistics.median(first), "seconds last": statistics.median(last)}
    figures["seconds ratio"] = figures["seconds last"] / figures["seconds first"]
    for kind in ("rss", "pss"):
        by_round = [(sample.at, getattr(sample, kind)) for sample in samples if PART <= sample.at < rounds]
        before = statistics.median(size for at, size in by_round if at < 2 * PART)
        after = statistics.median(size for at, size in by_round if at >= rounds - PART)
        figures |= {f"{kind} then": before, f"{kind} last": after, f"{kind} ratio": after / before}
        figures[f"{kind} largest ratio"] = max(size for _, size in by_round) / before
    return figures


def soak_figure(path: Path, seconds: Sequence[float], samples: Sequence[Sample], title: str) -> None:
    """A figure of milliseconds per round, and of memory, over the rounds."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    time_axes, memory_axes = figure.subplots(2, 1, sharex=True)
    time_axes.plot(range(1, len(seconds) + 1), [value * 1e3 for value in seconds], ".", color="#0072B2", markersize=1.5)
    time_axes.set(ylabel="ms per round", title=title, ylim=(0, 3e3 * statistics.median(seconds)))
    in_rounds = [sample for sample in samples if 0 < sample.at < len(seconds)]
    for kind, colour, label in (("rss", "#D55E00", "resident, summed (RSS)"), ("pss", "#009E73", "shared pages once (PSS)")):
        sizes = [getattr(sample, kind) / 1e9 for sample in in_rounds]
        memory_axes.plot([sample.at for sample in in_rounds], sizes, color=colour, linewidth=1.3, label=label)
    memory_axes.set(xlabel="round", ylabel="memory of all processes (GB)", ylim=(0, None))
    memory_axes.legend(frameon=False)
    for axes in (time_axes, memory_axes):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000, help=f"at least {3 * PART}")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--strategy", default="mean")
    parser.add_argument("--transport", choices=("ray", "inline"), default="ray")
    parser.add_argument("-o", "--output-dir", type=Path, default=Path("runs/soak"))
    args = parser.parse_args(argv)
    console, root = Console(stderr=True), args.output_dir.resolve()
    if args.rounds < 3 * PART:
        parser.error(f"expected --rounds >= {3 * PART}, got {args.rounds}")
    flat: dict[str, Any] = {
        "name": "soak",
        "output-dir": str(root),
        "grid.transport": args.transport,
        "data.num-clients": args.clients,
        "strategy.name": args.strategy,
        "attack.fire": "schedule",
        "schedule.accumulate-rounds": args.rounds - 1,
        "schedule.recovery-rounds": 0,
        "evaluate.every": 10,
        "twin": False,
        "control": False,
    }
    (config,) = checked([flat], console)
    folder = run_folder(root, config)
    if folder.exists():
        parser.error(f"expected -o to be without this run, got {str(folder)!r}: memory is watched from the beginning")
    lines = folder / "rounds.jsonl"
    watch = Watch(lambda: lines.read_bytes().count(b"\n") if lines.exists() else 0)
    watch.start()
    code = launch(flat, None, console, f"{args.rounds} rounds of {args.clients} clients")
    watch.end()
    if code:
        return code
    seconds = [line["seconds"]["train"] for line in read_rounds(folder)["attacked"]]
    figures = growth(seconds, watch.samples)
    record = {**figures, "rounds": args.rounds, "clients": args.clients, "strategy": args.strategy, "transport": args.transport}
    write_whole(root / "soak.json", json.dumps(record, indent=2) + "\n")
    soak_figure(root / "soak.png", seconds, watch.samples, f"{args.rounds} rounds of {args.clients} clients under attack, {args.strategy}")
    console.print(f"a round: {figures['seconds first'] * 1e3:.1f} ms, at the end {100 * (figures['seconds ratio'] - 1):+.1f} %")
    for kind in ("rss", "pss"):
        last, largest = (100 * (figures[f"{kind} {which}ratio"] - 1) for which in ("", "largest "))
        console.print(f"{kind.upper()}: {figures[f'{kind} then'] / 1e9:.2f} GB, at the end {last:+.1f} %, at most {largest:+.1f} %")
    console.print(f"figure: {root / 'soak.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
