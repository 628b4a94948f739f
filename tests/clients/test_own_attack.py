"""Attacks, objectives and what a coalition knows of a rule, from outside the repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clients.client_app import answer
from clients.coalition import known_rule
from clients.outside_attack import checked_action
from experiments.launch.name_checks import name_problems
from experiments.records.folder import read_rounds
from experiments.run.execute import execute_run
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, config_hash
from fl_sim.grid.transports import InlineTransport
from fl_sim.outside_code import OutsideCodeError
from fl_sim.wire.messages import AttackState, PublicRule
from tests.support.small_knowledge import knowledge_of

Configure = Callable[..., Config]

OWN = """
import torch
import fl_sim
from clients.accumulative.objectives import Aim

def scaled(knowledge, state, factor=2.0):
    rounds = state.scalars.get("rounds", 0.0) + 1.0
    state = fl_sim.AttackState({"mean": knowledge.updates.mean(dim=0)}, {"rounds": rounds})
    return fl_sim.Action(factor * knowledge.updates, state, {"rounds": rounds})

def flat(knowledge, theta, trigger):
    return fl_sim.Aim((theta * theta.detach().sign()).sum())

def rows(knowledge, state):
    return fl_sim.Action(knowledge.updates[:, :-1])

def vector(knowledge, state):
    return knowledge.updates

def flat_without_gradients(knowledge, theta, trigger):
    aim = flat(knowledge, theta, trigger)
    torch.set_grad_enabled(False)
    return aim
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def test_an_attack_of_a_file_acts_with_its_options_and_its_state(configure: Configure, tmp_path: Path, own: Path) -> None:
    config = configure(attack__name=f"{own}:scaled", attack__options={"factor": 0.5}, strategy__name="mean", twin=False)
    assert name_problems(config) == []
    lines = read_rounds(execute_run(config, tmp_path, InlineTransport(answer), lambda *_: None))["attacked"]
    acting = [line["attack"]["rounds"] for line in lines if "attack" in line]
    assert acting == [1.0, 2.0, 3.0, 4.0], "three rounds of the phase and the trigger; its state came back each time"
    assert lines[0]["attack"]["shift_norm"] > 0.0
    quiet = configure(attack__name=f"{own}:scaled", attack__options={"factor": 1.0}, strategy__name="mean", twin=False)
    lines = read_rounds(execute_run(quiet, tmp_path, InlineTransport(answer), lambda *_: None))["attacked"]
    assert lines[0]["attack"]["shift_norm"] == 0.0


@pytest.mark.parametrize("name", ["flat", "flat_without_gradients"])
def test_an_objective_of_a_file_is_descended(configure: Configure, tmp_path: Path, own: Path, name: str) -> None:
    config = configure(attack__objective=f"{own}:{name}", twin=False, control=False)
    lines = read_rounds(execute_run(config, tmp_path, InlineTransport(answer), lambda *_: None))["attacked"]
    assert all(line["attack"]["push_norm"] > 0.0 for line in lines[:3])


def test_a_changed_file_is_another_run(configure: Configure, own: Path) -> None:
    before = config_hash(configure(attack__name=f"{own}:scaled"))
    own.write_text(OWN + "\n# changed\n")
    assert config_hash(configure(attack__name=f"{own}:scaled")) != before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rows", r"expected .*mine.py:rows' \(.*mine.py, line 14\) to return updates of shape \(3, 53\)"),
        ("vector", r"\(.*mine.py, line 17\) to return a fl_sim.Action, got a tensor of shape \(3, 53\)"),
    ],
)
def test_what_is_no_action_is_refused_by_its_name(configure: Configure, own: Path, name: str, says: str) -> None:
    with pytest.raises(OutsideCodeError, match=says):
        checked_action(knowledge_of(3), AttackState(), configure(attack__name=f"{own}:{name}"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nothing_of_the_kind", "line 1: ModuleNotFoundError"),
        ("def f(:", "line 1: SyntaxError"),
        ("x = 1\nraise SystemExit(3)", "line 2: SystemExit: 3"),
        ("", "has no 'attack'"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_one_sentence(configure: Configure, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        configure(attack__name=f"{path}:attack")
    (problem,) = caught.value.problems
    assert says in problem
    assert str(path) in problem


def test_options_that_nobody_takes_are_refused(configure: Configure, own: Path) -> None:
    (problem,) = name_problems(configure(attack__name=f"{own}:scaled", attack__options={"tau": 1}))
    assert "has no option tau; it takes factor" in problem
    (problem,) = name_problems(configure(attack__name="label-flip", attack__options={"tau": 1}))
    assert "it takes none" in problem


def test_a_known_rule_combines_as_the_server_does(configure: Configure) -> None:
    rows, weights = torch.randn(9, 4, generator=torch.Generator().manual_seed(3)), torch.arange(1.0, 10.0)
    config = configure(strategy__name="byzfl.TrMean", strategy__options={"f": 2})
    combine = known_rule(config, PublicRule("byzfl.TrMean", combine="strategies.catalogue:public_combine")).combine
    assert combine is not None
    torch.testing.assert_close(combine(rows, weights), rows.sort(dim=0).values[2:-2].mean(dim=0))
    mean = known_rule(config, PublicRule("mean")).combine
    assert mean is not None
    torch.testing.assert_close(mean(rows, weights), (weights[:, None] * rows).sum(dim=0) / weights.sum())
    assert known_rule(config, PublicRule("flwr.FedAvg", combine=None)).combine is None
