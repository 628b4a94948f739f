"""Signals that end the command run its clean-up first, so that the processes it started end too; and a limit for code of other people."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class EndedBySignalError(SystemExit):
    """SIGTERM or SIGHUP came. Code from outside may not swallow it."""


_deaf = threading.Event()  # set while child processes are started that Ctrl-C must not reach


def _after_fork() -> None:
    if _deaf.is_set():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if hasattr(os, "register_at_fork"):  # such hooks run in order of registration: this module is imported before others that have some
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def children_ignore_ctrl_c() -> Generator[None]:
    """Child processes that are started inside the block ignore Ctrl-C, which a terminal sends to them too. Else one that has not become
    another program yet would print a traceback. Their parent ends them."""
    _deaf.set()
    try:
        yield
    finally:
        _deaf.clear()


@contextmanager
def signals_raise() -> Generator[Callable[[], None]]:
    """Inside the block SIGTERM and SIGHUP raise SystemExit. Yields a function that makes the process ignore them, and SIGINT, until the
    block ends: for the clean-up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise EndedBySignalError(128 + number)

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


@contextmanager
def signals_remembered() -> Generator[Callable[[], None]]:
    """For a block of others' code, which may swallow exceptions. Yields a function that raises for a signal that came inside the block, as
    its handler should have done."""
    came: list[int] = []

    def raise_again() -> None:
        if came:
            raise KeyboardInterrupt if came[-1] == signal.SIGINT else EndedBySignalError(128 + came[-1])

    if threading.current_thread() is not threading.main_thread():
        yield raise_again
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)
        before[number](number, frame)

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, remember)
    try:
        yield raise_again
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not set from Python
                signal.signal(number, handler)


@contextmanager
def swallowed_signals_raise() -> Generator[None]:
    """A signal that comes inside the block and whose exception is swallowed there raises at the end of the block."""
    with signals_remembered() as raise_again:
        yield
    raise_again()


@contextmanager
def time_limit(seconds: float, message: str) -> Generator[None]:
    """Inside the block TimeoutError with a message is raised after so many seconds. In the main thread only, and only if nobody else has an
    alarm set; elsewhere there is no limit."""
    usable = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if not usable or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def expire(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(message)

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
