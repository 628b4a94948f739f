"""Ray for the duration of a command: started on this machine, or joined at RAY_ADDRESS. Nothing is left behind."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import grpc
import psutil

from fl_sim.config.resolve import ConfigError
from fl_sim.grid.transports import SCRATCH
from fl_sim.signals import children_ignore_ctrl_c, signals_raise, swallowed_signals_raise
from fl_sim.waits import ProcessError

# The longest path that Ray makes below a folder of ours. With the folder it must fit the 107 bytes of a Unix socket's name.
_SOCKET = "fl-sim-12345678/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
_SOCKET_ROOM = 107 - len(_SOCKET) - 1  # bytes that are left for the folder
ANSWER_LIMIT = 10.0  # seconds in which a Ray cluster must answer
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # the question that `ray health-check` asks
_SILENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default of Ray; setting it avoids a warning
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
GRACE = 2.0  # seconds from SIGTERM to SIGKILL for a process that has not ended


@contextmanager
def ray_running() -> Generator[None]:
    """Ray is initialised inside the block. After it, every process that was started for Ray has ended.

    Raises ConfigError if the cluster at RAY_ADDRESS cannot be joined, or if there is no folder for Ray's files; ProcessError if Ray does
    not start.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray  # it reads the settings at import

    if ray.is_initialized():  # by the user, in a notebook
        yield
        return
    address = cluster_address()
    home = Path(tempfile.mkdtemp(prefix="fl-sim-", dir=short_folder()))
    complete = False
    with signals_raise() as ignore_signals:
        try:
            with children_ignore_ctrl_c(), swallowed_signals_raise():  # Ray swallows now and then what a handler raises
                _init(ray, address, home)
            complete = True
            with signals_raise():  # again: `ray.init` overwrites the handler of SIGTERM
                yield
        finally:
            ignore_signals()
            processes = _processes_of(home)
            _kill_autoscaler(processes)
            with suppress(Exception):  # its processes are ended below in any case
                ray.shutdown()
            _end(processes, GRACE if complete else 0.0)  # a Ray that is half there hears nothing, and has nothing to keep
            shutil.rmtree(home, ignore_errors=True)


def _init(ray: Any, address: str, home: Path) -> None:
    """Join the cluster at an address, or start Ray with its files in a folder."""
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address:
            ray.init(address, **quiet)
        else:  # "local": never join a cluster of somebody else on this machine. Our actors reserve no CPUs
            os.environ[SCRATCH] = str(home)  # Ray's processes inherit it: what a killed worker leaves is removed with the folder
            try:
                ray.init("local", num_cpus=1, include_dashboard=False, _temp_dir=str(home), **quiet)
            finally:
                del os.environ[SCRATCH]
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        if address:
            raise ConfigError(
                [f"expected RAY_ADDRESS (--ray-address) to be a Ray cluster that can be joined, got {address!r} ({reason})"]
            ) from error
        raise ProcessError(f"Ray could not be started with its files in {home} (TMPDIR): {reason}") from error


def cluster_address() -> str:
    """The address of the Ray cluster to join (RAY_ADDRESS); empty if a Ray of our own is to be started."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return "" if address == "local" else address


def cluster_problem() -> str:
    """Why the Ray cluster at RAY_ADDRESS cannot be joined; empty if it answers, or if there is no address. Waits up to `ANSWER_LIMIT`."""
    address = cluster_address()
    if not address:
        return ""
    expected = f"expected RAY_ADDRESS (--ray-address) to be that of a running Ray cluster, got {address!r}"
    if address.startswith("ray://"):
        return f"{expected} (Ray Client is not supported: start the command on a machine of the cluster, with HOST:PORT of its head)"
    place = _last_cluster() if address == "auto" else address
    if not place:
        return f"{expected} (no cluster was started on this machine)"
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        return f"{expected} (expected HOST:PORT, or auto)"
    if reason := _no_answer(place):
        return f"{expected} ({reason})" if place == address else f"{expected}, which is {place} ({reason})"
    return ""


def _last_cluster() -> str:
    """The address of the cluster that was started last on this machine, as `auto` finds it; empty if there is none."""
    from ray._private import services  # there is no public function

    try:
        return services.canonicalize_bootstrap_address("auto") or ""
    except Exception:  # ConnectionError, or what another version of Ray raises
        return ""


def _no_answer(address: str) -> str:
    """Why the head of a Ray cluster does not answer at HOST:PORT; empty if it does."""
    try:
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            ask: Any = channel.unary_unary(_ALIVE)
            ask(b"", timeout=ANSWER_LIMIT)
    except grpc.RpcError as error:
        code: Any = error.code()  # pyright: ignore[reportAttributeAccessIssue] - a call that failed is an RpcError and a Call
        if code in _SILENT:
            return "nobody answers there"
        if code == grpc.StatusCode.UNAUTHENTICATED:  # a cluster with tokens: `ray.init` has them
            return ""
        return f"something else than the head of a Ray cluster answers there: {code.name}"
    return ""


def short_folder() -> str:
    """The folder for temporary files; /tmp instead if its name is too long for a socket in it, or has characters that Ray cannot write.

    Raises ConfigError if neither can be used.
    """
    try:
        usual = os.path.realpath(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise ConfigError(
            [f"expected TMPDIR to be a folder that can be written, got {os.environ.get('TMPDIR', '')!r} ({error.strerror})"]
        ) from None
    fits, problem = usual.isascii() and len(usual) <= _SOCKET_ROOM, ""
    for folder in [usual] * fits + ["/tmp"]:
        try:
            with TemporaryFile(dir=folder) as file:
                file.write(b"0")
            return folder
        except OSError as error:
            problem = problem or f"{folder}: {error.strerror}"
    allowed = f"of ASCII characters, at most {_SOCKET_ROOM} bytes long (Ray's sockets lie in it)"
    raise ConfigError([f"expected TMPDIR to be a folder that can be written, {allowed}, got {usual!r} ({problem})"])


def _processes_of(home: Path) -> set[psutil.Process]:
    """Our child processes that have the folder on their command line, and all their descendants."""
    processes: set[psutil.Process] = set()
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(str(home) in word for word in child.cmdline()):
                processes |= {child, *child.children(recursive=True)}
    return processes


def _kill_autoscaler(processes: set[psutil.Process]) -> None:
    """Kill Ray's autoscaler, idle on one machine: `ray.shutdown` would wait a second for it, once its server is gone."""
    for process in processes:
        with suppress(psutil.Error):
            if any(word.endswith("/autoscaler/_private/monitor.py") for word in process.cmdline()):
                process.kill()


def _end(processes: set[psutil.Process], grace: float) -> None:
    """Wait some seconds for processes (known by id and start time) to end; terminate and then kill those that do not."""
    _, alive = psutil.wait_procs(list(processes), timeout=grace)
    for act, seconds in ((psutil.Process.terminate, grace), (psutil.Process.kill, GRACE)):
        for process in alive:
            with suppress(psutil.Error):
                act(process)
        _, alive = psutil.wait_procs(alive, timeout=seconds)
