"""Checkpoints: the state of a run on disk. A run that was killed continues from it and ends with the same bytes. Safetensors with JSON in
their metadata, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from experiments.records.identity import identity
from experiments.run.history import TRACKS
from experiments.run.track import Position
from fl_sim.atomic_files import load_tensors, save_tensors, writing
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.wire.object_state import State, restore_state, save_state

RECORD = "fl-sim"  # the metadata entry that holds the JSON


class Checkpoint(NamedTuple):
    """A run after a round of a track: the size of `rounds.jsonl` in bytes, and the position in the current track."""

    size: int
    position: Position


class LatestCheckpoint(NamedTuple):
    """The newest usable checkpoint and its file, if there is one, and the newer ones that are damaged."""

    checkpoint: Checkpoint | None
    path: Path | None
    damaged: Sequence[Path]


def write_checkpoint(folder: Path, config: Config, checkpoint: Checkpoint, buffers: Tensor) -> Path:
    """Write `<track>-<round>.safetensors` into a folder, whole or not at all, and delete all but the latest `checkpoint.keep`.

    Its tensors: the strategy's state, with `theta` and `velocity` (d,); batch-norm `buffers` (s,); under `run.` and `rollback.` the state
    of the rest of the run.
    """
    position = checkpoint.position
    run = save_state({"size": checkpoint.size, **position._asdict(), "strategy": None, "rollback": None})
    rollback = position.rollback or State(None, {})
    tensors = {**position.strategy.tensors, "buffers": buffers} if position.strategy else {}
    tensors |= {f"run.{name}": tensor for name, tensor in run.tensors.items()}
    tensors |= {f"rollback.{name}": tensor for name, tensor in rollback.tensors.items()}
    states = {"run": run.json, "strategy": position.strategy.json if position.strategy else None, "rollback": rollback.json}
    record = json.dumps({"config": identity(config), "states": states}, allow_nan=False)
    path = folder / f"{position.track}-{position.round:06d}.safetensors"
    with writing(path):
        folder.mkdir(exist_ok=True)
        save_tensors(path, tensors, {RECORD: record})
        for old in _newest_first(folder)[config.checkpoint.keep :]:
            old.unlink()
    return path


def latest_checkpoint(folder: Path, config: Config) -> LatestCheckpoint:
    """The newest checkpoint in `folder/checkpoint` that is not damaged and whose rounds are all in `rounds.jsonl`.

    Raises ConfigError if a checkpoint is of another configuration, with the keys that differ, or if a file cannot be read.
    """
    damaged: list[Path] = []
    lines = folder / "rounds.jsonl"
    size = lines.stat().st_size if lines.exists() else 0
    for path in _newest_first(folder / "checkpoint"):
        try:
            tensors, texts = load_tensors(path)
            record = json.loads(texts[RECORD])
        except (ValueError, KeyError):
            damaged.append(path)
            continue
        except OSError as error:  # it need not be damaged: another user's file, or a disk that is not mounted
            raise ConfigError([f"{path} cannot be read ({error.strerror or error}); nothing was changed"]) from error
        if problems := _differences(path, record["config"], identity(config)):
            raise ConfigError(problems)
        checkpoint = _checkpoint(record["states"], tensors)
        has_model = checkpoint.position.track == "attacked" or (folder / "final.safetensors").is_file()
        if checkpoint.size <= size and has_model:
            return LatestCheckpoint(checkpoint, path, damaged)
        damaged.append(path)
    return LatestCheckpoint(None, None, damaged)


def _checkpoint(states: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Checkpoint:
    def below(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    run: dict[str, Any] = restore_state(State(states["run"], below("run.")))
    rollback = State(states["rollback"], below("rollback.")) if states["rollback"] is not None else None
    size = run.pop("size")
    run |= {"strategy": State(states["strategy"], tensors), "rollback": rollback}
    return Checkpoint(size, Position(**run))


def _differences(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    keys = [key for key in {**ours, **theirs} if theirs.get(key) != ours.get(key)]
    return [f"{path} is a checkpoint of another configuration: {key} = {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in keys]


def _newest_first(folder: Path) -> list[Path]:
    def rank(path: Path) -> tuple[int, int]:
        track, _, round_ = path.stem.rpartition("-")
        return [*TRACKS].index(track), int(round_)  # pyright: ignore[reportArgumentType]

    paths = [path for path in folder.glob("*-*.safetensors") if path.stem.rpartition("-")[0] in TRACKS and path.stem[-6:].isdigit()]
    return sorted(paths, key=rank, reverse=True)
