"""Files of the user that misbehave in another process: with Ray and with Flower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fl_sim
from experiments import cli
from fl_sim.outside_code import OutsideCodeError
from tests.support.misbehaviour import SMALL
from tests.support.small_run import LEAN, words

SOURCE = """
import os, signal, time
import torch
import fl_sim

def raises(knowledge, state):
    raise ValueError("no idea")

def exits(knowledge, state):
    os._exit(3)

def dies(knowledge, state):
    os.kill(os.getpid(), signal.SIGKILL)

def leaves(knowledge, state):
    raise SystemExit(3)

def sleeps(knowledge, state):
    time.sleep(600)

def forks(knowledge, state):
    os.fork()
    return fl_sim.Action(-knowledge.updates)

def prints(knowledge, state):
    print("x" * 1_000_000)
    return fl_sim.Action(-knowledge.updates)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return str(path)


def run(own: str, name: str, folder: Path, cache_dir: Path, workers: int = 1, **more: Any) -> fl_sim.Run:
    keys = {**SMALL, **LEAN, "data.cache-dir": str(cache_dir), "attack.name": f"{own}:{name}", **more}
    return fl_sim.run("digits", keys, output_dir=folder, transport="ray", workers=workers, progress=False)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(("name", "line"), [("raises", 7), ("exits", 10), ("leaves", 16)])
def test_an_attack_that_raises_in_a_worker_ends_the_run_with_its_line(
    own: str, name: str, line: int, tmp_path: Path, cache_dir: Path
) -> None:
    with pytest.raises(OutsideCodeError) as caught:
        run(own, name, tmp_path, cache_dir)
    assert f"{own}, line {line}: " in str(caught.value).splitlines()[0]
    assert f'File "{own}"' in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_an_attack_that_ends_its_worker_ends_the_run(own: str, tmp_path: Path, cache_dir: Path) -> None:
    with pytest.raises(OutsideCodeError, match=r"two workers died while they ran attack.name = '.*mine.py:dies'"):
        run(own, "dies", tmp_path, cache_dir, workers=2)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_an_attack_that_sleeps_is_left_out_after_the_timeout(own: str, tmp_path: Path, cache_dir: Path) -> None:
    quick = {"client.timeout": 5.0, "schedule.accumulate-rounds": 0}
    summary = run(own, "sleeps", tmp_path, cache_dir, workers=2, **quick).summary
    assert summary.rounds == 2
    assert summary.no_trigger is not None
    assert "did not answer in time (client.timeout)" in summary.no_trigger


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("name", ["forks", "prints"])
def test_a_worker_survives(own: str, name: str, tmp_path: Path, cache_dir: Path) -> None:
    assert run(own, name, tmp_path, cache_dir).summary.trigger_round == 3


@pytest.mark.slow
def test_an_attack_that_raises_in_flower_ends_the_run(
    own: str, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {**SMALL, **LEAN, "data.cache-dir": str(cache_dir), "attack.name": f"{own}:raises"}
    assert cli.main(["run", "digits", *words(keys), "-o", str(tmp_path), "--transport", "flower", "--workers", "1"]) == 1
    assert f"{own}, line 7: ValueError: no idea" in capsys.readouterr().err
