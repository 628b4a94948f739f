"""The rounds of a run that another process may be playing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ACCURACY_WITHIN = 50  # last lines among which the latest accuracy is looked for
PACE_OF = 20  # last rounds whose times give the time of a round


class RoundsSoFar:
    """Follows `rounds.jsonl`: `count`, the whole lines so far; `latest`, those at the end. It reads only what is new."""

    def __init__(self, folder: Path) -> None:
        self._path, self._read = folder / "rounds.jsonl", 0
        self.count, self.latest = 0, list[Mapping[str, Any]]()

    def refresh(self) -> None:
        """Read the lines that were appended. A file that became shorter, because its run began again, is read anew."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._read:
                    self._read, self.count, self.latest = 0, 0, []
                file.seek(self._read)
                data = file.read()
        except OSError:  # not there yet
            return
        whole = data[: data.rfind(b"\n") + 1]  # the last line may be half of one
        self._read += len(whole)
        lines = whole.splitlines()
        self.count += len(lines)
        for line in lines[-ACCURACY_WITHIN:]:
            with suppress(ValueError):  # a damaged line
                record = json.loads(line)
                self.latest.append(record if isinstance(record, dict) else {})
        del self.latest[:-ACCURACY_WITHIN]

    @property
    def accuracy(self) -> float | None:
        """The latest accuracy (percent) of the track that is being played."""
        lines = [line for line in self.latest if line.get("track") == self.latest[-1].get("track")]
        return next((line["accuracy"] for line in reversed(lines) if line.get("accuracy") is not None), None)

    @property
    def seconds_per_round(self) -> float | None:
        """The mean over the last rounds, with evaluation."""
        times = [line.get("seconds") or {} for line in self.latest[-PACE_OF:]]
        return sum(time.get("train", 0.0) + time.get("evaluate", 0.0) for time in times) / len(times) if any(times) else None

    @property
    def written(self) -> float | None:
        """When the file was written last (seconds since 1970); None without a file."""
        with suppress(OSError):
            return self._path.stat().st_mtime
        return None
