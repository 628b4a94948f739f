"""`fl-sim watch`: how far the runs of a folder are, from their records alone. Another process plays them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.launch.progress.pace import duration
from experiments.records.folder import failure_of, is_complete
from experiments.records.reading import DamagedError, read_config
from experiments.records.so_far import RoundsSoFar
from experiments.run.phases import expected_rounds
from experiments.sweep.study import RECORD, read_study, run_folders
from fl_sim.config.resolve import config_of

LOOK_EVERY = 2.0  # seconds
LINE_EVERY = 30.0  # seconds between two lines, without a terminal
SHOWN = 20  # running and failed runs that have a row


@dataclass(frozen=True)
class Position:
    """How far one run is. state: `complete`, `failed`, `running` (it has begun; a process may play it) or `waiting`; rounds played, and
    planned (0: not known yet); what it does, or why it failed; left, seconds, None if not known; written, when it wrote its
    last round (seconds since 1970); cell, its values on the axes of a study."""

    name: str
    state: str
    played: int = 0
    planned: int = 0
    what: str = ""
    left: float | None = None
    written: float | None = None
    cell: str = ""


class Watch:
    """The runs of a folder, looked at again and again."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError for a folder without runs."""
        self.folder = folder
        self._rounds: dict[str, RoundsSoFar] = {}
        self._planned: dict[str, int] = {}
        self.look()

    def look(self) -> list[Position]:
        """Where each run is now, in the order of the study."""
        self.positions = [replace(self._position(name), cell=cell) for name, cell in _names(self.folder)]
        return self.positions

    @property
    def ended(self) -> bool:
        """Whether every run is complete or has failed."""
        return all(position.state in ("complete", "failed") for position in self.positions)

    @property
    def failed(self) -> bool:
        return any(position.state == "failed" for position in self.positions)

    def _position(self, name: str) -> Position:
        folder = self.folder / name
        if is_complete(folder):
            return Position(name, "complete")
        if not (folder / "config.json").is_file():
            reason = failure_of(folder)
            return Position(name, "failed" if reason else "waiting", what=reason)
        rounds = self._rounds.setdefault(name, RoundsSoFar(folder))
        rounds.refresh()
        planned = self._planned_rounds(name)
        if reason := failure_of(folder):
            return Position(name, "failed", rounds.count, planned, reason, written=rounds.written)
        pace = rounds.seconds_per_round
        left = max(planned - rounds.count, 0) * pace if planned and pace is not None else None
        return Position(name, "running", rounds.count, planned, _what(rounds), left, rounds.written)

    def _planned_rounds(self, name: str) -> int:
        if not self._planned.get(name):
            try:
                self._planned[name] = expected_rounds(config_of(read_config(self.folder / name)))
            except DamagedError:  # also one that is being written
                return 0
        return self._planned[name]


def _names(folder: Path) -> Sequence[tuple[str, str]]:
    """The folders of a study's cells with the cells' labels, or of all runs below a folder. Raises ConfigError if there is none."""
    if os.path.lexists(folder / RECORD) or not (folders := run_folders(folder)):
        study = read_study(folder)
        labels = (", ".join(f"{axis} {value}" for axis, value in cell.labels.items()) for cell in study.cells)
        return list(zip(study.folders, labels, strict=True))
    return [(str(place.relative_to(folder)), "") for place in folders]


def _what(rounds: RoundsSoFar) -> str:
    if not rounds.latest:
        return "burn-in or calibration"
    line: Mapping[str, Any] = rounds.latest[-1]
    accuracy = "" if rounds.accuracy is None else f", accuracy {rounds.accuracy:.1f} %"
    return f"{line.get('track')}, round {line.get('round')}, {line.get('phase')}{accuracy}"


def watch(folder: Path, out: Console, show: Callable[[Table], None], *, once: bool = False) -> bool:
    """Show where the runs of a folder are until all have ended (or once). True if none failed.

    In a terminal a table that is renewed; elsewhere a line every `LINE_EVERY` seconds, and the table at the end. A process that was killed
    leaves its runs as they are: the table says when each wrote its last round. Args: show, prints a table as it is at the end. Raises
    ConfigError for a folder without runs."""
    seen = Watch(folder)
    if once or seen.ended:
        show(position_table(seen, time.time()))
    elif out.is_terminal:
        with Live(position_table(seen, time.time()), console=out, auto_refresh=False) as live:
            while not seen.ended:
                time.sleep(LOOK_EVERY)
                seen.look()
                live.update(position_table(seen, time.time()), refresh=True)
    else:
        shown_at = float("-inf")
        while not seen.ended:
            if time.monotonic() - shown_at >= LINE_EVERY:
                shown_at = time.monotonic()
                out.print(counts(seen), soft_wrap=True)
            time.sleep(LOOK_EVERY)
            seen.look()
        show(position_table(seen, time.time()))
    return not seen.failed


def position_table(seen: Watch, now: float) -> Table:
    """The running and the failed runs of a folder, and how many have ended or wait. Args: now, in seconds since 1970."""
    table = Table(title=str(seen.folder), title_justify="left", caption=counts(seen), caption_justify="left")
    for column in ("run", "rounds", "what", "left", "last round"):
        table.add_column(column, justify="left" if column in ("run", "what") else "right", overflow="fold")
    rows = sorted((position for position in seen.positions if position.state in ("failed", "running")), key=lambda row: row.state)
    for row in rows[:SHOWN]:
        rounds = f"{row.played} of {row.planned}" if row.planned else str(row.played)
        ago = "-" if row.written is None else f"{duration(max(now - row.written, 0.0))} ago"
        run = Text(f"{row.name}\n{row.cell}".rstrip())  # a label may hold brackets
        table.add_row(run, rounds, row.what if row.state == "running" else f"failed: {row.what}", duration(row.left), ago)
    if len(rows) > SHOWN:
        table.add_row(f"and {len(rows) - SHOWN} more")
    return table


def counts(seen: Watch) -> str:
    """How many runs are in which state, in one line."""
    states = [position.state for position in seen.positions]
    words = [f"{states.count(state)} {state}" for state in ("running", "failed", "waiting") if state in states]
    return ", ".join([f"{states.count('complete')} of {len(states)} runs complete", *words])
