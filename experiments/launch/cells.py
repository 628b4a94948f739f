"""The checked cells of a sweep, with their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.launch.paths import absolute_paths, offer_own_modules
from experiments.launch.preflight import checked
from experiments.records.folder import is_complete, run_folder
from experiments.sweep.spec import Sweep
from experiments.sweep.study import Study
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError


@dataclass(frozen=True)
class Cells:
    """common: the flat keys that all cells share, with the sweep's own folder as `output-dir`; flats: the keys of each cell, which replace
    those; configs: of each cell."""

    sweep: Sweep
    common: Mapping[str, Any]
    flats: tuple[Mapping[str, Any], ...]
    configs: tuple[Config, ...]

    @property
    def output_dir(self) -> Path:
        return Path(self.common["output-dir"])

    @cached_property
    def folders(self) -> list[Path]:
        return [run_folder(self.output_dir, config) for config in self.configs]

    @property
    def complete(self) -> bool:
        """Whether all cells are complete."""
        return all(map(is_complete, self.folders))

    @property
    def study(self) -> Study:
        """The record for the sweep's folder."""
        return Study(self.sweep.name, self.common, self.sweep.cells, tuple(folder.name for folder in self.folders), self.sweep.published)

    @property
    def keys(self) -> dict[str, Any]:
        """The flat keys of one launch of all cells."""
        return {**self.common, "cells": json.dumps([dict(flat) for flat in self.flats])}


def checked_cells(sweep: Sweep, common: Mapping[str, Any], console: Console) -> Cells:
    """The cells of a sweep over common keys; `output-dir` is the parent of the sweep's folder. Raises ConfigError with all problems."""
    flats = tuple(absolute_paths(cell.flat) for cell in sweep.cells)
    offer_own_modules([{**common, **flat} for flat in flats])
    configs = tuple(checked([{**common, **flat} for flat in flats], console))
    cells = Cells(sweep, {**common, "output-dir": str(Path(configs[0].output_dir) / sweep.name)}, flats, configs)
    if len(set(cells.folders)) < len(flats):
        raise ConfigError([f"{sweep.name}: {_twice(cells)}"])
    return cells


def _twice(cells: Cells) -> str:
    """Why two cells are one run."""
    first: dict[Path, int] = {}
    for number, folder in enumerate(cells.folders):
        one, other = (cells.flats[place].get("data.root") for place in (first.setdefault(folder, number), number))
        if one != other:
            return f"two cells are the same run: data.root = {one!r} and {other!r} hold the same data"
    return "two cells are the same run; an axis repeats a value or its key cannot change a result"
