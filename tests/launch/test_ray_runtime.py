"""Ray for the time of a command: our own, or the cluster that is named; short socket names; nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fl_sim.grid import ray_runtime
from fl_sim.grid.ray_runtime import ray_running
from fl_sim.signals import EndedBySignalError


@pytest.mark.parametrize(("address", "expected"), [(None, "local"), ("10.0.0.1:6379", "10.0.0.1:6379")])
def test_ray_is_our_own_or_the_cluster_that_is_named(monkeypatch: pytest.MonkeyPatch, address: str | None, expected: str) -> None:
    """Without an address Ray joins whatever cluster was started last on the machine."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda *arguments, **_: asked.append(arguments))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with ray_running():
        assert asked == [(expected,)]


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, EndedBySignalError)])
def test_a_signal_that_ray_swallows_while_it_starts_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, error: type[BaseException]
) -> None:
    def swallow(*_: Any, **__: Any) -> None:
        with suppress(BaseException):
            signal.raise_signal(number)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", swallow)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without Ctrl-C
    try:
        with pytest.raises(error), ray_running():
            raise AssertionError("it went on")
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("name", "short"),
    [("a", "a"), ("a b", "a b"), ("x" * 61, ""), ("ü", ""), ("gone", ""), ("link", "")],
    ids=["short", "blank", "long", "unicode", "gone", "a link to a long one"],
)
def test_a_folder_whose_name_no_socket_takes_is_not_used(monkeypatch: pytest.MonkeyPatch, name: str, short: str) -> None:
    """SLURM makes such a TMPDIR."""
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        folder = Path(parent) / name
        if name == "link":
            (Path(parent) / ("x" * 61)).mkdir()
            folder.symlink_to("x" * 61)
        elif name != "gone":
            folder.mkdir()
        monkeypatch.setattr(tempfile, "gettempdir", lambda: str(folder))
        assert ray_runtime.short_folder() == (str(folder) if short else "/tmp")


LEFT = """
import psutil, ray
from fl_sim.grid.ray_runtime import ray_running
with ray_running():
    actor = ray.remote(num_cpus=0)(type("Sleeper", (), {"pid": lambda self: __import__("os").getpid()})).remote()
    pid = ray.get(actor.pid.remote())
    seen = set(psutil.Process().children(recursive=True))
    assert pid in {process.pid for process in seen}
left = [process for process in seen if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
assert left == [], left
"""


@pytest.mark.slow
def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
