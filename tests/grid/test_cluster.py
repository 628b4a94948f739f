"""A Ray cluster of two nodes on this machine: a run and a sweep join it, lose a node in the middle, and end with the same bytes."""

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
from typing import Any

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


# In every process of the nodes: an error for whoever touches the folder OUTPUT, and a line in NODE for each temporary folder of a cell.
GUARD = """
import os
import sys

def watch(event, arguments):
    if event == "open" or event.startswith("os."):
        for path in arguments[:2]:
            if isinstance(path, str) and path.startswith(os.environ["OUTPUT"]):
                raise PermissionError(f"{event} of {path}: a worker does not see the driver's disk")
            if event == "os.mkdir" and isinstance(path, str) and "fl-sim-cell-" in os.path.basename(path):
                with open(os.environ["NODE"], "a") as file:
                    print(path, file=file)

sys.addaudithook(watch)
"""


class Cluster:
    """A head and a second node; only what they started is ended. Each has a folder for temporary ones of its own, `head` and `second` below
    `nodes`. Their processes cannot open anything below `output`."""

    def __init__(self, folder: Path, nodes: Path) -> None:
        self.nodes, self.output = nodes, nodes / "driver"
        guard = nodes / "guard" / "sitecustomize.py"
        guard.parent.mkdir(parents=True)
        guard.write_text(GUARD)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.folder = folder
        self._mine: list[psutil.Process] = []
        path = os.pathsep.join([str(guard.parent), *sys.path])
        environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "PYTHONPATH": path, "OUTPUT": str(self.output)}
        environment |= {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}  # as a real one, but in seconds
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
        self.head = self._start([*RAY, *head], environment, "head")
        self.second = self._start([*RAY, "--address", f"127.0.0.1:{self.port}"], environment, "second")

    def cells_of(self, node: str) -> list[str]:
        """The temporary folders that cells had on a node."""
        log = self.nodes / f"{node}.log"
        return log.read_text().splitlines() if log.exists() else []

    def _start(self, command: list[str], environment: dict[str, str], node: str) -> list[psutil.Process]:
        (self.nodes / node).mkdir()
        environment |= {"TMPDIR": str(self.nodes / node), "NODE": str(self.nodes / f"{node}.log")}
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
    made = Cluster(
        Path("/tmp") / f"fl-sim-cluster-{os.getpid()}", tmp_path_factory.mktemp("nodes")
    )  # a short path: Ray's sockets are below it
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


def sweep(folder: Path, cache_dir: Path, spec: Path, *more: str) -> int:
    """The exit code of a sweep of four cells."""
    spec.write_text('base = "digits"\n[axes]\nseed = [1, 2]\n"attack.norm-bound" = [5.0, 10.0]\n')
    keys = {
        "data.num-clients": 13, "client.block": 3, "data.cache-dir": str(cache_dir), "attack.malicious-fraction": 0.16, "attack.fire": "schedule",
        "schedule.burn-in-epochs": 1, "schedule.accumulate-rounds": 100, "schedule.recovery-rounds": 1, "client.batch-size": 2,
        "twin": False, "control": False, "evaluate.every": 50, "checkpoint.every": 10,
    }  # fmt: skip
    options = [part for key, value in keys.items() for part in ("-c", f"{key}={json.dumps(value)}")]
    return cli.main(["sweep", str(spec), "-o", str(folder), *options, *more])


def files(folder: Path) -> dict[str, tuple[list[str], str, list[dict[str, Any]]]]:
    """Of each cell: its files, and its bytes."""
    runs = [path.parent for path in folder.glob("*/*/summary.json")]
    return {run.name: (sorted(str(path.relative_to(run)) for path in run.rglob("*")), *fingerprint(run)) for run in runs}


def test_cells_of_a_sweep_run_on_any_node_and_stream_to_the_driver(
    cluster: Cluster, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")  # brought back afterwards
    over = ("--workers", "2", "--ray-address", f"127.0.0.1:{cluster.port}")
    assert sweep(tmp_path / "inline", cache_dir, tmp_path / "four.toml", "--transport", "inline") == 0
    assert sweep(cluster.output, cache_dir, tmp_path / "four.toml", *over) == 0
    assert len(files(tmp_path / "inline")) == 4
    assert files(cluster.output) == files(tmp_path / "inline")
    assert not list(cluster.output.rglob(".*")), "neither clean twins nor parts of files are left"
    for node in ("head", "second"):
        assert cluster.cells_of(node)
        assert not list((cluster.nodes / node).glob("fl-sim-cell-*"))
    cells = len(cluster.cells_of("head") + cluster.cells_of("second"))
    (run, *_) = cluster.output.glob("*/*/")
    times = {path: path.stat().st_mtime_ns for path in cluster.output.rglob("rounds.jsonl")}
    (run / "summary.json").unlink()  # as if it had been interrupted after its last checkpoint
    assert sweep(cluster.output, cache_dir, tmp_path / "four.toml", *over) == 0
    assert files(cluster.output) == files(tmp_path / "inline")
    assert len(cluster.cells_of("head") + cluster.cells_of("second")) == cells + 1
    changed = [path.parent for path, time_ in times.items() if path.stat().st_mtime_ns != time_]
    assert changed == [run], "complete cells are not run again"
    assert json.loads((run / "meta.json").read_bytes())["sessions"][1]["resumed_from"], "its checkpoint went to the node"


def test_a_lost_node_loses_only_the_cells_that_ran_there(
    cluster: Cluster, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")  # brought back afterwards
    assert sweep(tmp_path / "inline", cache_dir, tmp_path / "four.toml", "--transport", "inline") == 0
    capsys.readouterr()
    killed = threading.Event()

    def kill_in_mid_sweep() -> None:
        until = time.monotonic() + 120.0
        while len(list(cluster.output.glob("*/*/checkpoint/*"))) < 2 or not cluster.cells_of("second"):
            if time.monotonic() > until:
                return
            time.sleep(0.02)
        cluster.kill_second()
        killed.set()

    threading.Thread(target=kill_in_mid_sweep, daemon=True).start()
    code = sweep(cluster.output, cache_dir, tmp_path / "four.toml", "--workers", "2", "--ray-address", f"127.0.0.1:{cluster.port}")
    said = " ".join(capsys.readouterr().err.split())
    assert killed.is_set()
    assert code == 0, said
    assert said.count("is run once more") == 1, said
    assert said.count("the cluster has lost the node") == 1, said
    assert files(cluster.output) == files(tmp_path / "inline")
    sessions = [len(json.loads(path.read_bytes())["sessions"]) for path in cluster.output.glob("*/*/meta.json")]
    assert sum(sessions) in (4, 5), "one cell, from its checkpoint or from the beginning"
