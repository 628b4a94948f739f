"""The window of an attack: exactly its rounds have an attack in the records, and in the others the members are honest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.run.phases import acts_in, phase_of
from fl_sim.config.keys import Attack, Config
from fl_sim.config.resolve import ConfigError
from tests.support.runs import lines, run

Configure = Callable[..., Config]


def attack(**keys: int) -> Attack:
    return Attack.model_validate({name.replace("_", "-"): value for name, value in keys.items()})


def phases(config: Config, rounds: int) -> str:
    """The first letters of the phases; a trigger fires as soon as it may."""
    fired: tuple[int, ...] = ()
    letters = ""
    for round_ in range(1, rounds + 1):
        phase = phase_of(config, round_, fired, attacked=True)
        letters += phase[0]
        fired += (round_,) if phase == "trigger" else ()
    return letters


def test_its_rounds() -> None:
    assert [r for r in range(1, 12) if acts_in(attack(from_round=3, to_round=9, every=3), r)] == [3, 6, 9]
    assert [r for r in range(1, 12) if acts_in(attack(from_round=3, to_round=8, every=3), r)] == [3, 6]
    assert all(acts_in(attack(), r) for r in range(1, 2000))


def test_phases_with_a_window(configure: Configure) -> None:
    keys: dict[str, Any] = {"schedule__accumulate_rounds": 6, "schedule__recovery_rounds": 2}
    assert phases(configure(**keys), 10) == "aaaaaatrre"
    assert phases(configure(**keys, attack__from_round=3, attack__every=2), 10) == "ppapaptrr" + "e"
    assert phases(configure(**keys, attack__from_round=2, attack__every=2), 11) == "papapaptrre", "a due trigger waits for its window"
    one_shot = configure(**keys, attack__name="label-flip", attack__from_round=3, attack__to_round=3)
    assert phases(one_shot, 10) == "ppappprrre", "as many rounds as without an attack"
    assert phases(configure(**keys, attack__name="trigger-only", attack__from_round=4), 7) == "ppptrre"
    without = configure(**keys, schedule__triggers=0, attack__to_round=4)
    assert phases(without, 9) == "aaaapprre"


@pytest.mark.parametrize("name", ["label-flip", "accumulative", "poisonedfl", "mpaf"])
def test_exactly_its_rounds_are_in_the_records(configure: Configure, tmp_path: Path, name: str) -> None:
    keys: dict[str, Any] = {"attack__name": name, "schedule__accumulate_rounds": 7, "schedule__triggers": 0, "control": False}
    config = configure(**keys, attack__from_round=2, attack__to_round=6, attack__every=2)
    _, folder = run(config, tmp_path)
    attacked, twin = lines(folder), lines(folder, "twin")
    assert [line["round"] for line in attacked if "attack" in line] == [2, 4, 6]
    assert [line["round"] for line in attacked if line["phase"] == "accumulate"] == [2, 4, 6]
    assert attacked[0]["strategy"] == twin[0]["strategy"], "the members are honest before the window"
    assert attacked[1]["strategy"] != twin[1]["strategy"]
    _, before = run(configure(**keys | {"attack__name": "none", "schedule__accumulate_rounds": 1}), tmp_path)
    assert lines(before)[0]["accuracy"] == attacked[0]["accuracy"]


def test_one_shot_then_recovery(configure: Configure, tmp_path: Path) -> None:
    config = configure(attack__name="sign-flip", attack__from_round=2, attack__to_round=2, twin=False)
    summary, folder = run(config, tmp_path)
    assert summary["no_trigger"] == "the attack ended with round 2 (attack.to-round)"
    assert summary["coalition"] == {"acted": 1, "idle": 0, "failed": 0, "absent": 0}
    assert [line["phase"] for line in lines(folder)] == ["pause", "accumulate", "pause", "recover", "recover", "recover"]
    assert [line["round"] for line in lines(folder) if "attack" in line] == [2]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"attack__from_round": 0}, "attack.from-round"),
        ({"attack__every": 0}, "attack.every"),
        ({"attack__to_round": -1}, "attack.to-round"),
        ({"attack__from_round": 5}, "expected attack.from-round <= 4"),
        ({"attack__from_round": 4, "schedule__triggers": 0}, "expected attack.from-round <= 3"),
        (
            {"attack__name": "label-flip", "attack__from_round": 3, "attack__to_round": 2},
            "expected attack.to-round to be 0 or >= attack.from-round = 3",
        ),
        ({"attack__to_round": 3}, "expected attack.to-round to be 0 or >= 4"),
    ],
)
def test_what_is_refused(configure: Configure, keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        configure(**keys)
