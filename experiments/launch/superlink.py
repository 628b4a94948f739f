"""One run on a SuperLink of our own: on a free port, with its own ``FLWR_HOME``, and with no process or file left behind.

``flwr run .`` leaves a daemon that outlives it, shares ``~/.flwr`` and a fixed port with every other project, and exits 0 when the run
crashed. `run_in_flower` starts ``flower-superlink`` and ``flower-superexec`` itself, submits the app with ``flwr run --stream``, asks
``flwr list`` how it ended, and ends every process it started.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any, NamedTuple

import psutil
import tomli_w

from fl_sim.grid.ray_runtime import cluster_address, short_folder
from fl_sim.signals import signals_raise
from fl_sim.waits import PATIENCE

COMPLETED = "finished:completed"
START_LIMIT = 120.0  # seconds until the SuperLink must answer; it needs 4 to 5 on idle cores
LIST_LIMIT = 60.0  # seconds in which `flwr list` must answer
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CONNECTION = "own"


class FlowerRun(NamedTuple):
    """How a run ended: Flower's status ("finished:completed" for success)."""

    status: str

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
    gpu_share: float = 0.0,
    grace: float = 2.0,
) -> FlowerRun:
    """Run the Flower app of a folder on a SuperLink of its own and return how it ended.

    Args:
        app_dir: folder with the app's ``pyproject.toml``.
        run_config: overrides of ``[tool.flwr.app.config]`` by dotted key; any float, any text.
        on_line: called with each line of the run's log as it comes, without colours and line end.
        num_supernodes: size of the federation, >= 1.
        ray_cpus: processors that Ray counts, and so the number of Flower's own ClientApp actors, >= 1.
        gpu_share: of a GPU, that each of these actors reserves; 0: none.
        grace: seconds from SIGTERM to SIGKILL for the processes that have not ended.

    Returns:
        Flower's status ("unknown" if the SuperLink did not start or did not accept the run; then ``on_line`` was called with the reason).
    """
    if num_supernodes < 1 or ray_cpus < 1:
        raise ValueError(f"expected num_supernodes >= 1 and ray_cpus >= 1, got {num_supernodes} and {ray_cpus}")
    # Resolved, because the path marks our processes and must be the same text everywhere.
    home = Path(tempfile.mkdtemp(prefix="fl-sim-", dir=short_folder())).resolve()
    roots: list[subprocess.Popen[str]] = []
    with signals_raise() as ignore_signals:
        try:
            return _Link(home, roots, on_line).run(app_dir.resolve(), run_config, num_supernodes, ray_cpus, gpu_share)
        finally:
            ignore_signals()
            _end(home, roots, grace)
            shutil.rmtree(home, ignore_errors=True)


class _Link:
    """Starts a SuperLink with its SuperExec, and Flower's command. Each process that it starts is added to ``roots``."""

    def __init__(self, home: Path, roots: list[subprocess.Popen[str]], on_line: Callable[[str], None]) -> None:
        self._home, self._roots, self._on_line = home, roots, on_line
        self._log, self._environment = home / "superlink.log", _environment(home)
        # Ray puts its driver's working directory first on the workers' sys.path, so it must hold no modules.
        (home / "work").mkdir()

    def run(self, app_dir: Path, run_config: Mapping[str, Any], num_supernodes: int, ray_cpus: int, gpu_share: float) -> FlowerRun:
        """Start SuperLink and SuperExec, submit the app, and return how it ended."""
        port, config = _free_port(), self._home / "run-config.toml"
        address = f"127.0.0.1:{port}"
        connection = {"superlink": {"default": _CONNECTION, _CONNECTION: {"address": address, "insecure": True}}}
        (self._home / "config.toml").write_text(tomli_w.dumps(connection), encoding="utf-8")
        config.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
        with self._log.open("ab") as sink:
            link = ["--insecure", "--simulation", "--isolation", "process", "--host", "127.0.0.1", "--port", str(port)]
            services = [self._start("flower-superlink", link, sink.fileno())]
            services.append(self._start("flower-superexec", ["--insecure", "--runtime-api-address", address], sink.fileno()))
        if problem := self._start_problem(port, services):
            return self._unknown(problem)
        federation = f"num-supernodes={num_supernodes} client-resources-num-cpus=1"
        if not cluster_address():  # an existing cluster has its own number of processors
            federation += f" init-args-num-cpus={ray_cpus}"
        if gpu_share:
            federation += f" client-resources-num-gpus={gpu_share:g}"
        arguments = ["run", str(app_dir), _CONNECTION, "--run-config", str(config), "--federation-config", federation, "--stream"]
        try:
            for line in self._flwr(arguments, PATIENCE):
                self._on_line(line)
            status = _status("\n".join(self._flwr(["list", _CONNECTION, "--format", "json"], LIST_LIMIT)))
        except TimeoutError as error:
            return self._unknown(str(error))
        return FlowerRun(status) if status else self._unknown("Flower's SuperLink does not say how the run ended")

    def _start(self, name: str, arguments: Sequence[str], out: int) -> subprocess.Popen[str]:
        command = shutil.which(name, path=self._environment["PATH"])
        if command is None:
            raise FileNotFoundError(f"Flower's command {name} is not beside {sys.executable}")
        process = subprocess.Popen(
            [command, *arguments],
            cwd=self._home / "work",
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            encoding="utf-8",
            errors="replace",
        )
        self._roots.append(process)
        return process

    def _flwr(self, arguments: Sequence[str], limit: float) -> Iterator[str]:
        """The output of a `flwr` command, line by line. Raises TimeoutError after `limit` seconds without a line."""
        process = self._start("flwr", arguments, subprocess.PIPE)
        assert process.stdout is not None
        lines = SimpleQueue[str | None]()
        threading.Thread(target=_put_lines, args=(process.stdout, lines), daemon=True).start()
        while True:
            try:
                raw = lines.get(timeout=limit)
            except Empty:
                raise TimeoutError(f"`flwr {arguments[0]}` has printed nothing for {limit:.0f} s") from None
            if raw is None:
                return
            yield _ANSI.sub("", raw).rstrip("\n")

    def _start_problem(self, port: int, services: Sequence[subprocess.Popen[str]]) -> str:
        """Wait until the SuperLink answers. Why it does not: it or its SuperExec ended, or `START_LIMIT` passed. Empty if it does."""
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline and all(service.poll() is None for service in services):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return ""
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)
            finally:
                connection.close()
        names = ("flower-superlink", "flower-superexec")
        codes = {name: service.poll() for name, service in zip(names, services, strict=True)}
        ended = [f"{name} ended with code {code}" for name, code in codes.items() if code is not None]
        return "; ".join(ended) or f"Flower's SuperLink did not answer on port {port} within {START_LIMIT:.0f} s"

    def _unknown(self, problem: str) -> FlowerRun:
        """The status "unknown"; `on_line` gets the end of the SuperLink's log, and what is wrong."""
        for line in _ANSI.sub("", self._log.read_text(encoding="utf-8", errors="replace")).splitlines()[-30:]:
            self._on_line(line)
        self._on_line(problem)
        return FlowerRun("unknown")


def _put_lines(stream: IO[str], lines: SimpleQueue[str | None]) -> None:
    """Put each line of a stream into a queue, and None at its end."""
    with suppress(OSError, ValueError):  # closed by somebody else
        for line in stream:
            lines.put(line)
    lines.put(None)


def _end_with_parent() -> None:
    """Called in a child process: it then ends when its parent ends, even by SIGKILL."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _environment(home: Path) -> dict[str, str]:
    beside = str(Path(sys.executable).parent)
    ours = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",  # default: 1 s; 0.05 would use a tenth of a core during the whole run
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default of Ray; setting it avoids a warning
        "PATH": os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]),
        "NO_PROXY": ",".join(filter(None, ["127.0.0.1", "localhost", os.environ.get("NO_PROXY") or os.environ.get("no_proxy")])),
    }
    ours["no_proxy"] = ours["NO_PROXY"]
    # A Ray that we start keeps its sessions in our folder, so that it cannot join a cluster of somebody else on this machine.
    if not cluster_address():
        ours["RAY_TMPDIR"] = str(home)
    return {**os.environ, **ours}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _status(answer: str) -> str | None:
    """The status of the only run in the output of ``flwr list --format json``, if there is one."""
    with suppress(ValueError, LookupError, TypeError):
        return str(json.loads(answer[answer.index("{") :])["runs"][0]["status"])
    return None


def _end(home: Path, roots: Sequence[subprocess.Popen[str]], grace: float) -> None:
    """End, by id, the processes that have our folder in their environment, and all their descendants."""
    ours: set[psutil.Process] = set()
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline + 10.0:  # a limit, because a process stuck in the kernel survives SIGKILL
        new = processes_of(home, {root.pid for root in roots if root.poll() is None}) - ours
        ours |= new
        alive = {process for process in ours if _lives(process)}  # also one whose parent has ended
        if not alive:
            break
        late = time.monotonic() > deadline
        for process in alive if late else new:
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

    Descendants, because Ray's workers overwrite their environment with their title: they are found as children of their raylet.
    """
    children: dict[int, list[psutil.Process]] = {}
    queue: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if not _lives(process):
                continue
            children.setdefault(process.ppid(), []).append(process)
            if process.pid in roots or process.environ().get("FLWR_HOME") == str(home):
                queue.append(process)
    ours: set[psutil.Process] = set()
    while queue:
        process = queue.pop()
        if process not in ours:
            ours.add(process)
            queue += children.get(process.pid, [])
    return ours
