"""A run's folder: configuration, one line per round, the last model, and the summary, which marks the run as complete."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.records.identity import run_hash
from experiments.records.reading import DamagedError, read_lines, read_meta
from experiments.records.reading import read_rounds as read_rounds
from experiments.records.reading import read_summary as read_summary
from experiments.records.trackers import Trackers
from fl_sim.atomic_files import remove_parts, save_tensors, write_whole, writing
from fl_sim.config.keys import Config
from fl_sim.config.resolve import to_flat, to_json
from fl_sim.data.federation import load_federation
from fl_sim.device import device_of

GIT_LIMIT = 10.0  # seconds in which git must answer
FAILURE = "failure.txt"
PACKAGES = ("flwr", "torch", "torchvision", "numpy", "ray")


def run_folder(output_dir: Path, config: Config) -> Path:
    """`DIR/<name>-<hash>`."""
    return output_dir / f"{config.name}-{run_hash(config)}"


def is_complete(folder: Path) -> bool:
    """Whether a run is complete: whether it has a summary, be it damaged."""
    return os.path.isfile(folder / "summary.json")


def write_failure(folder: Path, sentence: str) -> None:
    """Write `failure.txt`, why a run failed: it is there until the run goes on. What cannot be written is left out."""
    with suppress(OSError):  # CannotWriteError is one
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / FAILURE, sentence + "\n")


def failure_of(folder: Path) -> str:
    """Why a run failed; empty if it is complete, if it was interrupted, or if it goes on."""
    try:
        return "" if is_complete(folder) else (folder / FAILURE).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


class ResumePoint(NamedTuple):
    """Where an interrupted run continues: the size in bytes to which `rounds.jsonl` is cut (None: the run starts from the beginning), the
    name of the checkpoint, and the names of damaged ones."""

    size: int | None = None
    checkpoint: str | None = None
    damaged: tuple[str, ...] = ()


def begin_folder(folder: Path, *, continues: bool) -> None:
    """Make the folder of a run for a session: empty, or with what the run continues from, without leftovers and a failure. Raises
    CannotWriteError."""
    with writing(folder):
        if folder.exists() and not continues:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        remove_parts(folder)
        (folder / FAILURE).unlink(missing_ok=True)


class RunRecords:
    """Writes a run's folder. An incomplete run of the same configuration is continued from its resume point, or replaced.

    Args: track, whether the trackers get the lines (else another process passes them on). Raises DamagedError if lines of a run to be
    continued are damaged."""

    def __init__(self, folder: Path, config: Config, resume: ResumePoint, *, track: bool = True) -> None:
        resumes = resume.size is not None
        self._sessions = _sessions(folder) if resumes else []
        begin_folder(folder, continues=resumes)
        with writing(folder):
            if resume.size is not None:
                os.truncate(folder / "rounds.jsonl", resume.size)
        lines = read_lines(folder) if resumes else []  # raises for a damaged one, before anything is written
        self.folder = folder
        self._sessions.append(_session(config, resume))
        write_whole(folder / "config.json", _pretty(json.loads(to_json(to_flat(config)))))
        self._write_meta(config)
        self._rounds = (folder / "rounds.jsonl").open("a", encoding="utf-8")
        try:
            self._trackers = Trackers(folder, config if track else config.model_copy(update={"tracking": "none"}))
        except BaseException:
            self._rounds.close()
            raise
        for line in lines:
            self._trackers.on_round(line)

    def round(self, line: Mapping[str, Any]) -> None:
        """Append the line of one round and flush."""
        line = plain(line)
        with writing(self.folder / "rounds.jsonl"):
            self._rounds.write(json.dumps(line) + "\n")
            self._rounds.flush()
        self._trackers.on_round(line)

    def lines(self) -> list[dict[str, Any]]:
        """The rounds so far."""
        return read_lines(self.folder)

    def size(self) -> int:
        """The size of `rounds.jsonl` in bytes, after flushing it to the disk."""
        with writing(self.folder / "rounds.jsonl"):
            os.fsync(self._rounds.fileno())
            return self._rounds.tell()

    def calibration(self, record: Mapping[str, Any]) -> None:
        """Write `calibration.json`: DGC's thresholds, and the scores of the clean rounds that they were fitted to."""
        write_whole(self.folder / "calibration.json", _pretty(plain(record)))

    def cleaning(self, record: Mapping[str, Any]) -> None:
        """Write `cleaning.json`: the threshold and the bins of a cleaning, and some images before and after it; nothing if it is empty."""
        if record:
            write_whole(self.folder / "cleaning.json", json.dumps(plain(record), allow_nan=False) + "\n")

    def model(self, state: Mapping[str, Tensor], record: Mapping[str, str]) -> None:
        """Write `final.safetensors`: the attacked track's last model, by the names of its parameters."""
        save_tensors(self.folder / "final.safetensors", state, record)

    def finish(self, summary: Mapping[str, Any], config: Config) -> None:
        """Write `summary.json`, last of all: the run is complete."""
        with writing(self.folder / "rounds.jsonl"):
            self._rounds.close()
        self._write_meta(config, finished=_now())
        write_whole(self.folder / "summary.json", _pretty(plain(summary)))
        self._trackers.close(plain(summary))

    def close(self) -> None:
        """Close files and trackers. The run stays incomplete unless `finish` was called."""
        with writing(self.folder / "rounds.jsonl"):
            self._rounds.close()
        self._trackers.close({})

    def _write_meta(self, config: Config, **more: str) -> None:
        """Write `meta.json`: versions, device and commit of the last session, the data, start and end of the run, and every session."""
        last = {key: value for key, value in self._sessions[-1].items() if key in ("versions", "device", "git_commit")}
        meta = {**last, "data": _data(config), "started": self._sessions[0]["started"], **more, "sessions": self._sessions}
        write_whole(self.folder / "meta.json", _pretty(meta))


def _sessions(folder: Path) -> list[dict[str, Any]]:
    """The sessions before this one; of a damaged meta.json none, and a line says so."""
    try:
        return list(read_meta(folder)["sessions"])
    except (DamagedError, KeyError, TypeError) as error:
        print(f"fl-sim: {error}; the sessions before this one are not in it any more", flush=True)
        return []


def _session(config: Config, resume: ResumePoint) -> dict[str, Any]:
    """The record of one process that works on a run: start, versions, device, the checkpoint it resumes from, and damaged ones."""
    cpu = f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    return {
        "versions": _versions(),
        "device": torch.cuda.get_device_name() if device_of(config).type == "cuda" else cpu,
        "git_commit": _git_commit(),
        "started": _now(),
        "resumed_from": resume.checkpoint,
        "damaged": list(resume.damaged),
    }


def _data(config: Config) -> dict[str, Any]:
    """The record of the data that a run is made from."""
    dataset = load_federation(config).dataset
    return {
        "fingerprint": dataset.fingerprint,
        "train": len(dataset.train.labels),
        "test": len(dataset.test.labels),
        "classes": dataset.num_classes,
        "shape": list(dataset.image_shape),
        "notes": list(dataset.notes),
    }


def plain(value: Any) -> Any:
    """A value for strict JSON: NaN and infinity become None, tuples become lists."""
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
    """The git commit of the checkout that this file is in; empty if there is none, as in an app bundle (a process-wide constant)."""
    here = Path(__file__).parent.parent.parent
    if not (here / ".git").exists() or shutil.which("git") is None:
        return ""
    try:
        result = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=GIT_LIMIT
        )
    except subprocess.TimeoutExpired:
        return ""
    return result.stdout.strip()
