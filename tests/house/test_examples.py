"""The examples of docs/contributing.md, as a reader would use them: each in a file of a temporary folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import fl_sim
from clients.client_app import answer
from experiments import cli
from experiments.records.folder import read_rounds
from experiments.run.execute import execute_run
from fl_sim.config.resolve import resolve
from fl_sim.grid.transports import InlineTransport
from tests.support.pages import examples
from tests.support.runs import fingerprint, lines
from tests.support.small_run import LEAN

SMALL: Mapping[str, Any] = {
    "data.num-clients": 12,
    "client.block": 4,
    "model.name": "mlp",
    "attack.malicious-fraction": 0.17,
    "attack.fire": "schedule",
    "schedule.burn-in-epochs": 1,
    "schedule.accumulate-rounds": 2,
    "schedule.recovery-rounds": 1,
    "twin": False,
    "control": False,
}
BY_KEY: Mapping[str, tuple[str, dict[str, Any]]] = {  # key of the name: example and its options' key
    "attack.name": ("own_attack.py:noisy_flip", {"attack.options": {"strength": 5}}),
    "strategy.name": ("own_rule.py:trimmed_mean", {"strategy.options": {"share": 0.2}}),
    "attack.objective": ("own_objective.py:margin", {}),
    "model.name": ("own_model.py:WideNet", {"model.options": {"width": 32}}),
    "data.name": ("own_dataset.py:clouds", {"data.options": {"classes": 3}}),
    "data.partition": ("own_partition.py:even_and_odd", {"data.partition-options": {"even_share": 0.3}}),
    "cleaning.name": ("own_cleaning.py:sure_enough", {"cleaning.options": {"least": 0.3}}),
    "tracking": ("own_tracker.py:LowPoints", {}),
}


def silent(track: str, round_: int, phase: str, accuracy: float | None) -> None:
    """Hears of a round."""


@pytest.fixture
def folder(tmp_path: Path, cache_dir: Path) -> Path:
    for name, text in examples("contributing.md").items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_there_is_an_example_for_everything_that_comes_from_outside() -> None:
    assert {name.partition(":")[0] for name, _ in BY_KEY.values()} | {
        "own_rule_with_state.py",
        "own_rule_with_clips.py",
        "own_rule_with_server_data.py",
        "own_attack_with_state.py",
    } == set(examples("contributing.md"))


@pytest.mark.parametrize("key", BY_KEY)
def test_each_example_changes_a_run_and_its_hash(folder: Path, cache_dir: Path, key: str) -> None:
    name, options = BY_KEY[key]
    common = {**SMALL, "data.cache-dir": str(cache_dir)}
    plain = fl_sim.run("digits", common, output_dir=folder, progress=False)
    own = fl_sim.run("digits", {**common, key: str(folder / name), **options}, output_dir=folder, progress=False)
    if key == "tracking":
        assert own.folder == plain.folder, "a tracker changes no result"
        return
    assert own.folder != plain.folder
    assert own.rounds["loss"].tolist() != plain.rounds["loss"].tolist()


def test_a_rule_with_ids_and_state_runs(folder: Path, cache_dir: Path) -> None:
    settings = {**SMALL, "data.cache-dir": str(cache_dir), "strategy.name": str(folder / "own_rule_with_state.py:trusted_mean")}
    assert fl_sim.run("digits", settings, output_dir=folder, progress=False).summary.rounds == 4


def test_a_rule_with_ids_server_data_and_state_goes_on_from_a_checkpoint(folder: Path, cache_dir: Path) -> None:
    """In 20 lines. A run that was interrupted and goes on ends with the lines and the model of one that was not."""
    assert len(examples("contributing.md")["own_rule_with_server_data.py"].splitlines()) <= 20
    name = str(folder / "own_rule_with_server_data.py:credit")
    keys = {"data.cache-dir": str(cache_dir), "strategy.name": name, "attack.malicious-fraction": 0.25, "checkpoint.every": 1}
    config = resolve({**SMALL, **keys, "schedule.accumulate-rounds": 3})

    def interrupt(track: str, round_: int, phase: str, accuracy: float | None) -> None:
        if round_ == 3:
            raise InterruptedError

    whole = execute_run(config, folder / "whole", InlineTransport(answer), silent)
    with pytest.raises(InterruptedError):
        execute_run(config, folder / "cut", InlineTransport(answer), interrupt)
    resumed = execute_run(config, folder / "cut", InlineTransport(answer), silent)
    assert json.loads((resumed / "meta.json").read_text())["sessions"][-1]["resumed_from"]
    assert fingerprint(resumed) == fingerprint(whole)
    rounds = lines(whole)
    assert [line["strategy"]["trusted"] for line in rounds] == [12 - len(line["left_out"]) for line in rounds]
    assert any(line["left_out"] for line in rounds)


def test_a_rule_with_clips_applies_both(folder: Path, cache_dir: Path) -> None:
    settings = {**SMALL, "data.cache-dir": str(cache_dir), "strategy.name": str(folder / "own_rule_with_clips.py:clipped_median")}
    rounds = fl_sim.run("digits", settings, output_dir=folder, progress=False).rounds
    assert (rounds["strategy.applied_norm"] <= 0.5 + 1e-6).all()


def test_an_attack_with_state_gets_what_it_returned(folder: Path, cache_dir: Path) -> None:
    """Its strength is gain times the round, until its patience ends."""
    name = str(folder / "own_attack_with_state.py:impatient")
    options = {"attack.options": {"gain": 0.5, "patience": 2}}
    settings = {**SMALL, "data.cache-dir": str(cache_dir), "attack.name": name, **options, "schedule.accumulate-rounds": 3}
    rounds = fl_sim.run("digits", settings, output_dir=folder, progress=False).rounds
    assert rounds["attack.strength"].tolist()[:4] == [0.5, 1.0, 0.0, 0.0]


@pytest.mark.slow
@pytest.mark.usefixtures("empty_figures")
def test_all_of_them_together_give_the_same_bytes_over_ray_and_inline(
    folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, with names relative to the working directory, as docs/contributing.md has them; and the tracker heard every round."""
    monkeypatch.chdir(folder)
    keys = {**SMALL, **LEAN, "data.cache-dir": str(cache_dir)}
    for key, (name, options) in BY_KEY.items():
        keys |= {key: name, **options} if key not in ("attack.objective", "cleaning.name") else {}  # the data set is one of features
    words = [
        word for key, value in keys.items() for word in ("-c", f"{key}={json.dumps(value) if isinstance(value, dict | bool) else value}")
    ]
    last = []
    for transport in ("inline", "ray"):
        command = ["run", "digits", "--transport", transport, "--workers", "1", "-o", transport, *words]
        if transport == "inline":
            assert cli.main(command) == 0
        else:
            program = [sys.executable, "-m", "experiments", *command]
            done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stderr
        (run,) = (folder / transport).glob("digits-*")
        last.append((run / "final.safetensors").read_bytes())
        assert (run / "low.txt").read_text().splitlines()[0] == "digits"
        assert read_rounds(run)["attacked"][0]["attack"]["sent_norm"] > 0.0
    assert last[0] == last[1]
