"""Ray for the time of a command: started on this machine, or the cluster of RAY_ADDRESS joined. Nothing is left behind."""

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

# Longest path that Ray puts below its temporary folder; the whole must fit the 107 bytes of a Unix socket's name.
_SOCKET = "session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do anyway, and without its warning
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
GRACE = 2.0  # seconds between asking what is left to end and killing it


@contextmanager
def ray_running() -> Generator[None]:
    """Ray is initialised inside the block, and what was started for it has ended after it."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray  # it reads the settings when it is imported

    if ray.is_initialized():  # in a notebook: the user's own
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    home = Path(tempfile.mkdtemp(prefix="fl-sim-", dir=_short_folder()))
    with signals_raise() as ignore_signals:
        try:
            if address:
                ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
            else:  # "local": not a cluster that somebody else started on this machine; our own actors take none of its CPUs
                ray.init(
                    "local", num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, _temp_dir=str(home)
                )
            yield
        finally:
            ignore_signals()
            started = _processes_of(home)
            with suppress(Exception):  # whatever it says, what it started is ended below
                ray.shutdown()
            _end(started)
            shutil.rmtree(home, ignore_errors=True)


def _short_folder() -> str | None:
    """The folder for temporary files, or /tmp where its name is too long, or of letters that Ray cannot write, for a socket in it."""
    usual = tempfile.gettempdir()
    fits = usual.isascii() and len(os.fsencode(Path(usual) / "fl-sim-12345678" / _SOCKET)) <= 107
    return usual if fits or not os.access("/tmp", os.W_OK) else "/tmp"


def _processes_of(home: Path) -> set[psutil.Process]:
    """Our descendants that work in a folder, and all that they started."""
    processes: set[psutil.Process] = set()
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any(str(home) in word for word in child.cmdline()):
                processes |= {child, *child.children(recursive=True)}
    return processes


def _end(processes: set[psutil.Process]) -> None:
    """Wait for processes, by id and start time, to end; ask and then kill those that do not."""
    _, left = psutil.wait_procs(list(processes), timeout=GRACE)
    for act in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            with suppress(psutil.Error):
                act(process)
        _, left = psutil.wait_procs(left, timeout=GRACE)
