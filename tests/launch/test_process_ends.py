"""Files of the user that call `os._exit` in the command's own process: one error with the file and the line, never a silent end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fl_sim.outside_code import OutsideCodeError, error_words, outside_call
from fl_sim.process_ends import ENDS
from tests.support.misbehaviour import KINDS, SMALL, well_behaved
from tests.support.small_run import words


def call(code: str, **names: Any) -> None:
    """Code as if it were from outside."""
    with outside_call(lambda error: OutsideCodeError(error_words(error))):
        exec(compile(code, "/own/mine.py", "exec"), {"os": os, **names})  # as a file of the user


IN_A_CHILD = """
import os, sys
from tests.launch.test_process_ends import call
call({code!r})
"""


@pytest.mark.parametrize(
    "code",
    [
        "os._exit(3)",
        "os.abort()",
        "os.execv('/bin/true', ['true'])",
        "os.execlp('true', 'true')",
        "\nfrom os import _exit\n_exit(0)",
        "try:\n    os._exit(0)\nexcept Exception:\n    pass",
    ],
)
def test_the_end_of_the_process_is_an_error_with_its_line(code: str) -> None:
    """In another process, which would end without a word."""
    done = subprocess.run([sys.executable, "-c", IN_A_CHILD.format(code=code)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    line = 1 + next(number for number, text in enumerate(code.split("\n")) if "_exit(" in text or "abort(" in text or "exec" in text)
    assert f"OutsideCodeError: /own/mine.py, line {line}: ProcessEndError: os." in done.stderr
    assert "would end the whole process" in done.stderr


def test_afterwards_the_functions_are_as_before_and_a_kept_one_works() -> None:
    before, kept = {name: getattr(os, name) for name in ENDS}, list[Any]()
    call("kept.append(os._exit)", kept=kept)
    call("call('pass')", call=call)
    assert {name: getattr(os, name) for name in ENDS} == before
    if not (child := os.fork()):
        kept[0](7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_child_that_it_forks_may_end() -> None:
    codes: list[int] = []
    call("child = os.fork() or os._exit(5)\ncodes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))", codes=codes)
    assert codes == [5]


def test_blocks_of_several_threads_leave_the_functions_as_they_were() -> None:
    before, inside, ends = os._exit, threading.Event(), threading.Event()
    other = threading.Thread(target=call, args=("inside.set(); ends.wait(60)",), kwargs={"inside": inside, "ends": ends})
    other.start()
    inside.wait(60)
    call("pass")
    assert os._exit is not before, "the other thread is in its block"
    ends.set()
    other.join()
    assert os._exit is before


def exiting(kind: str, at: int) -> str:
    """A file of a kind that ends its process in a call."""
    return (
        KINDS[kind]
        .source.replace("{top}", "")
        .replace("{call}", f"    if CALLS >= {at}: os._exit(0)")
        .replace("{result}", KINDS[kind].result)
    )


def run_it(source: str, kind: str, folder: Path, cache_dir: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """A run of the command with a file, in another process."""
    path = folder / "mine.py"
    path.write_text(source)
    keys = {**SMALL, "data.cache-dir": str(cache_dir), KINDS[kind].key: f"{path}:thing", **more}
    command = [sys.executable, "-m", "experiments", "run", "digits", "--transport", "inline", *words(keys), "-o", str(folder / "runs")]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "at"), [("attack", 2), ("rule", 2), ("strategy", 2), ("data", 0), ("forward", 60)])
def test_a_file_that_ends_the_process_ends_the_run_with_an_error(kind: str, at: int, tmp_path: Path, cache_dir: Path) -> None:
    done = run_it(exiting(kind, at), kind, tmp_path, cache_dir)
    line = 1 + next(number for number, text in enumerate(exiting(kind, at).split("\n")) if "os._exit" in text)
    assert done.returncode in (1, 2)
    errors = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert f"{tmp_path / 'mine.py'}, line {line}: ProcessEndError: os._exit would end the whole process" in errors[0]
    assert not list(tmp_path.rglob("summary.json"))
    assert not list(tmp_path.rglob(".*.part"))


@pytest.mark.slow
def test_it_can_be_recorded_as_what_an_attack_raises(tmp_path: Path, cache_dir: Path) -> None:
    done = run_it(exiting("attack", 2), "attack", tmp_path, cache_dir, **{"attack.on-error": "record"})
    assert done.returncode == 0, done.stderr
    (rounds,) = tmp_path.rglob("rounds.jsonl")
    reasons = {reason for text in rounds.read_text().splitlines() for reason in json.loads(text).get("failures", {}).values()}
    assert len(reasons) == 1
    assert "ProcessEndError: os._exit would end the whole process" in reasons.pop()

    assert run_it(well_behaved("attack"), "attack", tmp_path, cache_dir).returncode == 0
