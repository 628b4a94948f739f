"""How the training part is shared out among the clients, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fl_sim.data.splits import PARTITIONS as NAMES
from fl_sim.registry import Registry

PARTITIONS: Mapping[str, Callable[..., Any]] = {name: lambda: None for name in NAMES}
partitions: Registry[Callable[..., Any]] = Registry("partition", "data.partition", PARTITIONS, "fl_sim.partitions")
