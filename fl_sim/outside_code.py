"""Calls of code from outside the repository (`file.py:name`): an error gets the file and the line that raised, and settings of the process
that the code changes are set back, so that it cannot change other numbers unseen.

A monkeypatch, a thread that goes on, and writes into our own objects by other ways are not undone: it is the user's own process.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_sim.process_ends import ends_refused
from fl_sim.signals import EndedBySignalError, signals_remembered

OURS = tuple(str(Path(__file__).parent.parent / package) + os.sep for package in ("fl_sim", "clients", "strategies", "experiments"))
MOST_FRAMES = 12  # of a traceback in a message: a recursion has a thousand


class OutsideCodeError(RuntimeError):
    """Code from outside raised, or returned something that cannot be used. The first line of the message is one sentence with the file and
    the line; the traceback may follow."""


def error_words(error: BaseException, thing: Any = None) -> str:
    """`FILE, line N: Type: first line of the message` of an error that code from outside raised.

    Args: thing, what was called (a function, a class, an instance). The line is the last one in its file, else the last one outside our
    packages and the installed ones. If there is none, as for a call with wrong arguments: `Type: message (FILE, line N)`, where the thing
    is defined.
    """
    if place := place_of(error, thing):
        return f"{place}: {type_and_text(error)}"
    return with_place(type_and_text(error), thing)


def error_report(error: BaseException, thing: Any = None) -> str:
    """`error_words`, and below it the traceback from the first line outside our packages on."""
    frames = traceback.extract_tb(error.__traceback__)
    own = next((number for number, frame in enumerate(frames) if not frame.filename.startswith(OURS)), None)
    if own is None:  # a call with wrong arguments
        return error_words(error, thing)
    lines = traceback.format_list(frames[own:])
    if len(lines) > MOST_FRAMES:
        half = MOST_FRAMES // 2
        lines = [*lines[:half], f"  ... {len(lines) - MOST_FRAMES} lines of calls left out\n", *lines[-half:]]
    return f"{error_words(error, thing)}\n{''.join(lines)}{type_and_text(error)}"


def defined_at(thing: Any) -> str:
    """`FILE, line N` where a thing from outside is defined; empty if unknown, or if it is ours."""
    code = getattr(inspect.unwrap(_subject(thing)), "__code__", None)
    source = _source(thing)
    if not source or str(source).startswith(OURS):
        return ""
    if code:
        return f"{code.co_filename}, line {code.co_firstlineno}"
    try:
        return f"{source}, line {inspect.getsourcelines(_subject(thing))[1]}"
    except (OSError, TypeError):
        return str(source)


def with_place(name: str, thing: Any) -> str:
    """A thing's name for a message, with the place where it is defined."""
    place = defined_at(thing)
    return f"{name} ({place})" if place else name


def end_if_forked(process: int) -> None:
    """End this process at once if it is not the one with that id: code from outside forked it, and it must not go on with our work."""
    if os.getpid() != process:
        os._exit(1)


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception is the user's or the system's wish to end the process."""
    return isinstance(error, KeyboardInterrupt | EndedBySignalError)


def placed(text: str, thing: Any) -> str:
    """A message about a thing, with the place where it is defined unless the message has a place in the thing's file."""
    source = _source(thing)
    return text if source and f"{source}, line " in text else with_place(text, thing)


@contextmanager
def outside_call(failure: Callable[[BaseException], Exception]) -> Generator[None]:
    """Inside the block code from outside runs. What it raises, `SystemExit` too, becomes `failure(error)`, and so does `os._exit`. Settings
    of the process are as before afterwards, and an interrupt (Ctrl-C, SIGTERM) that it swallowed is raised again. A child process that it
    forked and that comes back here ends at once."""
    process = os.getpid()
    with signals_remembered() as raise_swallowed, settings_kept(), _streams_kept_open(), ends_refused():
        try:
            yield
        except BaseException as error:  # it may raise anything
            if is_interrupt(error):
                raise
            raise_swallowed()
            # contextlib takes a RuntimeError that is caused by a StopIteration for the StopIteration itself
            raise failure(error) from (None if isinstance(error, StopIteration) else error)
        finally:
            end_if_forked(process)
        raise_swallowed()


@contextmanager
def settings_kept() -> Generator[None]:
    """Sets process-wide settings back after the block: of PyTorch, NumPy, warnings, logging, the working folder and the streams. (Random
    generators: `fl_sim.rng.streams.seeded_global_generators`.)"""
    before = settings_now()
    try:
        yield
    finally:
        for name in changed_settings(before):
            _SETTINGS[name][1](before[name])


def settings_now() -> dict[str, Any]:
    """The process-wide settings that code from outside may change, by name."""
    return {name: get() for name, (get, _) in _SETTINGS.items()}


def changed_settings(before: Mapping[str, Any]) -> list[str]:
    """The names of the settings that are no longer as in `before`."""
    now = settings_now()
    return [name for name, value in before.items() if now[name] != value]


class _UnclosableStream:
    """A text stream without `close`: code from outside may not close ours."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def close(self) -> None:
        self._stream.flush()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Any:
        return iter(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _streams_kept_open() -> Generator[None]:
    sys.stdout, sys.stderr = _unclosable(sys.stdout), _unclosable(sys.stderr)
    yield  # `settings_kept` sets them back


def _unclosable(stream: Any) -> Any:
    return stream if stream is None or isinstance(stream, _UnclosableStream) else _UnclosableStream(stream)


def _error_filters() -> list[Any]:
    """The filters that make an error of a warning. Others may stay: packages set them when they are imported."""
    return [entry for entry in warnings.filters if entry[0] == "error"]


def _put_filters(before: list[Any]) -> None:
    kept = [entry for entry in warnings.filters if entry[0] != "error" or entry in before]
    warnings.filters[:] = kept  # pyright: ignore[reportIndexIssue] - typed as a sequence, is a list
    warnings._filters_mutated()  # pyright: ignore - else the changed filters stay in a cache


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # somebody removed it
        return ""


def _put_interrupt(handler: Any) -> None:
    if handler is not None and threading.current_thread() is threading.main_thread():  # None: it was not set from Python
        signal.signal(signal.SIGINT, handler)


def _put_folder(folder: str) -> None:
    if folder:
        os.chdir(folder)


_TINY = torch.full((1,), 1e-40, device="cpu", dtype=torch.float32)  # a denormal number
AUTOCAST = ("cpu", "cuda")


def _denormals() -> bool:
    """Whether denormal numbers are computed with. PyTorch sets it, and does not say it."""
    return bool(_TINY.mul(1.0).any())


def _autocast() -> list[tuple[bool, torch.dtype]]:
    return [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in AUTOCAST]


def _put_autocast(values: list[tuple[bool, torch.dtype]]) -> None:
    for device, (enabled, dtype) in zip(AUTOCAST, values, strict=True):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)


def _anomalies() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _libraries() -> tuple[bool, ...]:
    """Whether oneDNN and cuDNN compute, and how cuDNN chooses its algorithms."""
    cudnn = torch.backends.cudnn
    return bool(torch.backends.mkldnn.enabled), bool(cudnn.enabled), bool(cudnn.benchmark), bool(cudnn.deterministic)


def _put_libraries(values: tuple[bool, ...]) -> None:
    torch.backends.mkldnn.set_flags(values[0])
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = values[1:]


_SETTINGS: Mapping[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "default type": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, torch.set_default_device),
    "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic": (_deterministic, lambda values: torch.use_deterministic_algorithms(values[0], warn_only=values[1])),
    "denormals": (_denormals, lambda computed: torch.set_flush_denormal(not computed)),
    "autocast": (_autocast, _put_autocast),
    "anomaly detection": (_anomalies, lambda values: torch.set_anomaly_enabled(*values)),
    "oneDNN and cuDNN": (_libraries, _put_libraries),
    "precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "NumPy's errors": (np.geterr, lambda values: np.seterr(**values)),
    "recursion": (sys.getrecursionlimit, sys.setrecursionlimit),
    "logging": (lambda: logging.root.manager.disable, logging.disable),
    "warnings": (_error_filters, _put_filters),
    "folder": (_folder, _put_folder),
    "Ctrl-C": (lambda: signal.getsignal(signal.SIGINT), _put_interrupt),
    "stdout": (lambda: sys.stdout, lambda stream: setattr(sys, "stdout", stream)),
    "stderr": (lambda: sys.stderr, lambda stream: setattr(sys, "stderr", stream)),
}


def _subject(thing: Any) -> Any:
    """A function, method or class of a thing, for `inspect`."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    return thing if inspect.isroutine(thing) or inspect.isclass(thing) or inspect.ismodule(thing) or thing is None else type(thing)


def _source(thing: Any) -> Path | None:
    try:
        return Path(inspect.getsourcefile(inspect.unwrap(_subject(thing))) or "") if thing is not None else None
    except TypeError:  # written in C
        return None


def place_of(error: BaseException, thing: Any) -> str:
    """The file and the line of outside code that raised; empty if unknown."""
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        return f"{error.filename}, line {error.lineno}"
    source, frames = _source(thing), traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if source and not str(source).startswith(OURS) and Path(frame.filename) == source]
    foreign = own or [frame for frame in frames if not _is_installed(frame.filename)]
    return f"{foreign[-1].filename}, line {foreign[-1].lineno}" if foreign else ""


@functools.lru_cache(maxsize=512)
def _is_installed(filename: str) -> bool:
    """Whether a file is ours, of an installed package, of Python, or no file."""
    if filename.startswith(("<", *OURS)):
        return True
    roots = {sys.prefix, sys.base_prefix, str(Path(os.__file__).parent), str(Path(torch.__file__).parent.parent)}
    return any(filename.startswith(root + os.sep) for root in roots)


def type_and_text(error: BaseException) -> str:
    """Type and first line of an error, also of one whose text cannot be made."""
    text = ""
    with contextlib.suppress(Exception):
        text = str(error).strip()
    first = next(iter(text.splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
