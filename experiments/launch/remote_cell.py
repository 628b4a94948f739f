"""Runs a whole cell in one worker, on any node of a cluster, so that no round waits for messages.

The worker writes the cell's folder into a temporary one of its node. What changes there is sent, and the process that launched the sweep
writes it into the output folder (`experiments.records.copies`).
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from socket import gethostname

import psutil
import torch

from experiments.records.copies import Changes, Piece
from experiments.records.folder import run_folder
from experiments.run.execute import Progress, execute_copied
from experiments.run.shared_twins import TWINS
from fl_sim.config.resolve import from_json
from fl_sim.grid.transports import SCRATCH, Transport
from fl_sim.waits import ProcessError

INTERVAL = 0.4  # seconds from one look at what changed to the next
PRINTED = "printed"  # in place of a track: the third part of the step is a line that the run printed
PREFIX = "fl-sim-cell-"  # of the name of a cell's temporary folder; then comes the process
Step = tuple[str, int, str, float | None]  # track, round, phase, accuracy in percent


def run_remotely(transport: Transport, config: str, name: str, files: Sequence[Piece]) -> Generator[list[Step] | Piece]:
    """Run a configuration (as JSON) with a transport of this process. Yields the steps of its progress, in lists, what it prints
    (`PRINTED`), and the pieces of what it writes.

    Args: name, of the run's folder; files, those that the run continues from, and clean twins that it may use. Raises what the run raises,
    and ProcessError if the run is another one on this node.
    """
    settings, steps = from_json(config), SimpleQueue[Step | None]()

    def on_step(track: str, round_: int, phase: str, accuracy: float | None) -> None:
        steps.put((track, round_, phase, accuracy))

    def work(output_dir: Path) -> None:
        try:
            torch.set_num_threads(settings.client.threads)
            with contextlib.redirect_stdout(_Printed(steps)):
                if (here := run_folder(output_dir, settings).name) != name:
                    raise ProcessError(f"expected the data and files of {gethostname()} to make the run {name}, got {here}: they differ")
                execute_copied(settings, output_dir, transport, on_step, output_dir / TWINS)
        finally:
            steps.put(None)

    with temporary_folder() as folder, ThreadPoolExecutor(1) as pool:
        changes = Changes(folder, name, files)
        future = pool.submit(work, folder)
        last_yield, pending = time.monotonic(), list[Step]()
        while (step := steps.get()) is not None:
            pending.append(step)
            if time.monotonic() - last_yield > INTERVAL:
                yield pending
                yield from changes.pieces()
                last_yield, pending = time.monotonic(), []
        yield pending
        yield from changes.pieces(ended=future.exception() is None)
        future.result()


def pieces_of(stream: Iterable[list[Step] | Piece], progress: Progress) -> Iterator[Piece]:
    """The pieces of what a remote cell writes; its steps go to `progress`, and what it prints is printed."""
    for value in stream:
        if isinstance(value, Piece):
            yield value
            continue
        for step in value:
            if step[0] == PRINTED:
                print(step[2], flush=True)
            else:
                progress(*step)


@contextlib.contextmanager
def temporary_folder() -> Generator[Path]:
    """A temporary folder of this process. Those of processes that were killed are removed first."""
    root = Path(os.environ.get(SCRATCH) or tempfile.gettempdir())
    for old in root.glob(f"{PREFIX}*-*"):
        pid = old.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=root, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class _Printed(io.TextIOBase):
    """Standard output of a worker, which nobody reads: its lines become steps."""

    def __init__(self, steps: SimpleQueue[Step | None]) -> None:
        self._steps, self._rest = steps, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._steps.put((PRINTED, 0, line, None))
        return len(text)
