"""Runs a whole cell in one worker, so that no round waits for messages."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import torch

from experiments.run.execute import execute_run
from fl_sim.config.resolve import from_json
from fl_sim.grid.transports import Transport

INTERVAL = 0.4  # seconds from one list of steps to the next
PRINTED = "printed"  # in place of a track: the third part of the step is a line that the run printed
Step = tuple[str, int, str, float | None]  # track, round, phase, accuracy in percent


def run_remotely(transport: Transport, config: str, output_dir: str, twins: str) -> Generator[list[Step]]:
    """`execute_run` of a configuration (as JSON) with a transport of this process. Yields the steps of its progress, in lists, and what
    it prints (`PRINTED`).

    Raises what the run raises.
    """
    settings, steps = from_json(config), SimpleQueue[Step | None]()

    def on_step(track: str, round_: int, phase: str, accuracy: float | None) -> None:
        steps.put((track, round_, phase, accuracy))

    def work() -> None:
        try:
            torch.set_num_threads(settings.client.threads)
            with contextlib.redirect_stdout(_Printed(steps)):
                execute_run(settings, Path(output_dir), transport, on_step, twins=Path(twins))
        finally:
            steps.put(None)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        last_yield, pending = time.monotonic(), list[Step]()
        while (step := steps.get()) is not None:
            pending.append(step)
            if time.monotonic() - last_yield > INTERVAL:
                yield pending
                last_yield, pending = time.monotonic(), []
        yield pending
        future.result()


class _Printed(io.TextIOBase):
    """Standard output of a worker, which nobody reads: its lines become steps."""

    def __init__(self, steps: SimpleQueue[Step | None]) -> None:
        self._steps, self._rest = steps, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._steps.put((PRINTED, 0, line, None))
        return len(text)
