"""Waits on other processes: each has a limit, and its error says what was waited for."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from fl_sim.atomic_files import CannotWriteError, writing

PATIENCE = 3600.0  # seconds without a sign of life after which a process that is at work is given up
STRANGER = 60.0  # seconds that a lock may be held by a program that left no record of itself
NOTICE = 30.0  # seconds from one line about a wait to the next


class ProcessError(RuntimeError):
    """Another process did not start, did not answer, or holds what is needed. The message names it and the limit."""


@contextmanager
def locked(path: Path, task: str, limit: float = PATIENCE) -> Generator[Callable[[], None]]:
    """Hold a file lock inside the block. The folder of the file is made.

    Yields a function for work that takes long: each call is a sign of life for the processes that wait. While this process waits it prints
    a line every `NOTICE` seconds. It gives up after `limit` seconds without a sign of life of the holder, or after `STRANGER` seconds if
    the holder is no process of ours that lives.

    Args: task, what the holder does with it ("trains the burn-in"). Raises ProcessError with the file and the holder, CannotWriteError if
    the file cannot be locked.
    """
    record = path.with_name(f"{path.name}.holder")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquired(path, record, task, limit)
    try:
        with suppress(OSError):  # the record only serves messages
            record.write_text(f"{os.getpid()}\n{socket.gethostname()}\n{' '.join(sys.argv)[:200]}\n", encoding="utf-8", errors="replace")
        yield lambda: _touch(record)
    finally:
        with suppress(OSError):
            record.unlink()
        lock.release()


def _acquired(path: Path, record: Path, task: str, limit: float) -> FileLock:
    """The lock of a file, when it is free."""
    lock, last_sign = FileLock(path), _sign(record)
    since = told = time.monotonic()
    while True:
        holder = holder_of(record)
        allowed = limit if holder else min(limit, STRANGER)
        left = since + allowed - time.monotonic()
        try:
            lock.acquire(timeout=max(min(NOTICE / 10, left), 0.0))
            return lock
        except Timeout:
            pass
        except NotImplementedError:
            raise CannotWriteError(f"{path} could not be locked: its file system has no locks") from None
        if (sign := _sign(record)) != last_sign:
            since, last_sign = time.monotonic(), sign
        elif left <= 0.0:
            who = holder or "a program that is not fl-sim"
            raise ProcessError(f"{path} has been locked for {allowed:.0f} s without a sign of life by {who}, which {task}; end it")
        if time.monotonic() - told >= NOTICE:
            told = time.monotonic()
            print(f"fl-sim: waiting for {holder or 'another program'}, which {task} ({path})", flush=True)


def holder_of(record: Path) -> str:
    """The process that a lock's record names, in words; empty if there is none, or if it has ended."""
    try:
        pid, host, command = record.read_text(encoding="utf-8", errors="replace").splitlines()[:3]
        if host == socket.gethostname() and not psutil.pid_exists(int(pid)):
            return ""
    except (OSError, ValueError):
        return ""
    return f"process {pid} on {host} ({command})"


def _sign(record: Path) -> int:
    """The time of the last sign of life, in ns; 0 without a record."""
    with suppress(OSError):
        return record.stat().st_mtime_ns
    return 0


def _touch(record: Path) -> None:
    with suppress(OSError):
        record.touch()
