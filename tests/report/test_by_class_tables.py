"""The tables of docs/results/dgc2.md hold what the records of runs say, beside the run without an attacker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.benchmarks.by_class import figures, tables
from experiments.cli import main
from tests.support.small_run import ALONE, LEAN, words

STUDY = """
base = "digits"
[set]
"strategy.name" = "mean"
"attack.objective" = "erosion"
"attack.scaling" = "exact"
"attack.stealth-gamma" = inf
"attack.class" = 4
"schedule.triggers" = 0
[axes]
"attack" = ["none", { name = "accumulative", malicious-fraction = 0.25 }]
seed = [1, 2]
[scales.twins]
set = { twin = true }
axes = { "attack" = [{ name = "accumulative", malicious-fraction = 0.25 }], seed = [1] }
"""
SETTINGS = {
    **ALONE,
    **LEAN,
    "model.name": "mlp",
    "data.num-clients": 12,
    "attack.fire": "schedule",
    "schedule.burn-in-epochs": 4,
    "schedule.accumulate-rounds": 6,
    "schedule.recovery-rounds": 0,
    "evaluate.every": 3,
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """The folder with a study that has runs without an attacker, and one whose runs have twins."""
    folder = tmp_path_factory.mktemp("studies")
    study = folder / "erosion_digits.toml"
    study.write_text(STUDY)
    common = ["-o", str(folder / "runs"), "--parallel", "1", "--transport", "inline", "-c", f"data.cache-dir={cache_dir}"]
    settings = {name: value for name, value in SETTINGS.items() if name != "twin"}
    assert main(["sweep", str(study), *common, *words(SETTINGS)]) == 0
    assert main(["sweep", str(study), "--scale", "twins", *common, *words(settings)]) == 0
    return folder / "runs"


def accuracies(studies: Path, study: str, attack: str, seed: int, track: str) -> list[float]:
    """Of each class at the end and, last, of all, read without the product's help."""
    for path in studies.glob(f"{study}/*/rounds.jsonl"):
        config = json.loads((path.parent / "config.json").read_text())
        if (config["attack.name"], config["seed"]) == (attack, seed):
            lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
            counts = next(line["whole_confusion"] for line in lines if (line["track"], line["round"]) == (track, 6))
            total = sum(sum(row) for row in counts)
            return [100 * row[c] / sum(row) for c, row in enumerate(counts)] + [100 * sum(row[c] for c, row in enumerate(counts)) / total]
    raise AssertionError((study, attack, seed))


@pytest.mark.slow
def test_rows_hold_what_an_attack_took_beside_the_run_without_it(studies: Path, tmp_path: Path) -> None:
    assert tables.main([str(studies), "-o", str(tmp_path)]) == 0
    frame = pd.read_csv(tmp_path / "by_class.csv")
    assert len(frame) == 5
    for study, seed, beside in (
        ("erosion_digits", 2, ("erosion_digits", "none", 2, "attacked")),
        ("erosion_digits-twins", 1, ("erosion_digits-twins", "accumulative", 1, "twin")),
    ):
        own, clean = accuracies(studies, study, "accumulative", seed, "attacked"), accuracies(studies, *beside)
        row = frame[(frame["study"] == study) & (frame["seed"] == seed) & (frame["attack"] == "erosion")].squeeze()
        lost = [was - now for was, now in zip(clean[:10], own[:10], strict=True)]
        assert max(lost) > 0.0
        expected = {"all": own[10], "worst": min(own[:10]), "attacked": own[4], "class_7": own[7], "clean_all": clean[10]}
        expected |= {"clean_worst": min(clean[:10]), "clean_attacked": clean[4], "most_lost": max(lost), "malicious": 25.0, "class": 4}
        assert dict(row[list(expected)]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert row["most_lost_class"] == lost.index(max(lost))
    assert frame[frame["attack"] == "none"]["clean_all"].isna().all()


@pytest.mark.slow
def test_the_figure_and_its_table_have_one_line_per_attack(studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main([str(studies), "-o", str(tmp_path)]) == 0
    assert (tmp_path / "by_class.png").stat().st_size > 1000
    rows = list(tables.rows_of(tables.studies_of(studies)))
    assert [[row["seed"] for row in group] for group in tables.groups_of(rows)] == [[1, 2], [1, 2], [1]]
    assert len(tables.markdown(rows).splitlines()) == 2 + 3
    capsys.readouterr()


def test_a_folder_without_such_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main([str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert "was evaluated by class" in capsys.readouterr().err
    assert figures.main([str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert "without an attacker beside it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
