"""One run on a SuperLink of our own: free port, own ``FLWR_HOME``, nothing left behind.

``flwr run .`` leaves a daemon that outlives it, shares ``~/.flwr`` and a fixed port with every other project, and exits 0 when the run crashed.
`run_in_flower` starts ``flower-superlink`` and ``flower-superexec`` itself, submits the app with ``flwr run --stream``, asks ``flwr list`` how it
ended, and ends every process it started. All three commands import for 3 to 4 s of processor time: they import side by side, and the last two wait
for the SuperLink before they go on.
"""

from __future__ import annotations

import codecs
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple

import tomli_w

COMPLETED = "finished:completed"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_STATUS_FOLLOWS = "fl-sim: status follows"
_START_LIMIT = 120.0  # seconds until the SuperLink must answer; it needs 4 to 5 on two idle cores
_CONNECTION = "own"
# Longest path that Ray puts below its temporary folder; the whole must fit the 107 bytes of a Unix socket's name.
_RAY_SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"

# Imports a console script, waits for a line on stdin (or its end), then runs it once for each list of arguments.
_GATED = f"""
import json, sys
from importlib.metadata import entry_points
name, commands = sys.argv[1], json.loads(sys.argv[2])
(script,) = entry_points(group="console_scripts", name=name)
main = script.load()
sys.stdin.readline()
for index, arguments in enumerate(commands):
    if index:
        print({_STATUS_FOLLOWS!r}, flush=True)
    sys.argv[:] = [name, *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            sys.exit(end.code)
"""


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
    grace: float = 5.0,
) -> FlowerRun:
    """Run the Flower app of a folder on a SuperLink of its own and return how it ended.

    Args:
        app_dir: folder with the app's ``pyproject.toml``.
        run_config: overrides of ``[tool.flwr.app.config]`` by dotted key; any float, any text.
        on_line: called with each line of the run's log as it comes, without colours and line end.
        num_supernodes: size of the federation, >= 1.
        ray_cpus: processors that Ray counts, and so the number of Flower's own ClientApp actors, >= 1. Ours take none of them (``num_cpus=0``).
        grace: seconds between asking what is left to end and killing it.

    Returns:
        Status and timings. ``exit_code`` is 0 only when the run completed.

    Raises:
        RuntimeError: the SuperLink did not start; the text ends with its log.
    """
    started = time.monotonic()
    # Resolved: the folder's name marks our processes, and must read the same everywhere.
    home = Path(tempfile.mkdtemp(prefix="fl-sim-")).resolve()
    roots: list[subprocess.Popen[bytes]] = []
    with _signals_raise() as ignore_signals:
        try:
            port = _free_port()
            return _run(home, roots, port, app_dir.resolve(), run_config, on_line, _federation(num_supernodes, ray_cpus), started)
        finally:
            ignore_signals()
            _end(home, roots, grace)
            shutil.rmtree(home, ignore_errors=True)


def _run(
    home: Path,
    roots: list[subprocess.Popen[bytes]],
    port: int,
    app_dir: Path,
    run_config: Mapping[str, bool | int | float | str],
    on_line: Callable[[str], None],
    federation: str,
    started: float,
) -> FlowerRun:
    address, config = f"127.0.0.1:{port}", home / "run-config.toml"
    connection = {"address": address, "insecure": True}
    (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": _CONNECTION, _CONNECTION: connection}}), encoding="utf-8")
    config.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
    environment, log = _environment(home), home / "superlink.log"
    # Ray puts its driver's working directory before the app bundle on the workers' sys.path: it must hold no modules.
    (work := home / "work").mkdir()

    def start(name: str, *commands: Sequence[str], stdout: IO[bytes] | int) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-c", _GATED, name, json.dumps(commands)]
        pipe, err = subprocess.PIPE, subprocess.STDOUT
        roots.append(subprocess.Popen(line, cwd=work, env=environment, stdin=pipe, stdout=stdout, stderr=err, start_new_session=True))
        return roots[-1]

    seconds: dict[str, float] = {}
    with log.open("ab") as sink:
        host = ["--host", "127.0.0.1", "--port", str(port)]
        superlink = start("flower-superlink", ["--insecure", "--simulation", "--isolation", "process", *host], stdout=sink)
        _open(superlink)
        parent = ["--parent-pid", str(superlink.pid)]
        superexec = start("flower-superexec", ["--insecure", "--runtime-api-address", address, *parent], stdout=sink)
        submit = ["run", str(app_dir), _CONNECTION, "--run-config", str(config), "--federation-config", federation, "--stream"]
        cli = start("flwr", submit, ["list", _CONNECTION, "--format", "json"], stdout=subprocess.PIPE)
        _wait_until_healthy(superlink, port, log)
        seconds["superlink"] = time.monotonic() - started
        _open(superexec)
        _open(cli)

        marks = {"accepted": "Successfully started run", "simulation": "Starting Flower Simulation", "installed": "Successfully installed"}
        answer: list[str] | None = None
        for line in _lines(cli, [superlink, superexec]):
            if line == _STATUS_FOLLOWS:
                answer = []
                seconds["logs_ended"] = time.monotonic() - started
            elif answer is not None:
                answer.append(line)
            else:
                if "installed" in seconds:  # what comes next is the ServerApp's module or the ServerApp
                    seconds.setdefault("app", time.monotonic() - started)
                for mark, text in marks.items():
                    if mark not in seconds and text in line:
                        seconds[mark] = time.monotonic() - started
                on_line(line)
        status = _status("\n".join(answer or []))
        if status is None:
            for line in _tail(log):
                on_line(line)
        seconds["ended"] = time.monotonic() - started
        return FlowerRun(status or "unknown", seconds)


def _federation(num_supernodes: int, ray_cpus: int) -> str:
    if num_supernodes < 1 or ray_cpus < 1:
        raise ValueError(f"expected num_supernodes >= 1 and ray_cpus >= 1, got {num_supernodes} and {ray_cpus}")
    own_ray = "" if os.environ.get("RAY_ADDRESS") else f" init-args-num-cpus={ray_cpus}"  # Ray refuses it when it joins a cluster
    return f"num-supernodes={num_supernodes} client-resources-num-cpus=1{own_ray}"


def _environment(home: Path) -> dict[str, str]:
    fixed = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",  # default: 1 s
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do anyway, and without its warning
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
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


def _open(gated: subprocess.Popen[bytes]) -> None:
    assert gated.stdin is not None
    with suppress(BrokenPipeError):  # it has ended; who waits for it will notice
        gated.stdin.close()


def _wait_until_healthy(superlink: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while time.monotonic() < deadline and superlink.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                connection.close()
                return
        connection.close()
        time.sleep(0.05)
    raise RuntimeError("\n".join([f"the SuperLink did not start on port {port}:", *_tail(log)]))


def _tail(log: Path) -> list[str]:
    return _ANSI.sub("", log.read_text(encoding="utf-8", errors="replace")).splitlines()[-30:]


def _lines(cli: subprocess.Popen[bytes], needed: Sequence[subprocess.Popen[bytes]]) -> Iterator[str]:
    """The lines that a process prints; they also end when a process that it needs has ended, for then it would wait for ever."""
    assert cli.stdout is not None
    pipe, decoder, rest = cli.stdout.fileno(), codecs.getincrementaldecoder("utf-8")("replace"), ""
    while True:
        if select.select([pipe], [], [], 0.5)[0]:
            chunk = os.read(pipe, 65536)
            *lines, rest = (rest + decoder.decode(chunk, final=not chunk)).split("\n")
            yield from (_ANSI.sub("", line).rstrip("\r") for line in lines)
            if not chunk:
                break
        elif any(process.poll() is not None for process in needed):
            break
    if rest:
        yield _ANSI.sub("", rest)


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


def _end(home: Path, roots: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """End, by id, the processes that carry our folder in their environment and all that they started."""
    asked: set[int] = set()
    deadline = time.monotonic() + grace
    while left := processes_of(home, {root.pid for root in roots if root.poll() is None}):
        late = time.monotonic() > deadline
        for pid in left if late else left - asked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        asked |= left
        if time.monotonic() > deadline + 10.0:  # only a process stuck in the kernel survives SIGKILL
            break
        time.sleep(0.05)
    for root in roots:
        for pipe in (root.stdin, root.stdout):
            if pipe is not None:
                pipe.close()


def processes_of(home: Path, roots: set[int]) -> set[int]:
    """Ids of the living processes among ``roots``, of those with ``FLWR_HOME=home`` in their environment, and of all their descendants.

    Ray's workers write their title over their environment, so only the raylet that started them leads to them.
    Without ``/proc`` (macOS) only the descendants of the roots are found.
    """
    parents: dict[int, int] = {}
    ours = set(roots)
    mark = b"\0FLWR_HOME=" + os.fsencode(home) + b"\0"
    if Path("/proc/self/stat").exists():
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                state, parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    parents[int(folder.name)] = int(parent)
                    if mark in b"\0" + (folder / "environ").read_bytes():
                        ours.add(int(folder.name))
    else:
        table = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
        parents = {int(pid): int(parent) for pid, parent, state in map(str.split, table.splitlines()) if not state.startswith("Z")}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return ours & parents.keys()
