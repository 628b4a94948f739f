"""`os._exit` and its like, called by code from outside: an error that names the place, instead of a command that ends without a word.

Not refused are a call in another thread, the functions of `posix` themselves, a signal such as SIGKILL, and a crash of compiled code.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

ENDS = ("_exit", "abort", "execv", "execve")  # the other functions of `os` that replace the process call the last two


class ProcessEndError(BaseException):
    """Code from outside called a function that ends or replaces the process at once. (No Exception: few catch it.)"""


_lock = threading.Lock()
_real: dict[str, Callable[..., Any]] = {}  # the functions of `os`, while their stand-ins are in their places
_blocks = 0  # of all threads
_own = threading.local()  # `process`: whose code from outside runs in this thread


@contextmanager
def ends_refused() -> Generator[None]:
    """Inside the block, `ENDS` raise ProcessEndError in this thread. A process that is forked inside it may end."""
    before = getattr(_own, "process", 0)
    _count(1)
    _own.process = os.getpid()
    try:
        yield
    finally:
        _own.process = before
        _count(-1)


def _count(change: int) -> None:
    """Put the stand-ins in place for the first block, and the functions themselves after the last."""
    global _blocks
    with _lock:
        if not _blocks:
            _real.update({name: getattr(os, name) for name in ENDS if hasattr(os, name)})
        _blocks += change
        for name, function in _real.items():
            setattr(os, name, _stand_in(name, function) if _blocks else function)


@functools.cache
def _stand_in(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of `os` that raises in a block. A file may keep it (`from os import _exit`): elsewhere it does what the function does."""

    @functools.wraps(function)
    def refusing(*arguments: Any, **more: Any) -> Any:
        if getattr(_own, "process", 0) == os.getpid():
            raise ProcessEndError(f"os.{name} would end the whole process")
        return function(*arguments, **more)

    return refusing
