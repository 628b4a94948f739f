"""TensorBoard's events hold the numbers of the round records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clients.client_app import app
from experiments.launch.name_checks import name_problems
from experiments.records.folder import run_folder
from experiments.run.execute import execute_run
from fl_sim.config.keys import Config
from fl_sim.grid.transports import InlineTransport
from tests.run.test_runs import lines

Configure = Callable[..., Config]


def test_events_read_back_are_the_records(configure: Configure, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configure(tracking="tensorboard")
    execute_run(config, tmp_path, InlineTransport(app), lambda *_: None)
    folder = run_folder(tmp_path, config)
    events: Any = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for track in ("attacked", "twin", "control"):
        records = lines(folder, track)
        for tag, key in (("accuracy", "accuracy"), ("honest-norm", "honest-norm")):
            found = [(event.step, event.value) for event in events.Scalars(f"{tag}/{track}")]
            assert found == [(line["round"], pytest.approx(line[key], rel=1e-6)) for line in records]
    wanted = [(line["round"], pytest.approx(line["attack"]["scale"])) for line in lines(folder) if "scale" in line.get("attack", {})]
    assert wanted
    assert [(event.step, event.value) for event in events.Scalars("attack/scale/attacked")] == wanted


def test_without_tracking_nothing_is_written(configure: Configure, tmp_path: Path) -> None:
    config = configure(twin=False, control=False)
    execute_run(config, tmp_path, InlineTransport(app), lambda *_: None)
    assert not (run_folder(tmp_path, config) / "tensorboard").exists()
    assert run_folder(tmp_path, config) == run_folder(tmp_path, configure(twin=False, control=False, tracking="tensorboard"))


def test_a_missing_package_is_named(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.launch.name_checks.find_spec", lambda name: None)
    assert any("pip install 'fl-sim[tensorboard]'" in problem for problem in name_problems(configure(tracking="tensorboard")))
