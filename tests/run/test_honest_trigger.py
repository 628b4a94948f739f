"""The honest-trigger track: the attacked run up to the trigger, and an honest batch in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.run.phases import expected_rounds, has_honest_trigger
from experiments.run.track import TrackRun
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.grid.transports import InlineTransport
from tests.support.runs import fingerprint, lines, run
from tests.support.workers import Workers, encoded_answer

Configure = Callable[..., Config]


@pytest.mark.parametrize("surface", ["updates", "images"])
@pytest.mark.parametrize("fire", ["schedule", "rehearsed"])
def test_it_is_the_attacked_run_but_for_the_trigger(configure: Configure, runs_dir: Path, fire: str, surface: str) -> None:
    config = configure(
        control_honest=True, twin=False, control=False, attack__fire=fire, attack__fire_from=1, attack__surface=surface, attack__pgd_steps=2
    )
    summary, folder = run(config, runs_dir)
    attacked, honest = lines(folder), lines(folder, "honest-trigger")
    fired = summary["trigger_round"]
    assert len(honest) == len(attacked)
    assert [line["round"] for line in honest if line["phase"] == "trigger"] == [fired]
    for one, other in zip(attacked[: fired - 1], honest[: fired - 1], strict=True):
        assert {**one, "track": ""} == {**other, "track": ""}
    assert attacked[fired - 1]["attack"]["shift_norm"] > 0.0
    assert honest[fired - 1]["attack"]["shift_norm"] == 0.0
    assert honest[fired - 1]["before_trigger"] == attacked[fired - 1]["before_trigger"]
    assert summary["honest_trigger"] == {key: honest[fired - 1][key] for key in ("before_trigger", "after_trigger")}
    assert honest[fired - 1]["loss"] != attacked[fired - 1]["loss"]


@pytest.mark.parametrize(
    "more",
    [
        {"strategy__name": "dgc", "strategy__calibration_rounds": 10, "strategy__lag": 2},
        {"attack__trigger_refresh": "accumulate", "attack__fire": "rehearsed", "attack__fire_from": 1, "schedule__triggers": 2},
        {"attack__surface": "images", "attack__pgd_steps": 2, "attack__trigger_images": "refreshed"},
        {"monitor__action": "rollback", "monitor__drop": 0.5, "strategy__name": "mean"},
        {"server__clients_per_round": 6, "attack__poison_ratio": 0.5},
        {"schedule__accumulate_rounds": 1},
    ],
    ids=lambda more: "-".join(map(str, more.values())),
)
def test_it_goes_on_from_the_attacked_run_as_if_it_was_played(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    config = configure(control_honest=True, twin=False, control=False, checkpoint__every=2, **more)
    _, forked = run(config, tmp_path / "forked")
    played = list[str]()
    original = TrackRun.play
    monkeypatch.setattr("experiments.run.execute._Run._remember", lambda *_: None)
    monkeypatch.setattr(TrackRun, "play", lambda self: (played.append(self.name) or line for line in original(self)))
    _, whole = run(config, tmp_path / "whole")
    assert fingerprint(forked) == fingerprint(whole)
    assert played.count("honest-trigger") == len(lines(whole, "honest-trigger"))
    monkeypatch.undo()
    played.clear()
    monkeypatch.setattr(TrackRun, "play", lambda self: (played.append(self.name) or line for line in original(self)))
    run(config, tmp_path / "again")
    fired = next((line["round"] for line in lines(whole) if line["phase"] == "trigger"), 0)
    assert played.count("honest-trigger") == len(lines(whole, "honest-trigger")) - fired + 1


@pytest.mark.slow
def test_it_is_the_same_bytes_wherever_it_is_computed(configure: Configure, tmp_path: Path) -> None:
    config = configure(control_honest=True, attack__malicious_fraction=0.3)
    first = fingerprint(run(config, tmp_path / "one")[1])
    assert fingerprint(run(config, tmp_path / "three", Workers(3))[1]) == first
    assert fingerprint(run(config, tmp_path / "encoded", InlineTransport(encoded_answer))[1]) == first


@pytest.mark.parametrize(
    ("more", "has"),
    [
        ({}, True),
        ({"control_honest": False}, False),
        ({"attack__name": "min-max"}, True),
        ({"attack__name": "trigger-only"}, False),
        ({"attack__name": "none", "attack__malicious_fraction": 0.0}, False),
        ({"schedule__triggers": 0}, False),
    ],
)
def test_which_attacks_have_it(configure: Configure, more: dict[str, Any], has: bool) -> None:
    config = configure(**{"control_honest": True, "twin": False, "control": False, **more})
    assert has_honest_trigger(config) == has
    alone = configure(**{**more, "control_honest": False, "twin": False, "control": False})
    assert expected_rounds(config) == (1 + has) * expected_rounds(alone)


def test_a_bad_value_is_refused(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="expected control-honest to be true or false, got 'yes'"):
        configure(control_honest="yes")
