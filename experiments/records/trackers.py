"""Round records for a viewer, on request: TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fl_sim.config.keys import Config
from fl_sim.registry import Registry


class TensorBoard:
    """Writes every number of a round's record into `tensorboard/` of a run's folder, tagged by its place in the record and its track."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # seconds to import, and not installed everywhere

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def round(self, line: Mapping[str, Any]) -> None:
        """One line of `rounds.jsonl`."""
        for place, number in _numbers(line):
            if place != "round":
                self._writer.add_scalar(f"{place}/{line['track']}", number, line["round"])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


TRACKERS: Mapping[str, Callable[..., TensorBoard]] = {"tensorboard": TensorBoard}


def _none(name: str) -> str | None:
    return "" if name == "none" else None


trackers: Registry[Callable[..., TensorBoard]] = Registry(
    "tracker", "tracking", TRACKERS, "fl_sim.trackers", extras={"tensorboard": "tensorboard"}, family=_none, more=("none",)
)


def open_trackers(config: Config, folder: Path) -> list[TensorBoard]:
    """The viewers that `tracking` asks for."""
    return [] if config.tracking == "none" else [trackers.find(config.tracking)(folder)]


def _numbers(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """(place, number) of every number in a record, nested places joined by `/`."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _numbers(item, f"{before}{key}/")
        elif isinstance(item, (int, float)):
            yield before + key, float(item)
