"""Runs that a benchmark starts as a user does, in processes of their own, and their times and memory."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.scale.memory import Watch
from experiments.records.folder import read_rounds

LIMIT = 1800.0  # seconds; a process that hangs does not cost the others


def python(words: Sequence[str], limit: float = LIMIT) -> str:
    """What a Python process prints. Raises RuntimeError with its last lines if it fails or takes longer than `limit` seconds."""
    try:
        environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}
        process = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no end within {limit:.0f} s") from None
    if process.returncode:
        raise RuntimeError("\n".join((process.stdout + process.stderr).strip().splitlines()[-5:]))
    return process.stdout


def timed_run(preset: str, keys: Mapping[str, Any], out: Path, transport: str = "inline") -> dict[str, Any]:
    """An `fl-sim run` in the empty folder `out`. Median seconds of a `round` without evaluation, of the workers' computation (`compute`)
    and of the strategy (`aggregate`) in it, the first two rounds not counted; and the most memory of all its processes in bytes (`peak`).

    Raises RuntimeError if it fails.
    """
    shutil.rmtree(out, ignore_errors=True)
    overrides = [word for key, value in keys.items() for word in ("-c", f"{key}={value if isinstance(value, str) else json.dumps(value)}")]
    watch = Watch()
    watch.start()
    try:
        python(["-m", "experiments", "run", preset, "--transport", transport, "-o", str(out), *overrides])
    finally:
        watch.end()
    (folder,) = (path.parent for path in out.glob("*/rounds.jsonl"))
    seconds = [line["seconds"] for line in read_rounds(folder)["attacked"]][2:]
    medians = {name: statistics.median(part[key] for part in seconds) for name, key in PARTS.items()}
    return {**medians, "peak": max((sample.pss for sample in watch.samples), default=0)}


PARTS: Mapping[str, str] = {"round": "train", "compute": "compute", "aggregate": "aggregate"}
