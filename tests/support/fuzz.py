"""How many folders, tables and files the fuzzing tests try: few in the suite, `FL_SIM_FUZZ=500` for as many; and a limit for each."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("FL_SIM_FUZZ", "30"))
LIMIT = 30  # seconds for one example: whatever waits longer hangs

fuzzing = settings(
    max_examples=EXAMPLES, derandomize="FL_SIM_FUZZ" not in os.environ, suppress_health_check=list(HealthCheck), deadline=None
)


@contextmanager
def limited() -> Iterator[None]:
    """Raises TimeoutError in a block that takes longer than `LIMIT`."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"it hangs: longer than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
