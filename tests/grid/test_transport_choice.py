"""The transport of `grid.transport = "auto"`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fl_sim.config.keys import Config
from fl_sim.grid import gpu_shares
from fl_sim.grid.transport_choice import Choice, choose_transport, operations

Configure = Callable[..., Config]
W1: dict[str, Any] = {"data__num_clients": 100, "client__block": 50}
LARGE: dict[str, Any] = {**W1, "model__name": "cnn", "client__local_steps": 5}


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_shares, "cpu_cores", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_the_operations_of_an_mlp(configure: Configure) -> None:
    """64-64-10: two per weight forwards, four backwards."""
    config = configure(**W1, client__local_steps=3)
    assert operations(config) == 3 * 2 * (64 * 64 + 64 * 10) * 100 * 3 * 10


@pytest.mark.parametrize(
    ("settings", "rounds", "cells", "expected"),
    [
        (W1, 100_000, 1, "inline"),  # a wave over Ray costs more than half of such a round
        (LARGE, 20, 1, "inline"),  # it is over before Ray has started
        (LARGE, 1000, 1, "ray"),
        ({**LARGE, "client__block": 100}, 1000, 1, "inline"),  # one block is work for one worker
        (W1, 100, 4, "inline"),
        (W1, 10_000, 4, "ray"),  # whole cells in the workers
        ({**W1, "ray__num_workers": 2}, 1, 1, "ray"),
        ({**W1, "client__timeout": 5.0}, 1, 1, "ray"),
        ({**W1, "grid__transport": "flower"}, 1, 1, "flower"),
    ],
)
def test_the_faster_transport(configure: Configure, settings: dict[str, Any], rounds: int, cells: int, expected: str) -> None:
    assert choose_transport([(configure(**settings), rounds)] * cells, cells).transport == expected


def test_a_cluster_is_used(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert choose_transport([(configure(), 1)], 1) == Choice("ray", "RAY_ADDRESS is set")


def test_gpus(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU has one worker; several are used."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for gpus, expected in ((1, "inline"), (4, "ray")):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        assert choose_transport([(configure(**W1), 10)], 1).transport == expected
