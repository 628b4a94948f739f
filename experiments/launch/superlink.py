"""One run on a SuperLink of our own: free port, own ``FLWR_HOME``, nothing left behind.

``flwr run .`` leaves a daemon that outlives it, shares ``~/.flwr`` and a fixed port with every other project, and exits 0 when the run
crashed. `run_in_flower` starts ``flower-superlink`` and ``flower-superexec`` itself, submits the app with ``flwr run --stream``, asks
``flwr list`` how it ended, and ends every process it started. `experiments.launch.warm` holds what runs in those processes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import psutil
import tomli_w

from experiments.launch import warm

COMPLETED = "finished:completed"
PRELOAD = ("torch",)  # imported while the SuperLink starts
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CONNECTION = "own"
_MARKS = {"accepted": "Successfully started run", "simulation": "Starting Flower Simulation", "installed": "Successfully installed"}
# Longest path that Ray puts below its temporary folder; the whole must fit the 107 bytes of a Unix socket's name.
_RAY_SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"


class FlowerRun(NamedTuple):
    """How a run ended: Flower's status ("finished:completed" when all is well) and seconds from the call to each step."""

    status: str
    seconds: dict[str, float]

    @property
    def exit_code(self) -> int:
        """0 only for a completed run."""
        return 0 if self.status == COMPLETED else 1


def run_in_flower(
    app_dir: Path,
    run_config: Mapping[str, bool | int | float | str],
    *,
    on_line: Callable[[str], None],
    num_supernodes: int = 2,
    ray_cpus: int = 1,
    grace: float = 2.0,
) -> FlowerRun:
    """Run the Flower app of a folder on a SuperLink of its own and return how it ended.

    Args:
        app_dir: folder with the app's ``pyproject.toml``.
        run_config: overrides of ``[tool.flwr.app.config]`` by dotted key; any float, any text.
        on_line: called with each line of the run's log as it comes, without colours and line end.
        num_supernodes: size of the federation, >= 1.
        ray_cpus: processors that Ray counts, and so the number of Flower's own ClientApp actors, >= 1. Ours take none of them.
        grace: seconds between asking what is left to end and killing it.

    Returns:
        Status ("unknown" if the SuperLink did not start or did not take the run; ``on_line`` has got the reason) and timings.
    """
    if num_supernodes < 1 or ray_cpus < 1:
        raise ValueError(f"expected num_supernodes >= 1 and ray_cpus >= 1, got {num_supernodes} and {ray_cpus}")
    started = time.monotonic()
    # Resolved: the folder's name marks our processes, and must read the same everywhere.
    home = Path(tempfile.mkdtemp(prefix="fl-sim-")).resolve()
    roots: list[subprocess.Popen[str]] = []
    with _signals_raise() as ignore_signals:
        try:
            submitter = _start(home, roots, app_dir.resolve(), run_config, num_supernodes, ray_cpus)
            return _listen(submitter, home / "superlink.log", on_line, started)
        finally:
            ignore_signals()
            _end(home, roots, grace)
            shutil.rmtree(home, ignore_errors=True)


def _start(
    home: Path,
    roots: list[subprocess.Popen[str]],
    app_dir: Path,
    run_config: Mapping[str, bool | int | float | str],
    num_supernodes: int,
    ray_cpus: int,
) -> subprocess.Popen[str]:
    """Start the submitter and the simulation; both are added to ``roots``."""
    port, config, arguments, log = _free_port(), home / "run-config.toml", home / "simulation-arguments", home / "superlink.log"
    address = f"127.0.0.1:{port}"
    connection = {"address": address, "insecure": True}
    (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": _CONNECTION, _CONNECTION: connection}}), encoding="utf-8")
    config.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
    # Ray puts its driver's working directory before all else on the workers' sys.path: it must hold no modules.
    (work := home / "work").mkdir()
    (bin_dir := home / "bin").mkdir()
    shim, quoted = bin_dir / "flwr-simulation", shlex.quote(str(arguments))
    shim.write_text(f'#!/bin/sh\nprintf %s "$*" > {quoted}.part && mv {quoted}.part {quoted}\n', encoding="utf-8")
    shim.chmod(0o755)
    environment = _environment(home, bin_dir)

    def start(part: str, out: int, err: int, **options: Any) -> subprocess.Popen[str]:
        line = [sys.executable, "-P", warm.__file__, part, json.dumps({"parent": os.getpid(), **options})]
        roots.append(
            subprocess.Popen(
                line,
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                encoding="utf-8",
                errors="replace",
            )
        )
        return roots[-1]

    superlink = ["--insecure", "--simulation", "--isolation", "process", "--host", "127.0.0.1", "--port", str(port)]
    services = [("flower-superlink", superlink), ("flower-superexec", ["--insecure", "--runtime-api-address", address])]
    federation = f"num-supernodes={num_supernodes} client-resources-num-cpus=1"
    run = ["run", str(app_dir), _CONNECTION, "--run-config", str(config), "--federation-config", federation, "--stream"]
    commands = [run, ["list", _CONNECTION, "--format", "json"]]
    pipe, same = subprocess.PIPE, subprocess.STDOUT
    submitter = start("submit", pipe, same, services=services, port=port, log=str(log), commands=commands)
    with log.open("ab") as sink:
        start("simulate", sink.fileno(), same, arguments_file=str(arguments), ray_cpus=ray_cpus, app_dir=str(app_dir), preload=PRELOAD)
    return submitter


def _listen(submitter: subprocess.Popen[str], log: Path, on_line: Callable[[str], None], started: float) -> FlowerRun:
    """Hand on the submitter's lines until it ends, and read the status from the last ones."""
    seconds: dict[str, float] = {}
    answer: list[str] | None = None
    assert submitter.stdout is not None
    for raw in submitter.stdout:
        line, now = _ANSI.sub("", raw).rstrip("\n"), time.monotonic() - started
        if line == warm.HEALTHY:
            seconds["superlink"] = now
        elif line == warm.STATUS_FOLLOWS:
            answer = []
            seconds["logs_ended"] = now
        elif answer is not None:
            answer.append(line)
        else:
            if "installed" in seconds:  # what comes next is the app's
                seconds.setdefault("app", now)
            for mark, text in _MARKS.items():
                if text in line:
                    seconds.setdefault(mark, now)
            on_line(line)
    status = _status("\n".join(answer or []))
    if status is None and log.exists():
        for line in _ANSI.sub("", log.read_text(encoding="utf-8", errors="replace")).splitlines()[-30:]:
            on_line(line)
    seconds["ended"] = time.monotonic() - started
    return FlowerRun(status or "unknown", seconds)


def _environment(home: Path, bin_dir: Path) -> dict[str, str]:
    beside = str(Path(sys.executable).parent)
    fixed = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",  # default: 1 s; at 0.05 it takes a tenth of a core as long as the run lasts
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do anyway, and without its warning
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # as flwr-simulation sets it
        "PATH": os.pathsep.join([str(bin_dir), beside, os.environ.get("PATH", os.defpath)]),
        "NO_PROXY": ",".join(filter(None, ["127.0.0.1", "localhost", os.environ.get("NO_PROXY") or os.environ.get("no_proxy")])),
    }
    fixed["no_proxy"] = fixed["NO_PROXY"]
    # A Ray that we start keeps its sessions in our folder, and so cannot join a cluster that somebody else started on this machine.
    if not os.environ.get("RAY_ADDRESS") and len(os.fsencode(home / _RAY_SOCKET)) <= 107:
        fixed["RAY_TMPDIR"] = str(home)
    return {**os.environ, **fixed}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _status(answer: str) -> str | None:
    """The status of the only run in what ``flwr list --format json`` printed, if it printed one."""
    with suppress(ValueError, LookupError, TypeError):
        return str(json.loads(answer[answer.index("{") :])["runs"][0]["status"])
    return None


@contextmanager
def _signals_raise() -> Generator[Callable[[], None]]:
    """While open, SIGTERM and SIGHUP raise SystemExit; yields a function that makes these two and SIGINT wait until it closes."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)

    def ignore() -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)

    try:
        yield ignore
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(home: Path, roots: Sequence[subprocess.Popen[str]], grace: float) -> None:
    """End, by id, the processes that carry our folder in their environment and all that they started."""
    known: set[psutil.Process] = set()
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline + 10.0:  # only a process stuck in the kernel survives SIGKILL
        new = processes_of(home, {root.pid for root in roots if root.poll() is None}) - known
        known |= new
        left = {process for process in known if _lives(process)}  # also one whose parent has ended
        if not left:
            break
        late = time.monotonic() > deadline
        for process in left if late else new:
            with suppress(psutil.NoSuchProcess):  # psutil compares start times: a reused id is not signalled
                process.send_signal(signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.05)
    for root in roots:
        with suppress(subprocess.TimeoutExpired):
            root.wait(timeout=1.0)
        if root.stdout is not None:
            root.stdout.close()


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


def processes_of(home: Path, roots: Set[int] = frozenset()) -> set[psutil.Process]:
    """The living processes among ``roots``, those with ``FLWR_HOME=home`` in their environment, and all their descendants.

    Ray's workers write their title over their environment, so only the raylet that started them leads to them.
    """
    children: dict[int, list[psutil.Process]] = {}
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if not _lives(process):
                continue
            children.setdefault(process.ppid(), []).append(process)
            if process.pid in roots or process.environ().get("FLWR_HOME") == str(home):
                found.append(process)
    ours: set[psutil.Process] = set()
    while found:
        process = found.pop()
        if process not in ours:
            ours.add(process)
            found += children.get(process.pid, [])
    return ours
