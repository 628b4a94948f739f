"""`python -m experiments.benchmarks.scale.population`: the time of a round and the memory by the size of the population, 1,000 clients a
round."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from experiments.benchmarks.scale.commands import timed_run
from fl_sim.atomic_files import write_whole

POPULATIONS = (1_000, 10_000, 100_000, 1_000_000)
KEYS: Mapping[str, object] = {
    "model.name": "mlp", "data.partition": "resampled", "attack.malicious-fraction": 0.01, "attack.fire": "schedule",
    "schedule.triggers": 0, "schedule.recovery-rounds": 0, "schedule.burn-in-epochs": 2, "twin": False, "control": False,
    "evaluate.every": 1000,
}  # fmt: skip


def measure(clients: int, per_round: int, rounds: int, transport: str, folder: Path) -> dict[str, float]:
    """One run, as `timed_run` measures it."""
    counts = {"data.num-clients": clients, "server.clients-per-round": per_round, "schedule.accumulate-rounds": rounds}
    keys = {**KEYS, **counts, "data.cache-dir": str(folder / "cache")}
    return timed_run("digits", keys, folder / f"{clients}-{transport}", transport)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.scale.population", description=__doc__)
    parser.add_argument("--per-round", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--transports", nargs="+", default=["inline", "ray"])
    parser.add_argument("-o", "--output-dir", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args(argv)
    root, console = args.output_dir.resolve(), Console()
    figures: dict[str, dict[int, list[dict[str, float]]]] = {transport: {} for transport in args.transports}
    for repetition in range(args.repetitions):
        for transport in args.transports:
            for clients in POPULATIONS:
                folder = root / "population" / str(repetition)
                entry = measure(clients, args.per_round, args.rounds, transport, folder)
                figures[transport].setdefault(clients, []).append(entry)
                console.print(f"{transport}, N = {clients:,}: {1000 * entry['round']:.0f} ms, {entry['peak'] / 1e9:.2f} GB")
    write_whole(root / "population.json", json.dumps(figures) + "\n")
    draw(root / "population.png", figures)
    console.print(f"figure: {root / 'population.png'}")
    return 0


def draw(path: Path, figures: Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]]) -> None:
    """The medians over the repetitions, with all of them as dots."""
    figure = Figure(figsize=(7.4, 3.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, unit, scale in zip(panels, ("round", "peak"), ("time of a round (ms)", "memory (GB)"), (1e3, 1e-9), strict=True):
        for transport, colour in zip(figures, ("#0072B2", "#D55E00"), strict=False):
            entries = figures[transport]
            medians = [scale * statistics.median(entry[name] for entry in entries[clients]) for clients in entries]
            axes.plot(list(entries), medians, color=colour, linewidth=1.4, label=transport)
            for clients in entries:
                points = [scale * entry[name] for entry in entries[clients]]
                axes.plot([clients] * len(points), points, color=colour, linestyle="", marker="o", markersize=3.5)
        axes.set(xscale="log", xlabel="clients of the population", ylabel=unit, ylim=(0, None))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    sys.exit(main())
