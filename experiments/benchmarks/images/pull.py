"""`python -m experiments.benchmarks.images.pull RUN...`: what a round of moles and honest clients does to the loss of the attacked class.

The update of an image is its gradient g. A step along it lowers the loss of class a in proportion to `<g, G_a>`, G_a the gradient of the
mean loss of class a: its *pull*. Each image counts with `min(1, bound / |g|)`. The models are those that runs of one honest image a client
and one step left (`final.safetensors`); honest images are from the first half of the test set, moles and G_a from the second.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fl_sim
from clients.images.moles import Pair, choose
from experiments.report.figures.style import PAGE, drawn
from fl_sim.atomic_files import write_whole
from fl_sim.config.keys import Config
from fl_sim.data.batches import Batch
from fl_sim.data.federation import load_federation
from fl_sim.model.flat_model import FlatModel

BOUNDS = (float("inf"), 1.0, 0.3, 0.1)
HONEST = 2000  # images
CHUNK = 100


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.images.pull",
        description="What a round of moles and honest clients does to the attacked class.",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--pair", type=int, nargs=2, default=(4, 6), metavar=("A", "C"), help="attacked and confounding class")
    parser.add_argument("--members", type=int, default=10, help="moles in a round of 100 images")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/pull"))
    arguments = parser.parse_args(argv)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for place, folder in enumerate(arguments.runs, start=1):
        print(f"{place} of {len(arguments.runs)}: {folder}", flush=True)
        rows.extend({"run": folder.name, **row} for row in pulls(folder, Pair(*arguments.pair), arguments.members))
    write_whole(arguments.output.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")
    print(_table(rows))
    _draw(rows, arguments.output)
    return 0


def pulls(folder: Path, pair: Pair, members: int) -> list[dict[str, Any]]:
    """One row per bound, for the model that a run left: `moles`, `honest`, and of the latter `own` (class a), `confounding` and `others`:
    the fall of the loss of class a (nats, to first order) in a round of 100 images at learning rate 1, of `members` moles and 100 - members
    honest images; `clipped`, the shares of images above the bound; the quantiles of their norms; `accuracy` of class a (percent)."""
    config: Config = fl_sim.open_study(folder).runs[0].config
    test, module = load_federation(config).test(), fl_sim.load_model(folder)
    model = FlatModel(module, torch.zeros(0))
    theta = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    half = len(test.labels) // 2
    honest, rest = Batch(*(values[: min(HONEST, half)] for values in test)), Batch(*(values[half:] for values in test))
    with torch.no_grad():
        probabilities = F.softmax(torch.cat([module(part) for part in rest.inputs.split(200)]), dim=1)
    of_class = rest.labels == pair.confounding
    moles = Batch(*(values[of_class] for values in rest))
    moles = Batch(*(values[choose(probabilities[of_class], pair, "moles", 0)] for values in moles))
    attacked = rest.labels == pair.attacked
    direction = model.gradient(theta, rest.inputs[attacked], rest.labels[attacked])
    accuracy = 100.0 * (probabilities[attacked].argmax(dim=1) == pair.attacked).double().mean()
    (norms, pull), (mole_norms, mole_pull) = (_norms_and_pulls(model, theta, images, direction) for images in (honest, moles))
    kinds = {"own": honest.labels == pair.attacked, "confounding": honest.labels == pair.confounding}
    kinds["others"] = ~(kinds["own"] | kinds["confounding"])
    rows: list[dict[str, Any]] = []
    for bound in BOUNDS:
        counted = pull * (bound / norms).clamp(max=1.0)
        row: dict[str, Any] = {"bound": str(bound), "accuracy": float(accuracy), "images": len(moles.labels)}
        row["moles"] = members / 100.0 * float((mole_pull * (bound / mole_norms).clamp(max=1.0)).mean())
        row |= {name: (100 - members) / 100.0 * float((counted * places).mean()) for name, places in kinds.items()}
        row["honest"] = row["own"] + row["confounding"] + row["others"]
        row["clipped"] = {"honest": float((norms > bound).double().mean()), "moles": float((mole_norms > bound).double().mean())}
        rows.append(row)
    for name, lengths in (("honest_norm", norms), ("mole_norm", mole_norms), ("own_norm", norms[kinds["own"]])):
        rows[0][name] = [float(value) for value in torch.quantile(lengths, torch.tensor([0.5, 0.9]))] + [float(lengths.mean())]
    return rows


def _norms_and_pulls(model: FlatModel, theta: Tensor, images: Batch, direction: Tensor) -> tuple[Tensor, Tensor]:
    """|g| (e,) and `<g, direction>` (e,) of each image's gradient g."""
    norms: list[Tensor] = []
    pull: list[Tensor] = []
    for inputs, labels in zip(images.inputs.split(CHUNK), images.labels.split(CHUNK), strict=True):
        rows = model.gradients(theta, inputs[:, None], labels[:, None], torch.ones_like(labels, dtype=inputs.dtype)[:, None])
        norms.append(torch.linalg.vector_norm(rows, dim=1))
        pull.append(rows @ direction)
    return torch.cat(norms), torch.cat(pull)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = f"{'run':40} bound  class a    moles   honest      own confound.   others  clipped: honest, moles"
    lines = [
        f"{row['run'][:40]:40} {row['bound']:>5} {row['accuracy']:8.1f} {row['moles']:8.4f} {row['honest']:8.4f} {row['own']:8.4f} "
        f"{row['confounding']:9.4f} {row['others']:8.4f} {row['clipped']['honest']:11.2f} {row['clipped']['moles']:10.2f}"
        for row in rows
    ]
    norms = [
        f"{row['run'][:40]:40} norms, median, 90 % quantile, mean: "
        + ", ".join(f"{name} " + " ".join(f"{value:.3f}" for value in row[f"{name}_norm"]) for name in ("honest", "own", "mole"))
        for row in rows
        if "honest_norm" in row
    ]
    return "\n".join([head, *lines, *norms])


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The pulls of moles and of honest images of class a and of the others, as shares of their sum of sizes, by bound: mean over runs."""
    with drawn(path, PAGE / 2, 2.2) as figure:
        axes = figure.subplots()
        for place, bound in enumerate(map(str, BOUNDS)):
            here = [row for row in rows if row["bound"] == bound]
            for shift, name, colour in ((-0.25, "moles", "#D55E00"), (0.0, "own", "#0072B2"), (0.25, "rest", "#999999")):
                values = [row["confounding"] + row["others"] if name == "rest" else row[name] for row in here]
                sizes = [abs(row["moles"]) + abs(row["own"]) + abs(row["confounding"] + row["others"]) for row in here]
                share = sum(value / size for value, size in zip(values, sizes, strict=True)) / len(here)
                label = {"moles": "moles", "own": "honest images of the class", "rest": "other honest images"}[name]
                axes.bar(place + shift, share, 0.22, color=colour, label=label if place == 0 else None)
        axes.axhline(0.0, color="black", linewidth=0.6)
        axes.set_xticks(range(len(BOUNDS)), ["no clip" if bound == float("inf") else f"{bound:g}" for bound in BOUNDS])
        axes.set(xlabel="bound of the clip per client", ylabel="pull on the class's loss (share)")
        axes.legend()


if __name__ == "__main__":
    sys.exit(main())
