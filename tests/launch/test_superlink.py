"""The launcher: what it hands to Flower, how it judges a run, and that it leaves nothing behind."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from experiments.launch import superlink
from experiments.launch.superlink import FlowerRun, run_in_flower

PYPROJECT = """
[project]
name = "tiny"
version = "1.0.0"
description = "a tiny app"
license = "Apache-2.0"
dependencies = ["flwr[simulation]"]

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "tiny.server:app"
clientapp = "tiny.client:app"

[tool.flwr.app.config]
mode = "complete"
text = ""
strategy.bound = 1.0
"""

SERVER = """
import json
import time

import ray
from flwr.serverapp import ServerApp

from tiny.remote import Remote

app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    print("config " + json.dumps(dict(config)), flush=True)
    if config["mode"] == "raise":
        raise RuntimeError("the ServerApp broke")
    while not ray.is_initialized():
        time.sleep(0.02)
    remote = ray.remote(num_cpus=0)(Remote).remote()
    print("actor says " + ray.get(remote.name.remote()), flush=True)
    if config["mode"] == "sleep":
        time.sleep(600)
"""

REMOTE = """
class Remote:
    def name(self):
        return __name__
"""

CLIENT = """
from flwr.clientapp import ClientApp

app = ClientApp()
"""


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    """A Flower app whose ServerApp completes, raises or sleeps, as `mode` says."""
    (package := tmp_path / "tiny").mkdir()
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    for name, text in {"__init__": "", "server": SERVER, "remote": REMOTE, "client": CLIENT}.items():
        (package / f"{name}.py").write_text(text)
    return tmp_path


class Watched:
    """Runs an app, keeps its lines, and every process that it started. Others below this one belong to other tests: a tracker's service."""

    def __init__(self, on_line: Callable[[str], None] = lambda _: None) -> None:
        self.lines: list[str] = []
        self._seen: set[psutil.Process] = set()
        self._others = set(psutil.Process().children(recursive=True))
        self._on_line = on_line

    def run(self, app_dir: Path, **config: Any) -> FlowerRun:
        def on_line(line: str) -> None:
            self.lines.append(line)
            self._seen.update(set(psutil.Process().children(recursive=True)) - self._others)
            self._on_line(line)

        return run_in_flower(app_dir, config, on_line=on_line, num_supernodes=1)

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def assert_nothing_left(self) -> None:
        """The run had a SuperLink, a SuperExec, a simulation and a Ray, and none of them lives."""
        assert len(self._seen) > 4
        assert [process for process in self._seen if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.slow
def test_a_completed_run_returns_0_and_its_lines_and_config_arrive_unharmed(app_dir: Path) -> None:
    text = json.dumps({"cells": [{"seed": 1, "name": "a \"b\" 'c' \\ é = # %"}]}) + "\nsecond line\ttab"
    watched = Watched()
    run = watched.run(app_dir, text=text, **{"strategy.bound": math.inf})
    assert (run.exit_code, run.status) == (0, "finished:completed"), watched.log
    (config,) = [json.loads(line.removeprefix("config ")) for line in watched.lines if line.startswith("config ")]
    assert config == {"mode": "complete", "text": text, "strategy.bound": math.inf}
    assert "actor says tiny.remote" in watched.lines
    assert "\x1b" not in watched.log
    watched.assert_nothing_left()


@pytest.mark.slow
def test_a_crash_of_the_server_app_returns_1_and_its_error_arrives(app_dir: Path) -> None:
    watched = Watched()
    run = watched.run(app_dir, mode="raise")
    assert (run.exit_code, run.status) == (1, "finished:failed"), watched.log
    assert "RuntimeError: the ServerApp broke" in watched.log
    watched.assert_nothing_left()


@pytest.mark.slow
def test_sigterm_ends_the_run_and_all_its_processes(app_dir: Path) -> None:
    def terminate_when_it_sleeps(line: str) -> None:
        if line.startswith("actor says"):
            os.kill(os.getpid(), signal.SIGTERM)

    watched = Watched(terminate_when_it_sleeps)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as raised:
        watched.run(app_dir, mode="sleep")
    assert raised.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    watched.assert_nothing_left()


@pytest.mark.slow
def test_a_key_that_the_app_does_not_know_is_refused_with_its_name(app_dir: Path) -> None:
    watched = Watched()
    run = watched.run(app_dir, unheard=1)
    assert (run.exit_code, run.status) == (1, "unknown")
    assert "unheard" in watched.log


@pytest.mark.parametrize(("status", "code"), [("finished:completed", 0), ("finished:failed", 1), ("finished:stopped", 1), ("unknown", 1)])
def test_only_a_completed_run_has_exit_code_0(status: str, code: int) -> None:
    assert FlowerRun(status).exit_code == code


@pytest.mark.parametrize(("num_supernodes", "ray_cpus"), [(0, 1), (1, 0)])
def test_too_few_supernodes_or_cpus_are_refused(tmp_path: Path, num_supernodes: int, ray_cpus: int) -> None:
    with pytest.raises(ValueError, match=f"got {num_supernodes} and {ray_cpus}"):
        run_in_flower(tmp_path, {}, on_line=print, num_supernodes=num_supernodes, ray_cpus=ray_cpus)


def test_the_environment_is_our_own_and_passes_a_ray_cluster_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_HOME", "/somebody/elses")
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    home = Path("/tmp/fl-sim-x")
    own = superlink._environment(home)
    assert own["FLWR_HOME"] == own["RAY_TMPDIR"] == str(home)
    assert own["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert own["NO_PROXY"] == own["no_proxy"] == "127.0.0.1,localhost,example.org"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    joined = superlink._environment(home)
    assert joined["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert "RAY_TMPDIR" not in joined


def test_the_status_is_read_from_what_flwr_list_prints() -> None:
    assert superlink._status('Listing all runs...\n{"success": true, "runs": [{"status": "finished:completed"}]}') == "finished:completed"
    assert superlink._status('{"success": true, "runs": []}') is None
    assert superlink._status('{"success": false, "error-message": "no"}') is None
    assert superlink._status("Error: no connection") is None
    assert superlink._status("") is None


def test_what_carries_our_folder_and_its_children_are_ended_and_others_are_not(tmp_path: Path) -> None:
    # The child has its own environment wiped, as Ray's workers have, and ignores SIGTERM.
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    start = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {ignore!r}], env={{}}); time.sleep(600)"
    ours, other = tmp_path / "ours", tmp_path / "other"
    mine = subprocess.Popen([sys.executable, "-c", start], env={**os.environ, "FLWR_HOME": str(ours)}, stdout=subprocess.PIPE, text=True)
    another = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, "FLWR_HOME": str(other)})
    try:
        assert mine.stdout is not None
        assert mine.stdout.readline() == "ready\n"
        found = superlink.processes_of(ours)
        assert {process.pid for process in found} == {mine.pid, *(child.pid for child in psutil.Process(mine.pid).children())}
        assert len(found) == 2
        # The parent goes first: the child is an orphan by the time it is killed, and is known by then only because it was found before.
        began = time.monotonic()
        superlink._end(ours, [mine], grace=0.3)
        assert time.monotonic() - began < 5.0
        assert all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in found)
        assert another.poll() is None
    finally:
        another.kill()
        another.wait()
