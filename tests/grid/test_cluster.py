"""A Ray cluster of two nodes on this machine: the run joins it, loses a node in the middle, and ends with the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from experiments import cli
from tests.support.runs import fingerprint
from tests.support.small_run import ALONE, LEAN

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("empty_figures")]

RAY = [
    sys.executable,
    "-m",
    "ray.scripts.scripts",
    "start",
    "--num-cpus",
    "1",
    "--disable-usage-stats",
    "--object-store-memory",
    "100000000",
]


class Cluster:
    """A head and a second node; only what they started is ended."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.folder = folder
        self._mine: list[psutil.Process] = []
        # A node that refuses connections counts as lost after 5 checks; Ray asks it every 3 s.
        quick = {"RAY_health_check_period_ms": "500", "RAY_health_check_initial_delay_ms": "500"}
        environment = {**os.environ, **quick, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        head = [
            "--head",
            "--port",
            str(self.port),
            "--node-ip-address",
            "127.0.0.1",
            "--include-dashboard",
            "false",
            "--temp-dir",
            str(folder),
        ]
        self.head = self._start([*RAY, *head], environment)
        self.second = self._start([*RAY, "--address", f"127.0.0.1:{self.port}"], environment)

    def _start(self, command: list[str], environment: dict[str, str]) -> list[psutil.Process]:
        before = {process.pid for process in psutil.process_iter()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        started = [
            process
            for process in psutil.process_iter(["cmdline"])
            if process.pid not in before
            and any(mark in part for part in process.info["cmdline"] or [] for mark in (str(self.folder), str(self.port)))
        ]
        self._mine += started
        return started

    def kill_second(self) -> None:
        """As when a machine is gone: everything that ran on it, its workers too."""
        for process in self.second:
            for child in [*process.children(recursive=True), process]:
                child.send_signal(signal.SIGKILL)

    def end(self) -> None:
        for process in self._mine:
            for child in [*process.children(recursive=True), process] if process.is_running() else []:
                child.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(Path("/tmp") / f"fl-sim-cluster-{os.getpid()}")  # a short path: Ray's sockets are below it
    yield made
    made.end()


def test_a_node_that_is_lost_changes_only_the_record(
    cluster: Cluster, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {
        "data.num-clients": 13, "client.block": 3, "data.cache-dir": str(cache_dir), "attack.malicious-fraction": 0.16, "attack.fire": "schedule",
        "schedule.burn-in-epochs": 1, "schedule.accumulate-rounds": 100, "schedule.recovery-rounds": 1, "client.batch-size": 2, "model.name": "mlp",
        "evaluate.every": 50, **ALONE, **LEAN,
    }  # fmt: skip
    options = [part for key, value in keys.items() for part in ("-c", f"{key}={json.dumps(value)}")]
    assert cli.main(["run", "-o", str(tmp_path / "inline"), "--transport", "inline", *options]) == 0
    monkeypatch.setenv("RAY_ADDRESS", "")  # brought back afterwards
    killed = threading.Event()

    def kill_in_mid_run() -> None:
        while not list((tmp_path / "cluster").glob("*/rounds.jsonl")):
            time.sleep(0.05)
        (rounds,) = (tmp_path / "cluster").glob("*/rounds.jsonl")
        while rounds.read_bytes().count(b"\n") < 10:
            time.sleep(0.02)
        cluster.kill_second()
        killed.set()

    threading.Thread(target=kill_in_mid_run, daemon=True).start()
    command = ["run", "-o", str(tmp_path / "cluster"), "--workers", "2", "--ray-address", f"127.0.0.1:{cluster.port}", *options]
    assert cli.main(command) == 0
    assert killed.is_set()
    (whole,), (lost,) = (list((tmp_path / name).iterdir()) for name in ("inline", "cluster"))
    expected, found = fingerprint(whole), fingerprint(lost)
    assert found[0] == expected[0]
    retried = [line for line in found[1] if "retried" in line]
    assert retried, "the node had a worker"
    assert all(line["clients"] == 13 for line in found[1]), "no client was lost"
