"""A run's folder that is written on another machine: what changed there, in pieces, and its copy here.

A copy is like the folder of a run on this machine that may be killed at any time: `rounds.jsonl` grows by whole lines, a checkpoint comes
after its lines, every other file is there whole or not at all, and `summary.json` comes last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.records.folder import begin_folder
from experiments.records.trackers import Trackers
from fl_sim.atomic_files import whole_file, writing
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError

PIECE = 8 * 2**20  # bytes that a piece has at most
KEPT = ("meta.json", "rounds.jsonl", "final.safetensors")  # what an interrupted run continues from, with its checkpoints
Stamp = tuple[int, int, int]  # of a file: inode, time of the last change in ns, size


class Piece(NamedTuple):
    """A part of a file: its path below the output folder, its bytes (None: the file was deleted), whether they are its last ones, and
    whether they are added to what the file has."""

    path: str
    content: bytes | None
    ends: bool = True
    added: bool = False


def continuation(output_dir: Path, folder: Path) -> list[Piece]:
    """The files of an interrupted run that it continues from on another machine; none if it has no checkpoint.

    Raises ConfigError if a file cannot be read."""
    checkpoints = sorted((folder / "checkpoint").glob("*.safetensors"))
    files = [*checkpoints, *(folder / name for name in KEPT)] if checkpoints else []
    try:
        return [Piece(str(path.relative_to(output_dir)), path.read_bytes()) for path in files if path.is_file()]
    except OSError as error:  # it need not be damaged: another user's file, or a disk that is not mounted
        raise ConfigError([f"{error.filename} cannot be read ({error.strerror or error}); nothing was changed"]) from error


class Changes:
    """What changes in an output folder in which one run is written.

    Args: name, of the run's folder; files, with which the output folder begins, which is made."""

    def __init__(self, output_dir: Path, name: str, files: Sequence[Piece]) -> None:
        for piece in files:
            path = output_dir / piece.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(piece.content or b"")
        self._output_dir = output_dir
        self._config, self._rounds, self._summary = (f"{name}/{file}" for file in ("config.json", "rounds.jsonl", "summary.json"))
        self._sent = self._stamps()
        self._sent.pop(self._rounds, None)
        self._size = 0  # bytes of `rounds.jsonl` that were sent

    def pieces(self, *, ended: bool = False) -> Iterator[Piece]:
        """What changed since the last call, in the order in which it must be written. ended: the run has, so its summary may be sent."""
        stamps = self._stamps()  # before the rounds are read: so the lines of each checkpoint among them are sent before it
        if (
            self._config not in stamps or self._rounds not in stamps
        ):  # the run has not begun to write, or not cut the rounds to continue from
            return
        yield from self._lines()
        for path in sorted(stamps, key=lambda path: (path == self._summary, path)):
            due = stamps[path] != self._sent.get(path) and path != self._rounds and (ended or path != self._summary)
            if due and (self._output_dir / path).exists():
                yield from self._whole(path)
                self._sent[path] = stamps[path]
        for path in sorted(self._sent.keys() - stamps.keys()):
            del self._sent[path]
            yield Piece(path, None)

    def _stamps(self) -> dict[str, Stamp]:
        """The files by their paths."""
        stamps: dict[str, Stamp] = {}
        for place, _, names in os.walk(self._output_dir):
            for name in names:
                path = Path(place, name)
                try:
                    stat = path.stat()
                except FileNotFoundError:  # renamed, or deleted
                    continue
                if not name.endswith(".part"):
                    stamps[str(path.relative_to(self._output_dir))] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        return stamps

    def _lines(self) -> Iterator[Piece]:
        """The whole lines that are new: all of them the first time, because the run may have cut the file."""
        added = self._rounds in self._sent
        with (self._output_dir / self._rounds).open("rb") as file:
            file.seek(self._size)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self._sent[self._rounds], self._size = (0, 0, 0), self._size + len(new)
        while len(new) > PIECE:
            end = new.rfind(b"\n", 0, PIECE) + 1 or new.find(b"\n", PIECE) + 1
            yield Piece(self._rounds, new[:end], ends=False, added=added)
            new = new[end:]
        if new or not added:
            yield Piece(self._rounds, new, added=added)

    def _whole(self, path: str) -> Iterator[Piece]:
        """A whole file: nobody writes into one, it is replaced."""
        try:
            with (self._output_dir / path).open("rb") as file:
                content = file.read(PIECE)
                while after := file.read(PIECE):
                    yield Piece(path, content, ends=False)
                    content = after
                yield Piece(path, content)
        except FileNotFoundError:  # an old checkpoint; the next call says that it is deleted
            return


def copy_run(output_dir: Path, folder: Path, config: Config, *, continues: bool, pieces: Iterator[Piece]) -> None:
    """Write the pieces of a run in another output folder into this one, where its folder is `folder`. Its trackers get its lines here.

    Nothing is changed before the first piece. An earlier folder is then removed, unless the run `continues` from its files. A file of
    several pieces is written under another name until it is whole. Raises CannotWriteError, what `pieces` raises, and what the constructor
    of a tracker raises.
    """
    trackers: Trackers | None = None
    begun = False
    rounds = str((folder / "rounds.jsonl").relative_to(output_dir))
    try:
        for piece in pieces:
            if not begun:
                begin_folder(folder, continues=continues)
                begun = True
            _write(output_dir / piece.path, piece, pieces)
            if piece.path != rounds:
                continue
            lines = piece.content or b""
            if trackers is None:
                trackers, lines = Trackers(folder, config), (folder / "rounds.jsonl").read_bytes()
            for line in lines.splitlines():
                trackers.on_round(json.loads(line))
    finally:
        if trackers:
            summary = folder / "summary.json"
            trackers.close(json.loads(summary.read_bytes()) if summary.is_file() else {})


def _write(path: Path, piece: Piece, more: Iterator[Piece]) -> None:
    """Write a piece and, of a file in several pieces, those that follow it."""
    with writing(path):
        if piece.content is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if piece.added:
            with path.open("ab") as file:
                file.write(piece.content)
            return
        with whole_file(path) as part, part.open("wb") as file:
            file.write(piece.content)
            while not piece.ends:
                piece = next(more)
                file.write(piece.content or b"")
