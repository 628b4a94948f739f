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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from experiments.records.trackers import open_trackers
from fl_sim.atomic_files import remove_parts, save_tensors, write_whole, writing
from fl_sim.config.keys import Config
from fl_sim.config.resolve import config_hash, to_flat, to_json
from fl_sim.device import device_of

if TYPE_CHECKING:
    from experiments.run.checkpoint import Found

PACKAGES = ("flwr", "torch", "torchvision", "numpy", "ray")


def run_folder(output_dir: Path, config: Config) -> Path:
    """`DIR/<name>-<hash>`."""
    return output_dir / f"{config.name}-{config_hash(config)}"


def run_folders(root: Path) -> list[Path]:
    """The folders of all runs below a folder, itself included."""
    return sorted(path.parent for path in root.rglob("config.json") if (path.parent / "rounds.jsonl").exists())


def is_complete(folder: Path) -> bool:
    """Whether a run ended: its summary is there."""
    return (folder / "summary.json").is_file()


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a complete run."""
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def read_rounds(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of `rounds.jsonl` by track, in the order written."""
    tracks: dict[str, list[dict[str, Any]]] = {}
    for line in _lines(folder):
        tracks.setdefault(line["track"], []).append(line)
    return tracks


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]


class RunRecords:
    """Writes a run's folder. An earlier, incomplete run of the same configuration is continued at the checkpoint found, or replaced."""

    def __init__(self, folder: Path, config: Config, found: Found | None = None) -> None:
        checkpoint = found.checkpoint if found else None
        self._sessions = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["sessions"] if checkpoint else []
        with writing(folder):
            if folder.exists() and not checkpoint:
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            remove_parts(folder)
            if checkpoint:
                os.truncate(folder / "rounds.jsonl", checkpoint.lines)
                shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self.folder, self._goes_on = folder, checkpoint is not None
        self._sessions.append(_session(config, found))
        write_whole(folder / "config.json", _pretty(json.loads(to_json(to_flat(config)))))
        self._write_meta(config)
        self._rounds = (folder / "rounds.jsonl").open("a", encoding="utf-8")
        self._trackers = open_trackers(config, folder)
        for line in self.kept():
            self._track(line)

    def round(self, line: Mapping[str, Any]) -> None:
        """Append one round and flush."""
        with writing(self.folder / "rounds.jsonl"):
            self._rounds.write(json.dumps(plain(line)) + "\n")
            self._rounds.flush()
        self._track(line)

    def _track(self, line: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.round(line)

    def kept(self) -> list[dict[str, Any]]:
        """The rounds that a continued run has already."""
        return _lines(self.folder) if self._goes_on else []

    def size(self) -> int:
        """Bytes of `rounds.jsonl`, all of them on the disk."""
        with writing(self.folder / "rounds.jsonl"):
            os.fsync(self._rounds.fileno())
            return self._rounds.tell()

    def calibration(self, record: Mapping[str, Any]) -> None:
        """`calibration.json`: DGC's thresholds, and the scores of the clean rounds that they come from."""
        write_whole(self.folder / "calibration.json", _pretty(plain(record)))

    def finish(self, model: Mapping[str, Tensor], summary: Mapping[str, Any], config: Config) -> None:
        """The last model, and at the very end `summary.json`: the run is complete."""
        self.close()
        save_tensors(self.folder / "final.safetensors", model)
        self._write_meta(config, finished=_now())
        write_whole(self.folder / "summary.json", _pretty(plain(summary)))

    def close(self) -> None:
        """Close the open file; the folder stays incomplete unless `finish` was called."""
        with writing(self.folder / "rounds.jsonl"):
            self._rounds.close()
        for tracker in self._trackers:
            tracker.close()

    def _write_meta(self, config: Config, **more: str) -> None:
        """What the run was made with: the last session's, when it began and ended, and each session (one but for interruptions)."""
        last = {key: value for key, value in self._sessions[-1].items() if key in ("versions", "device", "git_commit")}
        meta = {**last, "started": self._sessions[0]["started"], **more, "sessions": self._sessions}
        write_whole(self.folder / "meta.json", _pretty(meta))


def _session(config: Config, found: Found | None) -> dict[str, Any]:
    """One process that worked on a run: when, with what, from which checkpoint on, and which were damaged."""
    cpu = f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    return {
        "versions": _versions(),
        "device": torch.cuda.get_device_name() if device_of(config).type == "cuda" else cpu,
        "git_commit": _git_commit(),
        "started": _now(),
        "resumed_from": found.path.name if found and found.path else None,
        "damaged": [path.name for path in found.damaged] if found else [],
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
    here = Path(__file__).parent.parent
    if not (here.parent / ".git").exists() or shutil.which("git") is None:
        return ""
    found = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()
