"""Whatever a file of the user does: one error that names the file and the line, or a result that can be trusted.

By default every `STEP`-th case; all of them with FL_SIM_ALL_FILES=1 (about 2,000 runs).
"""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

import fl_sim
from fl_sim.config.resolve import ConfigError
from fl_sim.outside_code import OutsideCodeError, changed_settings, settings_now
from tests.support.misbehaviour import KINDS, SMALL, Case, cases, well_behaved
from tests.support.runs import fingerprint

_active = False  # whether a run of this module is going on


def _tame_child() -> None:
    """A child that a file forks must end by itself; if it does not, it ends here, before it forks in its turn."""
    global _active, _depth
    if _active:
        _depth += 1
        if _depth > 1:
            os._exit(1)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(2)


_depth = 0
os.register_at_fork(after_in_child=_tame_child)
STEP = 1 if os.environ.get("FL_SIM_ALL_FILES") else 23
LIMIT = 60  # seconds of a run
ALL = list(cases())


@contextlib.contextmanager
def limit() -> Generator[None]:
    """A run that hangs raises in the middle of it."""

    def late(*_: object) -> None:
        raise AssertionError(f"the run has taken more than {LIMIT} s")

    global _active
    before, _active = signal.signal(signal.SIGALRM, late), True
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        _active = False
        signal.signal(signal.SIGINT, interrupt)
        with contextlib.suppress(ChildProcessError):  # the children that were forked
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_with(kind: str, source: str, folder: Path, cache_dir: Path) -> fl_sim.Run:
    """A small run with a file of a kind."""
    folder.mkdir(exist_ok=True)
    path = folder / "mine.py"
    path.write_text(source)
    keys = {**SMALL, "data.cache-dir": str(cache_dir), KINDS[kind].key: f"{path}:thing"}
    with limit(), warnings.catch_warnings():
        warnings.resetwarnings()  # those of pytest make errors
        warnings.simplefilter("ignore")
        return fl_sim.run("digits", keys, output_dir=folder / "runs", progress=False)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Callable[[str], tuple[str, list[dict[str, Any]]]]:
    """The last model and the lines of a run with the well-behaved file of a kind."""
    known: dict[str, tuple[str, list[dict[str, Any]]]] = {}

    def of(kind: str) -> tuple[str, list[dict[str, Any]]]:
        if kind not in known:
            folder = run_with(kind, well_behaved(kind), tmp_path_factory.mktemp(kind), cache_dir).folder
            known[kind] = model_and_lines(folder)
        return known[kind]

    return of


def model_and_lines(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """The last model's accuracies stand in the lines; its bytes hold the digest of a model from outside."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "final.safetensors")
    return str({name: tensor.double().sum().item() for name, tensor in tensors.items()}), fingerprint(folder)[1]


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL[::STEP], ids=lambda case: case.name)
def test_a_file_that_misbehaves(case: Case, tmp_path: Path, cache_dir: Path, expected: Callable[[str], Any]) -> None:
    settings, process = settings_now(), os.getpid()
    wanted = expected(case.kind) if case.outcome == "same" else None
    try:
        if case.outcome == "interrupt":
            with pytest.raises(KeyboardInterrupt):
                run_with(case.kind, case.source, tmp_path, cache_dir)
        elif case.outcome == "error":
            with pytest.raises((ConfigError, OutsideCodeError, RuntimeError, ValueError)) as caught:
                run_with(case.kind, case.source, tmp_path, cache_dir)
            words = str(caught.value)
            assert f"{tmp_path / 'mine.py'}" in words
            assert ", line " in words or any(part in words for part in (" has no 'thing'", "null bytes", "can be called, got", "got None"))
        else:
            folder = run_with(case.kind, case.source, tmp_path, cache_dir).folder
            assert wanted is None or model_and_lines(folder) == wanted
    finally:
        assert os.getpid() == process, "a child that was forked has come back"
    assert changed_settings(settings) == []
    if case.outcome in ("error", "interrupt"):
        assert not list(tmp_path.rglob("summary.json")), "no half-written result"
    assert not list(tmp_path.rglob(".*.part"))
