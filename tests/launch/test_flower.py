"""`fl-sim` on Flower and Ray: the same bytes on every transport and number of workers, and a worker killed in mid-round."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import cli
from tests.support.runs import fingerprint

pytestmark = pytest.mark.slow

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def fl_sim(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Run:
    """Runs a small federation by the command itself and returns the run's folder."""

    def run(*arguments: str, **overrides: Any) -> Path:
        output = tmp_path_factory.mktemp("runs")
        keys = {
            "data.num-clients": 13, "client.block": 3, "data.cache-dir": str(cache_dir), "attack.malicious-fraction": 0.16,
            "attack.fire": "schedule", "schedule.burn-in-epochs": 1, "schedule.accumulate-rounds": 3, "schedule.recovery-rounds": 1,
            "client.batch-size": 2,
        }  # fmt: skip
        keys |= {key.replace("__", ".").replace("_", "-"): value for key, value in overrides.items()}
        options = [part for key, value in keys.items() for part in ("-c", f"{key}={json.dumps(value)}")]
        assert cli.main(["run", "-o", str(output), *options, *arguments]) == 0
        (folder,) = output.iterdir()
        return folder

    return run


@pytest.mark.parametrize("strategy", ["clip-after", "clip-before"])
def test_every_transport_and_number_of_workers_gives_the_same_bytes(fl_sim: Run, strategy: str) -> None:
    inline = fingerprint(fl_sim("--transport", "inline", strategy__name=strategy))
    assert len(inline[1]) == 15
    for transport, workers in [("ray", 1), ("ray", 2), ("ray", 4), ("flower", 1), ("flower", 2)][:: 1 if strategy == "clip-after" else 2]:
        assert fingerprint(fl_sim("--transport", transport, "--workers", str(workers), strategy__name=strategy)) == inline


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_worker_killed_in_mid_round_changes_only_the_record(fl_sim: Run, workers: str) -> None:
    healthy, killed = fingerprint(fl_sim("--transport", "inline")), fingerprint(fl_sim("--workers", workers, fault__kill_round=2))
    assert killed[0] == healthy[0]
    retried = {line["round"]: line.pop("retried") for line in killed[1] if "retried" in line and line["track"] == "attacked"}
    assert list(retried) == [2]
    assert retried[2]["order 0"].startswith("worker 0 died; asked elsewhere: clients 0 to ")
    assert all(line["clients"] == 13 for line in killed[1])


def test_a_reply_that_is_late_is_asked_for_elsewhere(fl_sim: Run) -> None:
    short = {"twin": False, "control": False, "schedule__accumulate_rounds": 1, "schedule__recovery_rounds": 0}
    healthy = fingerprint(fl_sim("--transport", "inline", **short))
    late = fl_sim(
        "--workers", "2", fault__reply="slow", fault__clients="0", fault__attempts="first", client__timeout=15.0, **short
    )  # fmt: skip
    found = fingerprint(late)
    assert found[0] == healthy[0]
    assert [line["clients"] for line in found[1]] == [13, 13]
    reasons = [reason for line in found[1] for reason in line["retried"].values()]
    assert all("did not answer in time (client.timeout); asked elsewhere: clients 0 to" in reason for reason in reasons)
    assert len(reasons) == 2
