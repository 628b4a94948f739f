"""Ray for the duration of a command: started on this machine, or joined at RAY_ADDRESS. Nothing is left behind."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from fl_sim.signals import signals_raise

# The longest path that Ray makes below its temporary folder. With the folder it must fit the 107 bytes of a Unix socket's name.
_SOCKET = "session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default of Ray; setting it avoids a warning
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
GRACE = 2.0  # seconds from SIGTERM to SIGKILL for a process that has not ended


@contextmanager
def ray_running() -> Generator[None]:
    """Ray is initialised inside the block. After it, every process that was started for Ray has ended."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray  # it reads the settings at import

    if ray.is_initialized():  # by the user, in a notebook
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    home = Path(tempfile.mkdtemp(prefix="fl-sim-", dir=_short_folder()))
    with signals_raise() as ignore_signals:
        try:
            if address:
                ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
            else:  # "local": never join a cluster of somebody else on this machine. Our actors reserve no CPUs
                ray.init(
                    "local", num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, _temp_dir=str(home)
                )
            with signals_raise():  # again: `ray.init` overwrites the handler of SIGTERM
                yield
        finally:
            ignore_signals()
            processes = _processes_of(home)
            with suppress(Exception):  # its processes are ended below in any case
                ray.shutdown()
            _end(processes)
            shutil.rmtree(home, ignore_errors=True)


def _short_folder() -> str | None:
    """The folder for temporary files; /tmp instead if its name is too long for a socket in it, or has characters that Ray cannot write."""
    usual = tempfile.gettempdir()
    fits = usual.isascii() and len(os.fsencode(Path(usual) / "fl-sim-12345678" / _SOCKET)) <= 107
    return usual if fits or not os.access("/tmp", os.W_OK) else "/tmp"


def _processes_of(home: Path) -> set[psutil.Process]:
    """Our child processes that have the folder on their command line, and all their descendants."""
    processes: set[psutil.Process] = set()
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(str(home) in word for word in child.cmdline()):
                processes |= {child, *child.children(recursive=True)}
    return processes


def _end(processes: set[psutil.Process]) -> None:
    """Wait for processes (known by id and start time) to end; terminate and then kill those that do not."""
    _, alive = psutil.wait_procs(list(processes), timeout=GRACE)
    for act in (psutil.Process.terminate, psutil.Process.kill):
        for process in alive:
            with suppress(psutil.Error):
                act(process)
        _, alive = psutil.wait_procs(alive, timeout=GRACE)
