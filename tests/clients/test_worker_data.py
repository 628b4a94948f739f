"""A worker that holds other data than the server says so, instead of computing with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clients.client_app import answer
from fl_sim.config.keys import Config
from fl_sim.config.resolve import to_flat, to_json
from fl_sim.data.federation import data_fingerprint, load_federation
from fl_sim.data.outside import DataError
from fl_sim.model.module import new_module
from fl_sim.model.vectors import flat_parameters
from fl_sim.wire.messages import Order
from tests.support.workers import Workers, play


def test_other_data_is_refused_by_the_worker(configure: Callable[..., Config]) -> None:
    config = configure()
    theta = flat_parameters(new_module(config, load_federation(config)))
    order = Order(theta, torch.zeros(0), to_json(to_flat(config)), 1, 1, ((0, (0, 1)),), data=data_fingerprint(config))
    assert not any(report.failure for report in answer(order).reports[0])
    with pytest.raises(DataError, match=r"expected the server's data \(fingerprint 0123456789abcdef\), got other data under data\.root = "):
        answer(replace(order, data="0123456789abcdef" * 4))


def test_a_round_says_it(configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The clients of such a worker fail with the reason; they are not computed from other data."""
    monkeypatch.setattr("fl_sim.grid.grid.data_fingerprint", lambda config: "f" * 64)
    _, outcome = play(configure(), Workers(2))
    assert outcome.combined == ()
    assert all("expected the server's data" in report.failure for report in outcome.reports)
