"""Ctrl-C and SIGTERM end the command and all that it started, and the same command goes on; two commands at once do not meet."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.small_run import SMALL

LIMIT = 10.0  # seconds in which everything is to be gone


@pytest.fixture
def mark() -> Generator[Path]:
    """A temporary folder for the command, with a short name (Ray's sockets); its path is in the environment of all that is started."""
    folder = Path(tempfile.mkdtemp(prefix="i-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(mark: Path, cache_dir: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "experiments", "run", "digits", "-o", str(out), "-c", f"data.cache-dir={cache_dir}", *SMALL, *more]
    environment = {**os.environ, "TMPDIR": str(mark)}
    return subprocess.Popen(line, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def left(mark: Path) -> list[str]:
    """The processes that have the mark, other than those that are dead."""
    found: list[str] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def wait_for_rounds(process: subprocess.Popen[str], out: Path, rounds: int) -> None:
    def there() -> int:
        return sum(path.read_bytes().count(b"\n") for path in out.glob("*/rounds.jsonl"))

    until = time.monotonic() + 120
    while there() < rounds:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)


def model_of(out: Path) -> bytes:
    (path,) = out.glob("*/final.safetensors")
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transport", "number", "code"), [("ray", signal.SIGINT, 130), ("ray", signal.SIGTERM, 143), ("inline", signal.SIGINT, 130)]
)
def test_a_signal_leaves_no_process_and_a_run_that_goes_on(
    transport: str, number: signal.Signals, code: int, mark: Path, cache_dir: Path, tmp_path: Path
) -> None:
    options: Sequence[str] = ("--transport", transport, "-c", "schedule.accumulate-rounds=300", "-c", "checkpoint.every=5")
    process = start(mark, cache_dir, tmp_path / "cut", *options)
    wait_for_rounds(process, tmp_path / "cut", 20)
    began = time.monotonic()
    # A terminal's Ctrl-C reaches the foreground's whole process group.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    assert process.wait(LIMIT) == code
    while left(mark) and time.monotonic() < began + LIMIT:
        time.sleep(0.05)
    assert left(mark) == []
    assert process.stderr is not None
    said = process.stderr.read()
    assert "Traceback" not in said
    assert not list(tmp_path.rglob(".*.part"))
    again = start(mark, cache_dir, tmp_path / "cut", *options)
    assert again.wait(300) == 0
    assert again.stderr is not None
    assert "goes on after round" in again.stderr.read()
    assert start(mark, cache_dir, tmp_path / "whole", *options[2:], "--transport", "inline").wait(300) == 0
    assert model_of(tmp_path / "cut") == model_of(tmp_path / "whole")


@pytest.mark.slow
def test_two_commands_at_once_on_one_machine(mark: Path, cache_dir: Path, tmp_path: Path) -> None:
    """Each with a SuperLink and a Ray of its own, and nothing cached yet: they only share the cache."""
    cache = tmp_path / "cache"
    processes = [start(mark, cache, tmp_path / name, "--transport", transport) for name, transport in (("one", "ray"), ("two", "flower"))]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert left(mark) == []
    assert start(mark, cache_dir, tmp_path / "alone", "--transport", "inline").wait(120) == 0
    assert model_of(tmp_path / "one") == model_of(tmp_path / "two") == model_of(tmp_path / "alone")


def test_ctrl_c_while_modules_are_imported_is_quiet(mark: Path, cache_dir: Path, tmp_path: Path) -> None:
    process = start(mark, cache_dir, tmp_path, "--transport", "inline")
    time.sleep(0.5)  # importing PyTorch takes longer
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=LIMIT)
    assert (process.returncode, said.strip()) == (130, "interrupted")
