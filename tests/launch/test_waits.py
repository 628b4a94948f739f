"""Every wait on another process ends, and says what it waited for: locks, GPUs, a Ray cluster, a SuperLink, the import of a file."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import cli
from experiments.launch import preflight, superlink
from fl_sim import registry, waits
from fl_sim.config.resolve import ConfigError, resolve
from fl_sim.device import cpu_cores
from fl_sim.grid import ray_runtime
from fl_sim.grid.ray_runtime import cluster_problem, ray_running
from fl_sim.signals import time_limit
from fl_sim.waits import ProcessError, locked
from tests.support.small_run import SMALL

HOLDER = """
import sys, time
from pathlib import Path
from fl_sim.waits import locked
with locked(Path(sys.argv[1]), "sleeps") as alive:
    print("held", flush=True)
    until = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < until:
        time.sleep(0.05)
        alive() if sys.argv[3:] else None
"""


@contextmanager
def holder(path: Path, seconds: float, *more: str) -> Generator[subprocess.Popen[str]]:
    """Another process that holds a lock; with a further word it shows signs of life."""
    command = [sys.executable, "-c", HOLDER, str(path), str(seconds), *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_a_lock_that_another_process_holds_is_given_up_with_its_file_and_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "a.lock"
    with holder(path, 60.0) as process, pytest.raises(ProcessError) as error, locked(path, "sleeps", limit=0.3):
        pass
    assert str(error.value).startswith(
        f"{path} has been locked for 0 s without a sign of life by process {process.pid} on {socket.gethostname()} ("
    )
    assert str(error.value).endswith("which sleeps; end it")
    with locked(path, "sleeps", limit=0.3):  # it is free again, although the holder was killed
        assert path.with_name("a.lock.holder").exists()
    assert not path.with_name("a.lock.holder").exists()


@pytest.mark.slow
def test_a_lock_is_waited_for_while_its_holder_shows_signs_of_life(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "NOTICE", 0.2)
    with holder(tmp_path / "a.lock", 1.5, "alive"), locked(tmp_path / "a.lock", "trains the same burn-in", limit=0.5):
        pass
    out = capsys.readouterr().out
    assert "fl-sim: waiting for process" in out
    assert f"which trains the same burn-in ({tmp_path / 'a.lock'})" in out


def test_a_lock_of_another_program_is_given_up_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "STRANGER", 0.2)
    with locked(tmp_path / "a.lock", "trains", limit=60.0):
        (tmp_path / "a.lock.holder").write_text("no record")
        began = time.monotonic()
        with pytest.raises(ProcessError, match="by a program that is not fl-sim"), locked(tmp_path / "a.lock", "trains", limit=60.0):
            pass
        assert time.monotonic() - began < 10.0


def test_gpus_that_are_not_there_are_refused_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = ["run", "digits", *SMALL, "-o", str(tmp_path / "out"), "--workers", "2", "--gpus-per-worker", "0.5"]
    assert cli.main(line) == 2
    error = capsys.readouterr().err
    assert (
        f"expected ray.gpus-per-worker to be 0 (this machine: {cpu_cores()} cores and 0 GPUs have places for 0 such workers, not for 2; see --workers), got 0.5"
        in error
    )
    assert not (tmp_path / "out").exists()


def test_gpus_of_a_machine_that_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    config = resolve({"ray.gpus-per-worker": 0.6, "ray.num-workers": 3})
    (problem,) = filter(None, preflight._worker_problems(config))  # pyright: ignore[reportPrivateUsage]
    assert problem.startswith(
        f"expected ray.gpus-per-worker <= 0.5 (this machine: {cpu_cores()} cores and 2 GPUs have places for 2 such workers, not for 3"
    )


@pytest.mark.parametrize("share", [1.5, 1e-5, -0.5, math.nan, math.inf])
def test_a_share_that_ray_does_not_know(share: float) -> None:
    with pytest.raises(ConfigError, match=r"expected ray\.gpus-per-worker"):
        resolve({"ray.gpus-per-worker": share})


def test_more_workers_than_the_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=3e9))
    config = resolve({"ray.num-workers": 21})
    (problem,) = filter(None, preflight._worker_problems(config))  # pyright: ignore[reportPrivateUsage]
    assert problem == "expected ray.num-workers <= 20 (3.0 GB of memory are free), got 21"


@contextmanager
def listening(answer: bytes | None) -> Generator[str]:
    """The address of something that takes connections and answers so; None: it is silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(connection)
                if answer is not None:
                    connection.recv(1000)
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for connection in connections:
            connection.close()


WRONG = "expected RAY_ADDRESS (--ray-address) to be that of a running Ray cluster, got "


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "nobody answers there"),
        ("nobody-of-this-name.invalid:6379", "nobody answers there"),
        ("127.0.0.1", "expected HOST:PORT, or auto"),
        ("127.0.0.1:", "expected HOST:PORT, or auto"),
        (":6379", "expected HOST:PORT, or auto"),
        ("127.0.0.1:99999", "expected HOST:PORT, or auto"),
        ("127.0.0.1:0", "expected HOST:PORT, or auto"),
        ("127.0.0.1:http", "expected HOST:PORT, or auto"),
        ("true", "expected HOST:PORT, or auto"),
        ("ray://127.0.0.1:10001", "Ray Client is not supported"),
    ],
)
def test_an_address_without_a_cluster(address: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runtime, "ANSWER_LIMIT", 2.0)
    monkeypatch.setenv("RAY_ADDRESS", address)
    problem, began = cluster_problem(), time.monotonic()
    assert problem.startswith(f"{WRONG}{address!r}")
    assert reason in problem
    assert time.monotonic() - began < 20.0


@pytest.mark.slow
@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 64], ids=["silent", "http", "bytes"])
def test_an_address_where_something_else_listens(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runtime, "ANSWER_LIMIT", 2.0)
    with listening(answer) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert cluster_problem().startswith(f"{WRONG}{address!r}")


@pytest.mark.parametrize("address", ["", " ", "local"])
def test_no_address_means_a_ray_of_our_own(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_problem() == ""


@pytest.mark.parametrize("place", ["", "127.0.0.1:1"])
def test_auto_without_a_cluster(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runtime, "_last_cluster", lambda: place)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster_problem().startswith(f"{WRONG}'auto'")


@pytest.mark.parametrize("transport", ["ray", "flower"])
def test_a_dead_cluster_is_refused_before_anything_starts(
    transport: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")  # so that what the command sets ends with the test
    line = ["run", "digits", *SMALL, "-o", str(tmp_path / "out"), "--transport", transport, "--ray-address", "127.0.0.1:1"]
    assert cli.main(line) == 2
    assert f"error: {WRONG}'127.0.0.1:1'" in capsys.readouterr().err


def test_a_ray_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no room for the object store")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", broken)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with pytest.raises(ProcessError, match=r"Ray could not be started with its files in .*fl-sim-.* \(TMPDIR\): no room"), ray_running():
        pass
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match=r"expected RAY_ADDRESS .* that can be joined, got '10.0.0.1:6379' \(no room"), ray_running():
        pass


@pytest.mark.parametrize("transport", ["ray", "flower"])
def test_no_folder_for_temporary_files(
    transport: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setenv("TMPDIR", "/gone")
    with pytest.raises(ConfigError, match="expected TMPDIR to be a folder that can be written, got '/gone'"):
        preflight_of(transport)


def preflight_of(transport: str) -> None:
    problems = preflight._process_problems(resolve({"grid.transport": transport}))  # pyright: ignore[reportPrivateUsage]
    if problems:
        raise ConfigError(problems)


def test_a_file_whose_import_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "LOAD_LIMIT", 0.3)
    own = tmp_path / "own.py"
    own.write_text("import time\n\ntime.sleep(60)\n")
    with pytest.raises(ConfigError, match=rf"cannot load attack\.name = .*: {own}, line 3: TimeoutError: its import took more than 0 s"):
        resolve({"attack.name": f"{own}:attack"})


def test_a_limit_ends_with_its_block() -> None:
    with time_limit(0.1, "late"):
        pass
    time.sleep(0.2)
    with pytest.raises(TimeoutError, match="late"), time_limit(0.1, "late"):
        time.sleep(10)


@pytest.mark.slow
def test_a_flower_command_that_prints_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: object, name: str, arguments: list[str], out: int) -> subprocess.Popen[str]:
        assert name == "flwr"
        processes.append(
            subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"], stdout=out, text=True)
        )
        return processes[-1]

    processes: list[subprocess.Popen[str]] = []
    monkeypatch.setattr(superlink._Link, "_start", start)  # pyright: ignore[reportPrivateUsage]
    lines = superlink._Link(tmp_path, [], print)._flwr(["run"], 1.0)  # pyright: ignore[reportPrivateUsage]
    assert next(lines) == "1"
    with pytest.raises(TimeoutError, match="`flwr run` has printed nothing for 1 s"):
        next(lines)
    for process in processes:
        with process:
            process.kill()


def test_a_superlink_that_ends_or_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superlink, "START_LIMIT", 0.3)
    link = superlink._Link(tmp_path, [], print)  # pyright: ignore[reportPrivateUsage]
    alive, ended = (subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"]) for seconds in (60, 0))
    ended.wait()
    assert link._start_problem(1, [alive, ended]) == "flower-superexec ended with code 0"  # pyright: ignore
    assert link._start_problem(1, [alive, alive]) == "Flower's SuperLink did not answer on port 1 within 0 s"  # pyright: ignore
    alive.kill()
    alive.wait()
