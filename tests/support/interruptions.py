"""`python -m tests.support.interruptions {kill,ctrl-c} -o DIR`: interrupts `fl-sim run digits` at random, gives the same command again, compares.

The moments are drawn from `--seed`. A command passes if the final model, the rounds and the summary (without timings) are those of a
command that was never interrupted, and if after Ctrl-C or SIGTERM no process of it is left within 10 s. Printed: a line per command, then
how many passed; the same as `interruptions.json` in DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

ROUNDS = ("-c", "schedule.accumulate-rounds=30", "-c", "checkpoint.every=5", "-c", "attack.fire=schedule")
LIMIT = 10.0  # seconds in which everything is to be gone
PATIENCE = 600.0  # seconds for a whole command


def without_timings(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_timings(item) for key, item in value.items() if key != "seconds"}
    return [without_timings(item) for item in value] if isinstance(value, list) else value


def results(out: Path) -> tuple[bytes, list[Any], Any]:
    """Final model, lines and summary of the only run in a folder."""
    (model,) = out.glob("*/final.safetensors")
    lines = [without_timings(json.loads(text)) for text in (model.parent / "rounds.jsonl").read_text().splitlines()]
    return model.read_bytes(), lines, without_timings(json.loads((model.parent / "summary.json").read_text()))


def started(out: Path, transport: str) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "experiments", "run", "digits", "-o", str(out), "--transport", transport, *ROUNDS]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        line, start_new_session=True, stdout=quiet, stderr=quiet, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )


def finish(out: Path, transport: str) -> None:
    if started(out, transport).wait(PATIENCE):
        raise SystemExit(f"the command over {transport} failed in {out}")


def lines_of(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*/rounds.jsonl"))


def living(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_in_round(process: subprocess.Popen[bytes], out: Path, line: int) -> bool:
    """`kill -9` of the process group once so many lines are written. Returns whether the command was still running."""
    until = time.monotonic() + PATIENCE
    while lines_of(out) < line and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    members, running = family(process), process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while living(members):
        time.sleep(0.02)
    return running


def end_at(process: subprocess.Popen[bytes], number: signal.Signals, seconds: float) -> tuple[bool, float]:
    """Ctrl-C of the group, or SIGTERM of the command, after so many seconds. Returns whether it was running, and when all was gone."""
    time.sleep(seconds)
    members, running, began = family(process), process.poll() is None, time.monotonic()
    if running:
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    until = began + 3 * LIMIT
    while (process.poll() is None or living(members)) and time.monotonic() < until:
        time.sleep(0.02)
    return running, time.monotonic() - began


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.interruptions", description=__doc__)
    parser.add_argument("how", choices=("kill", "ctrl-c"))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latest", type=float, default=25.0, help="ctrl-c: seconds after the start")
    parser.add_argument("-o", "--output-dir", type=Path, required=True)
    args = parser.parse_args(argv)
    root, draw, records = args.output_dir.resolve(), random.Random(args.seed), list[dict[str, Any]]()
    finish(root / "whole", "inline")
    expected, last = results(root / "whole"), lines_of(root / "whole")
    for index in range(args.count):
        out = root / f"{args.how}-{index}"
        if args.how == "kill":
            transport = "ray" if index % 5 == 0 else "inline"
            line = draw.randrange(1, last)
            record: dict[str, Any] = {"transport": transport, "line": line}
            record["interrupted"] = kill_in_round(started(out, transport), out, line)
        else:
            transport, number = draw.choice(("ray", "flower", "inline")), draw.choice((signal.SIGINT, signal.SIGTERM))
            moment = draw.uniform(0.4, args.latest)
            record = {"transport": transport, "signal": number.name, "seconds": moment}
            record["interrupted"], record["gone_after"] = end_at(started(out, transport), number, moment)
        finish(out, transport)
        record["same"] = results(out) == expected and not list(out.rglob(".*.part"))
        records.append(record)
        print(f"{index + 1} of {args.count}: {record}", flush=True)
        (root / "interruptions.json").write_text(json.dumps(records, indent=2) + "\n")
    cut = [record for record in records if record["interrupted"]]
    slowest = max((record["gone_after"] for record in cut if "gone_after" in record), default=0.0)
    passed = sum(record["same"] and record.get("gone_after", 0.0) <= LIMIT for record in cut)
    print(
        f"{passed} of {len(cut)} interrupted commands ended as one that was not ({len(records) - len(cut)} had ended before); gone after {slowest:.1f} s at most"
    )
    return int(passed < len(cut) or not all(record["same"] for record in records))


if __name__ == "__main__":
    sys.exit(main())
