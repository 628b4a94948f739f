"""`python -m experiments.benchmarks.gpu`: all that is measured on a GPU, in one command (`make gpu`).

A smoke test; rounds of 100 clients with ten images each, ResNet-18 with group norm, by rule, attack and precision, beside one fused batch
of the same images and stock Flower; with `--papers` then the papers' tables. Writes `gpu.json`, `gpu.md` (the table for
docs/results/performance.md) and `gpu.png`. A leg that fails is written down with its last lines, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

from experiments.benchmarks.gpu.fused import VARIANTS
from experiments.benchmarks.scale.commands import python, timed_run
from experiments.benchmarks.workloads import make_data, workload_of
from experiments.sweep.spec import read_preset
from fl_sim.atomic_files import write_whole

Leg = Callable[[], dict[str, Any]]
Entry = Mapping[str, Any]  # of a leg: its seconds (`round`, `compute`), its `gpu` utilisation, or its `error`
RULES: Mapping[str, Mapping[str, Any]] = {
    "mean, fused": {"strategy.name": "mean"},
    "clip-before, ghost norms": {"strategy.name": "clip-before", "strategy.bound": 1.0},
    "byzfl.TrMean, every update": {"strategy.name": "byzfl.TrMean"},
    "dgc": {"strategy.name": "dgc"},
}
ATTACKS: Mapping[str, Mapping[str, Any]] = {
    "no attack": {"attack.name": "none"},
    "accumulative": {"attack.name": "accumulative", "attack.malicious-fraction": 0.1},
}
PAPERS = ("pang_table3", "pang_table6", "zhu_c10")


def keys_of(args: argparse.Namespace) -> dict[str, Any]:
    """The keys that all legs have."""
    data = {"data.name": "image-folder", "data.root": str(args.data.resolve())} if args.data else {}
    keys = {
        "device": args.device, "data.num-clients": args.clients, "client.batch-size": args.batch, "attack.fire": "schedule",
        "schedule.burn-in-epochs": 1, "schedule.accumulate-rounds": args.rounds - 1, "schedule.recovery-rounds": 0,
        "evaluate.every": args.rounds, "strategy.calibration-rounds": 20, "monitor.action": "none", "twin": False, "control": False,
    }  # fmt: skip
    return {**keys, "data.cache-dir": str(args.output_dir / "cache"), **data}


class Utilisation(threading.Thread):
    """The mean utilisation of the first GPU (percent) while it runs, sampled twice a second by `nvidia-smi`; None without that program."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._samples: list[float] = []
        self._end_event = threading.Event()

    def run(self) -> None:
        if shutil.which("nvidia-smi") is None:
            return
        words = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._end_event.wait(0.5):
            found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30).stdout.strip()
            if found.replace(".", "", 1).isdigit():
                self._samples.append(float(found))

    def end(self) -> float | None:
        self._end_event.set()
        self.join()
        return statistics.fmean(self._samples) if self._samples else None


def legs_of(args: argparse.Namespace) -> dict[str, Leg]:
    """The legs by name: functions that return their figures."""
    root, common = args.output_dir, keys_of(args)
    smoke = {"device": args.device, "schedule.accumulate-rounds": 5, "attack.fire": "schedule"}
    legs: dict[str, Leg] = {
        f"smoke test, {transport}": partial(timed_run, "digits", smoke, root / "smoke" / transport, transport)
        for transport in ("inline", "ray")
    }
    for precision, (rule, rule_keys), (attack, attack_keys) in product(("float32", "bfloat16"), RULES.items(), ATTACKS.items()):
        name, keys = f"{rule} · {attack} · {precision}", {**common, **rule_keys, **attack_keys, "client.precision": precision}
        legs[name] = partial(timed_run, args.preset, keys, root / "runs" / name.replace(" ", "-"))
    flat = json.dumps({**read_preset(args.preset), **common})
    for variant in VARIANTS:
        if "CUDA" not in variant or args.device == "cuda":
            legs[f"one fused batch · {variant}"] = partial(script, "gpu.fused", flat, variant, str(args.rounds))
    if args.stock:
        make_data(workload_of("G1"), root)
        legs[f"stock Flower, {args.stock} actors"] = partial(script, "stock", "G1", str(root), "3", "mean", str(args.stock))
    return legs


def script(module: str, *words: str) -> dict[str, Any]:
    """The figures that one of the benchmarks' scripts prints."""
    return json.loads(python(["-m", f"experiments.benchmarks.{module}", *words]).strip().splitlines()[-1])


def measure(legs: Mapping[str, Leg], root: Path, console: Console) -> dict[str, dict[str, Any]]:
    """The figures of each leg. `gpu.json` is written after each."""
    found: dict[str, dict[str, Any]] = {}
    with Progress(console=console) as progress:
        task = progress.add_task("", total=len(legs))
        for name, leg in legs.items():
            progress.update(task, description=name)
            watch = Utilisation()
            watch.start()
            try:
                found[name] = leg()
            except RuntimeError as error:
                found[name] = {"error": str(error)}
                console.print(f"{name}: {error}", style="red", markup=False)
            found[name]["gpu"] = watch.end()
            write_whole(root / "gpu.json", json.dumps({"machine": machine(), "legs": found}, indent=2) + "\n")
            progress.advance(task)
    return found


def machine() -> dict[str, str]:
    """Which card and which PyTorch."""
    card = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return {"card": card, "torch": torch.__version__, "cuda": str(torch.version.cuda), "date": time.strftime("%Y-%m-%d")}


def table_of(found: Mapping[str, Entry], card: Mapping[str, str]) -> str:
    """The page's table."""
    lines = [f"{card['card']}, torch {card['torch']}, CUDA {card['cuda']}, {card['date']}.", ""]
    lines += ["| | round (ms) | computation (ms) | rounds/s | utilisation of the GPU |", "| --- | --- | --- | --- | --- |"]
    for name, entry in found.items():
        if "error" in entry:
            lines.append(f"| {name} | failed: {' '.join(entry['error'].split())} | | | |")
            continue
        compute, gpu = entry.get("compute"), entry.get("gpu")
        cells = [f"{1000 * entry['round']:.1f}", "" if compute is None else f"{1000 * compute:.1f}", f"{1 / entry['round']:.1f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {'' if gpu is None else f'{gpu:.0f} %'} |")
    return "\n".join(lines) + "\n"


def draw(path: Path, found: Mapping[str, Entry], card: str) -> None:
    """A bar for the round of each leg."""
    rounds = {name: 1000 * entry["round"] for name, entry in found.items() if "round" in entry}
    figure = Figure(figsize=(7.0, 0.6 + 0.22 * len(rounds)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(list(rounds), list(rounds.values()), color="#0072B2")
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="time of a round (ms)", title=card)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)


def papers(args: argparse.Namespace, console: Console) -> list[str]:
    """Run the papers' studies, one after the other; each can be gone on with by the same command. Returns those that failed."""
    data = ["-c", "data.name=image-folder", "-c", f"data.root={args.data.resolve()}"] if args.data else []
    failed: list[str] = []
    for study in PAPERS:
        console.print(f"fl-sim sweep {study}")
        words = [sys.executable, "-m", "experiments", "sweep", study, "-o", str(args.output_dir / "papers"), *data]
        if subprocess.run(words, check=False).returncode:
            failed.append(study)
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.gpu", description=__doc__)
    parser.add_argument("--data", type=Path, help="CIFAR-10 as image files (ROOT/train/CLASS/*); without it, as torchvision stores it")
    parser.add_argument("--preset", default="cifar10-resnet18")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try the command, not to measure")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--batch", type=int, default=10, help="images per client")
    parser.add_argument("--rounds", type=int, default=20, help="of each leg, at least 4")
    parser.add_argument("--stock", type=int, default=10, help="actors of stock Flower that share the GPU; 0: leave it out")
    parser.add_argument("--papers", action="store_true", help="then the papers' tables, which take hours")
    parser.add_argument("-o", "--output-dir", type=Path, default=Path("runs/gpu"))
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        found = f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
        parser.error(f"expected a GPU that PyTorch can use, got none ({found}); --device cpu tries the command")
    if args.rounds < 4:
        parser.error(f"expected --rounds of at least 4, got {args.rounds}")
    args.output_dir = args.output_dir.resolve()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    console = Console()
    found = measure(legs_of(args), args.output_dir, console)
    table = table_of(found, machine())
    write_whole(args.output_dir / "gpu.md", table)
    draw(args.output_dir / "gpu.png", found, machine()["card"])
    console.print(table, markup=False, soft_wrap=True)
    console.print(f"records: {args.output_dir / 'gpu.json'}\nfigure:  {args.output_dir / 'gpu.png'}")
    if args.papers and (failed := papers(args, console)):
        console.print(f"failed: {', '.join(failed)}", style="red")
        return 1
    return 1 if all("error" in entry for entry in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
