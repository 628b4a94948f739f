"""Shared fixtures: no telemetry, Flower's message identity, small federations, one Ray for a module."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure

from fl_sim.config.keys import Config
from fl_sim.config.resolve import resolve
from fl_sim.grid.ray_runtime import ray_running
from fl_sim.grid.transports import claim_identity
from tests.support import stand_in_device

# Files whose slow tests start Ray, and mostly wait: they come first, the longest before the others.
WAITING = (
    "tests/launch/test_flower.py",
    "tests/launch/test_interrupt.py",
    "tests/launch/test_outside_on_ray.py",
    "tests/grid/test_cluster.py",
    "tests/launch/test_superlink.py",
    "tests/house/test_examples.py",
    "tests/grid/test_placement.py",
    "tests/grid/test_ray_workers.py",
    "tests/run/test_remote_cells.py",
    "tests/launch/test_ray_runtime.py",
)

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
torch.set_num_threads(1)
claim_identity()
stand_in_device.register()
settings.register_profile("tests", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that wait to the front. pytest-xdist gives the first process the first half of the tests and the second process the other
    half: so one waits while the other computes, two Rays seldom start at once, and no long test is the last.
    """

    def place(item: pytest.Item) -> int:
        path = item.nodeid.partition("::")[0]
        return WAITING.index(path) if path in WAITING and item.get_closest_marker("slow") else len(WAITING)

    items.sort(key=place)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of data sets and burn-ins for the whole session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder for tests that only read records: each configuration is run once a session. Not for keys that are not hashed."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray in this process for all tests of a module, as in a notebook: each command then starts only its own actors."""
    running = ray_running()
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # of Ray's own files and processes
        running.__enter__()
    yield
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        running.__exit__(None, None, None)
        gc.collect()


@pytest.fixture
def configure(cache_dir: Path) -> Callable[..., Config]:
    """A small, fast run: 12 clients with an MLP on digits. Overrides are flat keys."""

    def make(**overrides: Any) -> Config:
        flat: dict[str, Any] = {
            "name": "test",
            "data.num-clients": 12,
            "data.cache-dir": str(cache_dir),
            "model.name": "mlp",
            "client.block": 4,
            "attack.malicious-fraction": 0.17,
            "attack.fire": "schedule",
            "schedule.burn-in-epochs": 2,
            "schedule.accumulate-rounds": 3,
            "schedule.recovery-rounds": 2,
        }
        return resolve(flat | {key.replace("__", ".").replace("_", "-"): value for key, value in overrides.items()})

    return make


@pytest.fixture
def empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are files, but nothing is drawn: drawing takes most of the time of a report."""
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: Path(path).touch())
