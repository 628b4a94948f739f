"""Ctrl-C and SIGTERM end the command and all that it started, and the same command goes on; two commands at once do not meet."""

from __future__ import annotations

import json
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

from clients.client_app import answer
from experiments.cli import main
from experiments.run.checkpoint import latest_checkpoint
from experiments.run.execute import execute_run
from fl_sim.config.resolve import from_json
from fl_sim.grid.transports import InlineTransport
from tests.support.small_run import ALONE, LEAN, SMALL, words

LIMIT = 10.0  # seconds in which everything is to be gone
LONGER = words({"schedule.accumulate-rounds": 100, "checkpoint.every": 5, **ALONE, **LEAN})
SHORTER = words({"schedule.accumulate-rounds": 2, "schedule.recovery-rounds": 1, **ALONE, **LEAN})


@pytest.fixture
def temporary() -> Generator[Path]:
    """The folder for temporary files of the commands, with a short name (Ray's sockets)."""
    folder = Path(tempfile.mkdtemp(prefix="i-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


Start = Callable[..., subprocess.Popen[str]]


def heed() -> None:
    """In a child: Ctrl-C counts, also where the tests run in a script's background, in which it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(temporary: Path, cache_dir: Path) -> Generator[Start]:
    """Starts the command with an output folder and further words; whatever still runs at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(out: Path, *more: str, cache: Path = cache_dir) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "experiments", *command(out, *more, cache=cache)]
        pipe, environment = subprocess.PIPE, {**os.environ, "TMPDIR": str(temporary)}
        processes.append(
            subprocess.Popen(line, env=environment, start_new_session=True, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed)
        )
        return processes[-1]

    yield start_one
    for process in processes:
        with process:
            process.kill()


def command(out: Path, *more: str, cache: Path) -> list[str]:
    return ["run", "digits", "-o", str(out), *SMALL, "-c", f"data.cache-dir={cache}", *more]


def errors_of(process: subprocess.Popen[str], code: int, limit: float = 300.0) -> str:
    """What a command wrote to stderr until it ended, in time and with this exit code."""
    _, errors = process.communicate(timeout=limit)
    assert process.returncode == code, errors
    return errors


def all_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """A command and everything that it started; Ray's workers too, whose environment cannot be read."""
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def wait_until(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Wait until a command that runs is so far."""
    until = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def model_of(out: Path) -> bytes:
    (path,) = out.glob("*/final.safetensors")
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> bytes:
    """The last model of the longer run, if nothing interrupts it."""
    out = tmp_path_factory.mktemp("whole")
    assert main(command(out, *LONGER, "--transport", "inline", cache=cache_dir)) == 0
    return model_of(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transport", "number", "code"),
    [("ray", signal.SIGINT, 130), ("ray", signal.SIGTERM, 143), ("ray", signal.SIGKILL, -9), ("inline", signal.SIGINT, 130)],
)
def test_a_signal_leaves_no_process_and_a_run_that_goes_on(
    transport: str, number: signal.Signals, code: int, start: Start, whole: bytes, tmp_path: Path
) -> None:
    process = start(tmp_path, *LONGER, "--transport", transport, "--workers", "1")
    wait_until(process, lambda: sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*/rounds.jsonl")) >= 10)
    started, began = all_of(process), time.monotonic()
    temporary = Path(psutil.Process(process.pid).environ()["TMPDIR"])
    assert len(started) > (6 if transport == "ray" else 0)
    # A terminal's Ctrl-C reaches the foreground's whole process group.
    os.killpg(process.pid, number) if number != signal.SIGTERM else process.send_signal(number)
    assert "Traceback" not in errors_of(process, code, LIMIT)
    while living(started) and time.monotonic() < began + LIMIT:
        time.sleep(0.05)
    assert living(started) == []
    assert number == signal.SIGKILL or not list(temporary.glob("fl-sim-*")), "Ray's folder is gone too"
    (cut,) = tmp_path.iterdir()
    config = from_json((cut / "config.json").read_text())
    assert latest_checkpoint(cut, config).checkpoint
    execute_run(config, tmp_path, InlineTransport(answer), lambda *_: None)
    assert json.loads((cut / "meta.json").read_text())["sessions"][1]["resumed_from"], "it goes on where it stood"
    assert not list(tmp_path.rglob(".*.part"))
    assert model_of(tmp_path) == whole


@pytest.mark.slow
def test_two_commands_at_once_on_one_machine(start: Start, tmp_path: Path, cache_dir: Path) -> None:
    """One with a Ray of its own, one with a SuperLink too, and nothing cached yet: they only share the cache."""
    ways = {"one": "ray", "two": "flower"}
    for process in [
        start(tmp_path / name, *SHORTER, "--transport", way, "--workers", "1", cache=tmp_path / "cache") for name, way in ways.items()
    ]:
        errors_of(process, 0)
    assert main(command(tmp_path / "alone", *SHORTER, "--transport", "inline", cache=cache_dir)) == 0
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
sys.argv = ["fl-sim", "doctor"]
sys.exit(command.main())
"""


def test_ctrl_c_while_modules_are_imported_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, timeout=60, check=False, preexec_fn=heed)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.slow
def test_a_signal_while_ray_starts_leaves_nothing(start: Start, temporary: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "--transport", "ray")
    # its folder is there: a child alone may be of an import (`ldconfig`)
    wait_until(process, lambda: bool(list(temporary.glob("fl-sim-*"))) and len(all_of(process)) > 1)
    os.killpg(process.pid, signal.SIGINT)
    assert "Traceback" not in errors_of(process, 130, LIMIT)
    assert not list(temporary.glob("fl-sim-*"))
    marked = [other for other in psutil.process_iter(["cmdline"]) if any(str(temporary) in word for word in other.info["cmdline"] or [])]
    assert living(marked) == [], "not even those that Ray started after the signal"
