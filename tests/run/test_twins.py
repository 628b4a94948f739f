"""The clean twin that cells of a sweep share is the one that each would have had alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clients.client_app import answer
from experiments.records.folder import read_summary
from experiments.run.execute import execute_run
from experiments.run.history import TrackHistory
from experiments.run.shared_twins import twin_key
from experiments.run.track import TrackRun
from fl_sim.config.keys import Config
from fl_sim.grid.transports import InlineTransport
from tests.support.runs import fingerprint, lines, run

Configure = Callable[..., Config]


def plain_summary(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key != "seconds"}


@pytest.mark.parametrize("more", [{}, {"strategy__name": "dgc", "strategy__calibration_rounds": 10}, {"evaluate__examples": 100}])
def test_a_shared_twin_changes_no_record(
    configure: Configure, tmp_path: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    tracks, original = list[str](), TrackRun.play
    monkeypatch.setattr(TrackRun, "play", lambda track: tracks.append(track.name) or original(track))
    steps: list[tuple[Any, ...]] = []
    for fraction in (0.17, 0.3):
        config = configure(attack__malicious_fraction=fraction, **more)
        alone = run(config, runs_dir)[1]
        tracks.clear()
        steps.clear()
        shared = execute_run(
            config, tmp_path / "shared", InlineTransport(answer), lambda *step: steps.append(step), twins=tmp_path / "twins"
        )
        assert tracks == (["attacked", "twin", "control"] if fraction == 0.17 else ["attacked", "control"])
        assert plain_summary(read_summary(shared)) == plain_summary(read_summary(alone))
        assert fingerprint(shared) == fingerprint(alone)
        assert [step[0] for step in steps].count("twin") == len(lines(alone, "twin"))


def history(rounds: int, fired: int) -> TrackHistory:
    return TrackHistory(tuple({"round": round_, "attack": {"fired": float(round_ == fired)}} for round_ in range(1, rounds + 1)))


def test_what_makes_another_twin(configure: Configure) -> None:
    track = history(6, 4)

    def key(**keys: Any) -> str:
        return twin_key(configure(**keys), track)

    same = [key(), key(attack__poison_ratio=0.25), key(attack__lambda=0.5), key(name="other"), key(control=False), key(attack__name="ipm")]
    assert len(set(same)) == 1
    sampled = {"server__clients_per_round": 4}
    other = [
        key(seed=2), key(strategy__name="clip-before"), key(attack__set_size=50), key(attack__name="trigger-only"), key(**sampled),
        key(attack__poison_ratio=0.25, **sampled), key(evaluate__every=3), twin_key(configure(), history(5, 4)),
        twin_key(configure(), history(6, 5)),
    ]  # fmt: skip
    assert len({*same, *other}) == 1 + len(other)
