"""The monitor in whole runs: what an alarm does, and what the summary says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clients.client_app import answer
from experiments.records.folder import read_rounds, read_summary
from experiments.run.execute import execute_run
from experiments.run.monitor import Monitor
from fl_sim.config import keys as config
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.data.federation import load_federation
from fl_sim.grid.transports import InlineTransport
from fl_sim.model.burn_in import burn_in
from tests.support.runs import theta

Configure = Callable[..., Config]
ONE: dict[str, Any] = {
    "twin": False,
    "control": False,
    "strategy__name": "mean",
    "attack__name": "trigger-only",
    "checkpoint__every": 1,
    "checkpoint__keep": 9,
}


def run(settings: Config, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    place = execute_run(settings, folder, InlineTransport(answer), lambda *_: None)
    return read_summary(place), read_rounds(place)["attacked"], place


def theta_after(folder: Path, round_: int) -> torch.Tensor:
    return load_file(folder / "checkpoint" / f"attacked-{round_:06d}.safetensors")["theta"]


def test_log_records_the_alarm_and_changes_nothing(configure: Configure, tmp_path: Path) -> None:
    summary, lines, folder = run(configure(**ONE), tmp_path)
    _, _, unwatched = run(configure(**ONE, monitor__action="none"), tmp_path)
    assert lines[0]["alarm"]
    assert summary["monitor"] == {"first_alarm": 1, "first_alarm_class": None, "first_damage": 1, "in_time": False, "rollbacks": 0}
    assert torch.equal(theta(folder), theta(unwatched))


def test_stop_ends_the_run_in_the_round_of_the_alarm(configure: Configure, tmp_path: Path) -> None:
    summary, lines, _ = run(configure(**ONE, monitor__action="stop"), tmp_path)
    assert [line["round"] for line in lines] == [1]
    assert summary["rounds"] == 1
    assert summary["status"] == "complete"


@pytest.mark.parametrize("strategy", ["mean", "flwr.FedAvg", "byzfl.Average", "dgc"])
def test_rollback_brings_back_the_last_good_model_and_discards_the_round(configure: Configure, tmp_path: Path, strategy: str) -> None:
    loose = {"strategy__margin": 1e6, "strategy__calibration_rounds": 10} if strategy == "dgc" else {}
    watched = configure(**{**ONE, **loose, "strategy__name": strategy}, monitor__action="rollback", attack__norm_bound=20.0)
    summary, lines, folder = run(watched, tmp_path)
    assert lines[0]["rolled_back"]
    first = theta_after(folder, 1)
    assert torch.equal(first, burn_in(watched, load_federation(watched), lambda *_: None).theta), "nothing of round 1 was applied"
    start, _, _ = run(
        configure(**{**ONE, "attack__name": "none", "attack__malicious_fraction": 0.0}, schedule__accumulate_rounds=0), tmp_path
    )
    assert summary["accuracy"]["after_trigger"] == summary["accuracy"]["burn_in"] == start["accuracy"]["burn_in"]
    assert summary["monitor"]["rollbacks"] == 1
    assert summary["monitor"]["in_time"] is True, "no damage was left for the test set to see"
    assert not torch.equal(theta_after(folder, 2), first), "training goes on"


def test_with_patience_the_model_before_the_first_low_round_comes_back(configure: Configure, tmp_path: Path) -> None:
    """Training at a learning rate of 5 breaks by itself: rounds 1 and 2 are low, and both are discarded."""
    settings = {
        **ONE,
        "attack__name": "none",
        "attack__malicious_fraction": 0.0,
        "server__learning_rate": 5.0,
        "schedule__recovery_rounds": 4,
    }
    watched = configure(**settings, monitor__action="rollback", monitor__patience=2)
    summary, lines, folder = run(watched, tmp_path)
    back = [line["round"] for line in lines if line.get("rolled_back")]
    start = burn_in(watched, load_federation(watched), lambda *_: None).theta
    assert back[0] == 2
    assert summary["monitor"]["rollbacks"] == len(back)
    assert not torch.equal(theta_after(folder, 1), start)
    assert torch.equal(theta_after(folder, 2), start)


@pytest.mark.parametrize("every", [1, 50])
def test_an_alarm_after_the_damage_is_not_in_time_however_rarely_the_test_set_is_looked_at(
    configure: Configure, tmp_path: Path, every: int
) -> None:
    summary, _, _ = run(configure(**ONE, monitor__action="stop", evaluate__every=every), tmp_path)
    assert summary["monitor"]["first_damage"] == 1
    assert summary["monitor"]["in_time"] is False


def test_the_running_best_is_kept_and_the_count_starts_anew_after_a_rollback() -> None:
    monitor = Monitor(config.Monitor.model_validate({"drop": 5.0, "patience": 2, "action": "rollback"}), 90.0)
    assert [monitor.alarm(t, 80.0) for t in (1, 2)] == [False, True]
    monitor.forget()
    assert not monitor.low
    assert [monitor.alarm(t, accuracy) for t, accuracy in ((3, 80.0), (4, 89.0), (5, 80.0), (6, 80.0))] == [False, False, False, True]


def test_a_class_raises_the_alarm_that_the_whole_probe_does_not() -> None:
    monitor = Monitor(config.Monitor.model_validate({"drop": 5.0, "class-drop": 20.0, "patience": 2}), 90.0, [80.0, None, 70.0])
    assert not monitor.alarm(1, 90.0, [60.0, None, 90.0]), "the first low round of class 0"
    assert monitor.low
    assert not monitor.alarm(2, 90.0, [61.0, None, 70.0]), "class 0 is back, class 2 is low against its new best"
    assert monitor.alarm(3, 90.0, [80.0, None, 60.0])
    assert monitor.alarm_class == 2
    assert not monitor.alarm(4, 90.0, [80.0, None, 60.0]), "once"
    again = Monitor(config.Monitor.model_validate({"drop": 5.0, "class-drop": 20.0, "patience": 2}), 0.0, [0.0, None, 0.0])
    again.resume(tuple(monitor.state))
    assert again.state == monitor.state
    monitor.forget()
    assert not monitor.low
    assert not monitor.alarm(5, 80.0, [80.0, None, 90.0])
    assert monitor.alarm(6, 80.0, [80.0, None, 90.0])
    assert monitor.alarm_class is None, "the whole probe"


def test_without_class_drop_classes_do_not_count() -> None:
    monitor = Monitor(config.Monitor.model_validate({"drop": 5.0}), 90.0)
    assert monitor.state == (90.0, 0, (), ())
    assert not monitor.alarm(1, 90.0)


def test_a_class_that_falls_is_recorded_and_rolled_back(configure: Configure, tmp_path: Path) -> None:
    settings = {**ONE, "attack__name": "trigger-only", "attack__norm_bound": 4.0, "monitor__drop": 99.0, "monitor__class_drop": 10.0}
    summary, lines, _ = run(configure(**settings, strategy__probe_size=200), tmp_path)
    first = summary["monitor"]["first_alarm"]
    assert first
    assert summary["monitor"]["first_alarm_class"] == lines[first - 1]["alarm_class"]
    back, rolled, _ = run(configure(**settings, strategy__probe_size=200, monitor__action="rollback"), tmp_path)
    assert back["monitor"]["rollbacks"] >= 1
    assert rolled[first - 1]["rolled_back"]


@pytest.mark.parametrize("value", [-1.0, "much"])
def test_a_bad_class_drop_is_refused(configure: Configure, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected monitor\.class-drop"):
        configure(monitor__class_drop=value)
