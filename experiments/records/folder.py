"""A run's folder: configuration, a line a round, the last model, and the summary that marks it complete."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.records.trackers import Trackers
from fl_sim.atomic_files import remove_parts, save_tensors, write_whole, writing
from fl_sim.config.keys import Config
from fl_sim.config.resolve import config_hash, to_flat, to_json
from fl_sim.device import device_of

PACKAGES = ("flwr", "torch", "torchvision", "numpy", "ray")


def run_folder(output_dir: Path, config: Config) -> Path:
    """`DIR/<name>-<hash>`."""
    return output_dir / f"{config.name}-{config_hash(config)}"


def is_complete(folder: Path) -> bool:
    """Whether a run ended: its summary is there."""
    return (folder / "summary.json").is_file()


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a complete run."""
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of `rounds.jsonl`, in the order written. Raises ValueError naming the file and the line that is damaged."""
    path, lines = folder / "rounds.jsonl", list[dict[str, Any]]()
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            lines.append(json.loads(text))
        except ValueError:
            raise ValueError(f"{path}, line {number} is damaged: {text[:60]!r}") from None
    return lines


def read_rounds(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of `rounds.jsonl` by track, in the order written."""
    tracks: dict[str, list[dict[str, Any]]] = {}
    for line in read_lines(folder):
        tracks.setdefault(line["track"], []).append(line)
    return tracks


class Continued(NamedTuple):
    """Where an interrupted run goes on: the bytes of `rounds.jsonl` that are kept (None: it begins anew), the checkpoint that says so, and
    those that were damaged."""

    size: int | None = None
    checkpoint: str | None = None
    damaged: tuple[str, ...] = ()


class RunRecords:
    """Writes a run's folder. An earlier, incomplete run of the same configuration is continued, or replaced."""

    def __init__(self, folder: Path, config: Config, continued: Continued) -> None:
        goes_on = continued.size is not None
        self._sessions = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["sessions"] if goes_on else []
        with writing(folder):
            if folder.exists() and not goes_on:
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            remove_parts(folder)
            if continued.size is not None:
                os.truncate(folder / "rounds.jsonl", continued.size)
        self.folder = folder
        self._sessions.append(_session(config, continued))
        write_whole(folder / "config.json", _pretty(json.loads(to_json(to_flat(config)))))
        self._write_meta(config)
        self._rounds = (folder / "rounds.jsonl").open("a", encoding="utf-8")
        self._trackers = Trackers(folder, config)
        for line in self.lines():
            self._trackers.on_round(line)

    def round(self, line: Mapping[str, Any]) -> None:
        """Append one round and flush."""
        line = plain(line)
        with writing(self.folder / "rounds.jsonl"):
            self._rounds.write(json.dumps(line) + "\n")
            self._rounds.flush()
        self._trackers.on_round(line)

    def lines(self) -> list[dict[str, Any]]:
        """The rounds so far."""
        return read_lines(self.folder)

    def size(self) -> int:
        """Bytes of `rounds.jsonl`, all of them on the disk."""
        with writing(self.folder / "rounds.jsonl"):
            os.fsync(self._rounds.fileno())
            return self._rounds.tell()

    def calibration(self, record: Mapping[str, Any]) -> None:
        """`calibration.json`: DGC's thresholds, and the scores of the clean rounds that they come from."""
        write_whole(self.folder / "calibration.json", _pretty(plain(record)))

    def model(self, state: Mapping[str, Tensor], record: Mapping[str, str]) -> None:
        """`final.safetensors`: the attacked track's last model, by the names of its parameters."""
        save_tensors(self.folder / "final.safetensors", state, record)

    def finish(self, summary: Mapping[str, Any], config: Config) -> None:
        """At the very end `summary.json`: the run is complete."""
        with writing(self.folder / "rounds.jsonl"):
            self._rounds.close()
        self._write_meta(config, finished=_now())
        write_whole(self.folder / "summary.json", _pretty(plain(summary)))
        self._trackers.close(plain(summary))

    def close(self) -> None:
        """Close the open file; the folder stays incomplete unless `finish` was called."""
        with writing(self.folder / "rounds.jsonl"):
            self._rounds.close()
        self._trackers.close({})

    def _write_meta(self, config: Config, **more: str) -> None:
        """What the run was made with: the last session's, when it began and ended, and each session (one but for interruptions)."""
        last = {key: value for key, value in self._sessions[-1].items() if key in ("versions", "device", "git_commit")}
        meta = {**last, "started": self._sessions[0]["started"], **more, "sessions": self._sessions}
        write_whole(self.folder / "meta.json", _pretty(meta))


def _session(config: Config, continued: Continued) -> dict[str, Any]:
    """One process that worked on a run: when, with what, from which checkpoint on, and which were damaged."""
    cpu = f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    return {
        "versions": _versions(),
        "device": torch.cuda.get_device_name() if device_of(config).type == "cuda" else cpu,
        "git_commit": _git_commit(),
        "started": _now(),
        "resumed_from": continued.checkpoint,
        "damaged": list(continued.damaged),
    }


def plain(value: Any) -> Any:
    """JSON without NaN: not-a-number and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@cache
def _git_commit() -> str:
    """The commit of the checkout that this file is in, or "" (an app bundle has none); asked once a process."""
    here = Path(__file__).parent.parent.parent
    if not (here / ".git").exists() or shutil.which("git") is None:
        return ""
    found = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()
