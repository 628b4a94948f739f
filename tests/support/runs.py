"""Whole runs in this process, and what they left."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from clients.client_app import answer
from experiments.records.folder import read_summary
from experiments.run.execute import execute_run
from fl_sim.config.keys import Config
from fl_sim.grid.transports import InlineTransport, Transport
from fl_sim.model.saved import load_model
from fl_sim.model.vectors import flat_parameters


def run(config: Config, folder: Path, transport: Transport | None = None) -> tuple[dict[str, Any], Path]:
    """Execute a run; its summary and its folder."""
    place = execute_run(config, folder, transport or InlineTransport(answer), lambda *_: None)
    return read_summary(place), place


def theta(folder: Path) -> torch.Tensor:
    """The last model (d,) of a run."""
    return flat_parameters(load_model(folder))


def lines(folder: Path, track: str = "attacked") -> list[dict[str, Any]]:
    """A track's lines without timings."""
    return [line for line in fingerprint(folder)[1] if line["track"] == track]


def fingerprint(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """The bytes of the last model, and the lines of all tracks without timings."""
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in records:
        del line["seconds"]
    return hashlib.sha256((folder / "final.safetensors").read_bytes()).hexdigest(), records
