"""`fl-sim` on Flower and Ray: the same bytes on every transport and number of workers, and a worker killed in mid-round."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import cli
from tests.support.runs import fingerprint
from tests.support.small_run import ALONE, LEAN, words

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_here", "empty_figures")]

STRATEGIES = ("clip-after", "clip-before")
ATTACKED = {**ALONE, **LEAN}  # only the attacked track
SHORT = {**ATTACKED, "schedule.recovery-rounds": 0}  # two rounds

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def keys(cache_dir: Path) -> dict[str, Any]:
    """A small federation whose clients are in five blocks."""
    return {
        "data.num-clients": 13, "client.block": 3, "data.cache-dir": str(cache_dir), "attack.malicious-fraction": 0.16,
        "attack.fire": "schedule", "schedule.burn-in-epochs": 1, "schedule.accumulate-rounds": 1, "schedule.recovery-rounds": 1,
        "client.batch-size": 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def fl_sim(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, Any]) -> Run:
    """Runs the small federation by the command itself, the same one once, and returns the run's folder."""

    @functools.cache
    def run(transport: str, overrides: tuple[tuple[str, Any], ...], workers: int) -> Path:
        output = tmp_path_factory.mktemp("runs")
        many = ["--workers", str(workers)] if workers else []
        assert cli.main(["run", "-o", str(output), "--transport", transport, *many, *words(keys | dict(overrides))]) == 0
        (folder,) = output.iterdir()
        return folder

    return lambda transport, overrides, workers=0: run(transport, tuple(overrides.items()), workers)


@pytest.mark.parametrize(("strategy", "workers"), [("clip-after", 2), ("clip-before", 3)])
def test_every_number_of_ray_workers_gives_the_bytes_of_none(fl_sim: Run, strategy: str, workers: int) -> None:
    """One worker, and two that die: below."""
    inline = fingerprint(fl_sim("inline", {"strategy.name": strategy}))
    assert len(inline[1]) == 9
    assert fingerprint(fl_sim("ray", {"strategy.name": strategy}, workers)) == inline


def test_two_supernodes_give_the_bytes_of_none(fl_sim: Run, keys: dict[str, Any], tmp_path: Path) -> None:
    """Both strategies as cells of one sweep, one after the other, so that Flower is started once."""
    spec = tmp_path / "two.toml"
    spec.write_text(f'base = "digits"\n[axes]\n"strategy.name" = {json.dumps(STRATEGIES)}\n')
    command = ["sweep", str(spec), "-o", str(tmp_path), "--transport", "flower", "--workers", "2", "--parallel", "1"]
    assert cli.main([*command, *words(keys)]) == 0
    inline = {strategy: fl_sim("inline", {"strategy.name": strategy}) for strategy in STRATEGIES}
    for folder in inline.values():
        assert fingerprint(tmp_path / "two" / folder.name.replace("digits-", "two-")) == fingerprint(folder)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_killed_in_mid_round_changes_only_the_record(fl_sim: Run, workers: int) -> None:
    healthy = fingerprint(fl_sim("inline", ATTACKED))
    killed = fingerprint(fl_sim("ray", {**ATTACKED, "fault.kill-round": 2}, workers))
    assert killed[0] == healthy[0]
    retried = {line["round"]: line.pop("retried") for line in killed[1] if "retried" in line}
    assert list(retried) == [2]
    assert retried[2]["order 0"].startswith("worker 0 died; asked elsewhere: clients 0 to ")
    assert killed[1] == healthy[1]


def test_a_worker_killed_in_every_round_changes_only_the_record(fl_sim: Run) -> None:
    healthy = fingerprint(fl_sim("inline", SHORT))
    killed = fingerprint(fl_sim("ray", {**SHORT, "fault.kill-round": -1}, 2))
    assert killed[0] == healthy[0]
    assert ["died" in str(line.pop("retried")) for line in killed[1]] == [True, True]
    assert killed[1] == healthy[1]


def test_a_reply_that_is_late_is_asked_for_elsewhere(fl_sim: Run) -> None:
    one_round = {**SHORT, "schedule.triggers": 0}
    healthy = fingerprint(fl_sim("inline", one_round))
    faults = {"fault.reply": "slow", "fault.clients": "0", "fault.attempts": "first", "client.timeout": 6.0}
    late = fingerprint(fl_sim("ray", {**one_round, **faults}, 2))
    assert late[0] == healthy[0]
    (line,) = late[1]
    assert line["clients"] == 13
    (reason,) = line["retried"].values()
    assert "did not answer in time (client.timeout); asked elsewhere: clients 0 to" in reason
