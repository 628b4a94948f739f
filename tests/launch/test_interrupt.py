"""Ctrl-C and SIGTERM end the command and all that it started, and the same command goes on; two commands at once do not meet."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import psutil
import pytest

from tests.support.small_run import SMALL

LIMIT = 10.0  # seconds in which everything is to be gone
LONGER = ("schedule.accumulate-rounds=150", "checkpoint.every=5", "twin=false", "control=false")


@pytest.fixture
def mark() -> Generator[Path]:
    """A temporary folder for the command, with a short name (Ray's sockets); its path is in the environment of all that is started."""
    folder = Path(tempfile.mkdtemp(prefix="i-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


Start = Callable[..., subprocess.Popen[str]]


def heed() -> None:
    """In a child: Ctrl-C counts, also where the tests run in a script's background, in which it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(mark: Path, cache_dir: Path) -> Generator[Start]:
    """Starts the command with an output folder and further words; whatever still runs at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(out: Path, *more: str, cache: Path = cache_dir) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "experiments", "run", "digits", "-o", str(out), *SMALL, "-c", f"data.cache-dir={cache}", *more]
        pipe, environment = subprocess.PIPE, {**os.environ, "TMPDIR": str(mark)}
        processes.append(
            subprocess.Popen(line, env=environment, start_new_session=True, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed)
        )
        return processes[-1]

    yield start_one
    for process in processes:
        with process:
            process.kill()


def said(process: subprocess.Popen[str], code: int, limit: float = 300.0) -> str:
    """What a command wrote to stderr until it ended, in time and with this exit code."""
    _, errors = process.communicate(timeout=limit)
    assert process.returncode == code, errors
    return errors


def all_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """A command and everything that it started; Ray's workers too, whose environment cannot be read."""
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def wait_for_rounds(process: subprocess.Popen[str], out: Path, rounds: int) -> None:
    until = time.monotonic() + 120
    while sum(path.read_bytes().count(b"\n") for path in out.glob("*/rounds.jsonl")) < rounds:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def model_of(out: Path) -> bytes:
    (path,) = out.glob("*/final.safetensors")
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transport", "number", "code"), [("ray", signal.SIGINT, 130), ("ray", signal.SIGKILL, -9), ("inline", signal.SIGINT, 130)]
)
def test_a_signal_leaves_no_process_and_a_run_that_goes_on(
    transport: str, number: signal.Signals, code: int, start: Start, tmp_path: Path
) -> None:
    options = [word for text in LONGER for word in ("-c", text)]
    process = start(tmp_path / "cut", *options, "--transport", transport)
    wait_for_rounds(process, tmp_path / "cut", 20)
    started, began = all_of(process), time.monotonic()
    assert len(started) > (8 if transport == "ray" else 0)
    # A terminal's Ctrl-C reaches the foreground's whole process group.
    os.killpg(process.pid, number) if number != signal.SIGTERM else process.send_signal(number)
    assert "Traceback" not in said(process, code, LIMIT)
    while living(started) and time.monotonic() < began + LIMIT:
        time.sleep(0.05)
    assert living(started) == []
    assert "goes on after round" in said(start(tmp_path / "cut", *options, "--transport", transport), 0)
    assert not list(tmp_path.rglob(".*.part"))
    said(start(tmp_path / "whole", *options, "--transport", "inline"), 0)
    assert model_of(tmp_path / "cut") == model_of(tmp_path / "whole")


@pytest.mark.slow
def test_two_commands_at_once_on_one_machine(start: Start, tmp_path: Path) -> None:
    """Each with a SuperLink and a Ray of its own, and nothing cached yet: they only share the cache."""
    ways = {"one": "ray", "two": "flower"}
    for process in [start(tmp_path / name, "--transport", way, cache=tmp_path / "cache") for name, way in ways.items()]:
        said(process, 0)
    said(start(tmp_path / "alone", "--transport", "inline"), 0)
    assert model_of(tmp_path / "one") == model_of(tmp_path / "two") == model_of(tmp_path / "alone")


IMPORTING = """
import os, signal, sys
import experiments.__main__ as command

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == "experiments.cli":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:
                pass  # as libraries do

sys.meta_path.insert(0, CtrlC())
sys.exit(command.main())
"""


def test_ctrl_c_while_modules_are_imported_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, timeout=60, check=False, preexec_fn=heed)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 6.0])
def test_a_signal_while_it_starts_leaves_nothing(seconds: float, start: Start, tmp_path: Path) -> None:
    process = start(tmp_path, "--transport", "ray")
    time.sleep(seconds)
    started = all_of(process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode in (130, -signal.SIGINT), errors  # the latter while modules are imported: a shell calls both 130
    assert "Traceback" not in errors
    assert living(started) == []


@pytest.mark.slow
def test_a_worker_that_is_killed_in_every_round_changes_nothing(start: Start, tmp_path: Path) -> None:
    for name, more in {"killed": ["--transport", "ray", "-c", "fault.kill-round=-1"], "whole": ["--transport", "inline"]}.items():
        said(start(tmp_path / name, "-c", "twin=false", "-c", "control=false", "-c", "schedule.recovery-rounds=0", *more), 0)
    assert model_of(tmp_path / "killed") == model_of(tmp_path / "whole")
    (lines,) = (path.read_text().splitlines() for path in (tmp_path / "killed").glob("*/rounds.jsonl"))
    assert ["died" in line for line in lines] == [True] * 5
