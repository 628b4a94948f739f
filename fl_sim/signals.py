"""Signals that end the command run its clean-up first, so that the processes it started end too."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def signals_raise() -> Generator[Callable[[], None]]:
    """Inside the block SIGTERM and SIGHUP raise SystemExit. Yields a function that makes the process ignore them, and SIGINT, until the
    block ends: for the clean-up.
    """
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
