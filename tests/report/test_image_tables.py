"""The tables of docs/results/images.md hold what the records of runs say, and the pull of images is the slope of the class's loss."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import fl_sim
from clients.images.moles import Pair
from experiments.benchmarks.images import pull, tables
from experiments.cli import main
from fl_sim.data.federation import load_federation
from tests.support.small_run import ALONE, LEAN, words

STUDY = """
base = "digits"
[set]
"attack.name" = "moles"
"attack.attacked" = 4
"attack.confounding" = 6
"schedule.triggers" = 0
[axes]
"strategy" = ["mean", { name = "clip-before", bound = 0.5 }]
seed = [1, 2]
[scales.clean]
set = { "attack.name" = "none" }
axes = { seed = [1, 2] }
"""
SETTINGS = {
    **ALONE,
    **LEAN,
    "model.name": "mlp",
    "data.num-clients": 12,
    "attack.malicious-fraction": 0.25,
    "schedule.burn-in-epochs": 4,
    "schedule.accumulate-rounds": 14,
    "schedule.recovery-rounds": 4,
    "evaluate.every": 2,
    "evaluate.by-class": True,
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """The folder with a study of moles and with its clean runs."""
    folder = tmp_path_factory.mktemp("studies")
    study = folder / "moles_digits.toml"
    study.write_text(STUDY)
    out = folder / "runs"
    for scale in ([], ["--scale", "clean"]):
        line = [
            "sweep",
            str(study),
            *scale,
            "-o",
            str(out),
            "--parallel",
            "1",
            "--transport",
            "inline",
            "-c",
            f"data.cache-dir={cache_dir}",
        ]
        assert main([*line, *words(SETTINGS)]) == 0
    return out


def records(studies: Path, study: str, seed: int, strategy: str) -> list[dict[str, Any]]:
    """The lines of one run, read without the product's help."""
    for path in studies.glob(f"{study}/*/rounds.jsonl"):
        config = json.loads((path.parent / "config.json").read_text())
        if (config["seed"], config["strategy.name"]) == (seed, strategy):
            return [json.loads(line) for line in path.read_text().splitlines()]
    raise AssertionError((study, seed, strategy))


@pytest.mark.slow
def test_the_rows_of_moles_are_those_of_the_records(studies: Path, tmp_path: Path) -> None:
    assert tables.main([str(studies), "-o", str(tmp_path)]) == 0
    frame = pd.read_csv(tmp_path / "moles.csv")
    assert len(frame) == 8
    row = frame[(frame["study"] == "moles_digits") & (frame["seed"] == 2) & frame["strategy"].str.startswith("clip-before")].squeeze()
    for prefix, study in (("", "moles_digits"), ("clean_", "moles_digits-clean")):
        lines = records(studies, study, 2, "clip-before")
        last = [line for line in lines if line["phase"] == "accumulate" and line["round"] in (6, 8, 10, 12, 14)]
        by_class = [fmean(line["by_class"][label] for line in last) for label in range(10)]
        assert row[f"{prefix}attacked"] == pytest.approx(by_class[4], rel=1e-4)
        assert row[f"{prefix}confounding"] == pytest.approx(by_class[6], rel=1e-4)
        assert row[f"{prefix}rest"] == pytest.approx(fmean(by_class[label] for label in (0, 1, 2, 3, 5, 7, 8, 9)), rel=1e-4)
        assert row[f"{prefix}total"] == pytest.approx(fmean(line["accuracy"] for line in last), rel=1e-4)
    attacked, clean = records(studies, "moles_digits", 2, "clip-before"), row["clean_attacked"]
    near = [line["round"] - 14 for line in attacked if line["round"] > 14 and line.get("by_class", [0] * 10)[4] >= clean - 5.0]
    assert row["recovered"] == near[0] if near else pd.isna(row["recovered"])


@pytest.mark.slow
def test_the_pull_of_images_is_the_slope_of_the_loss(studies: Path) -> None:
    """By a step along what the images' gradients add up to, in float64."""
    (folder,) = {path.parent for path in studies.glob("moles_digits-clean/*/config.json") if chosen(path)}
    rows = pull.pulls(folder, Pair(4, 6), members=10)
    test = load_federation(fl_sim.open_study(folder).runs[0].config).test()
    module = fl_sim.load_model(folder).double()
    start = {name: values.detach() for name, values in module.named_parameters()}
    half = len(test.labels) // 2

    def loss(parameters: dict[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(module, parameters, (images,)), labels)

    attacked = test.labels[half:] == 4
    of_class = (test.inputs[half:][attacked].double(), test.labels[half:][attacked])
    for row in rows:
        bound, step = float(row["bound"]), {name: torch.zeros_like(values) for name, values in start.items()}
        for image, label in zip(test.inputs[:half].double(), test.labels[:half], strict=True):
            gradient = torch.func.grad(loss)(start, image[None], label[None])
            norm = torch.sqrt(sum((values.square().sum() for values in gradient.values()), start=torch.zeros((), dtype=torch.float64)))
            share = 0.9 / half * min(1.0, bound / float(norm))
            step = {name: step[name] + share * values for name, values in gradient.items()}
        tiny = 1e-5
        ahead, behind = ({name: start[name] + sign * tiny * step[name] for name in start} for sign in (-1.0, 1.0))
        slope = float(loss(behind, *of_class) - loss(ahead, *of_class)) / (2.0 * tiny)
        assert row["honest"] == pytest.approx(slope, rel=1e-3, abs=1e-6)


def chosen(path: Path) -> bool:
    config = json.loads(path.read_text())
    return config["seed"] == 1 and config["strategy.name"] == "mean"


def test_a_spread_says_how_many_never() -> None:
    assert tables.spread(pd.Series([4.0, None, 8.0])) == "6.0 (4.0 to 8.0) (1 never)"
    assert tables.spread(pd.Series([True, False, True])) == "2 of 3"
    assert tables.spread(pd.Series([None, None])) == "-"
