"""A coalition that cannot act: the run is as long as a healthy one, and its records say why no trigger fired."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clients.client_app import answer
from experiments.report.tables import run_table
from experiments.run.phases import due_round, expected_rounds, given_up, phase_of, planned_rounds
from experiments.sweep.inaction import inaction_notes
from experiments.sweep.study import complete_runs, read_study
from fl_sim.config.keys import Config
from fl_sim.data.sampling import malicious_clients, sample_clients
from fl_sim.grid.transports import InlineTransport
from fl_sim.outside_code import OutsideCodeError
from tests.support.runs import lines, run

Configure = Callable[..., Config]

ALONE = {"twin": False, "control": False}
ATTACKS = """
import fl_sim

def never(knowledge, state):
    return fl_sim.Action(knowledge.updates, metrics={"fired": 0.0})

def says_why(knowledge, state):
    return fl_sim.Action(knowledge.updates, reason="there is nothing to send")

def nan(knowledge, state):
    return fl_sim.Action(knowledge.updates * float("nan"))

def infinite(knowledge, state):
    return fl_sim.Action(knowledge.updates / 0.0)

def raises(knowledge, state):
    if knowledge.round == 2:
        raise ValueError("no [idea]")
    return fl_sim.Action(-knowledge.updates)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(ATTACKS)
    return str(path)


def members(config: Config) -> str:
    return ",".join(map(str, sorted(malicious_clients(config))))


@pytest.mark.parametrize("fault", ["fault__raises", "fault__nan"])
def test_members_that_fail_do_not_prolong_the_run(configure: Configure, tmp_path: Path, fault: str) -> None:
    """TROUBLE.md, row 4: this was a run of 1,003 rounds."""
    config = configure(**{fault: members(configure())})
    summary, folder = run(config, tmp_path)
    assert summary["rounds"] == planned_rounds(config) == 6
    assert [line["phase"] for line in lines(folder)] == ["accumulate"] * 3 + ["trigger"] + ["recover"] * 2
    assert len(lines(folder, "twin")) == len(lines(folder, "control")) == 6
    assert summary["trigger_round"] is None
    assert summary["missed_triggers"] == [4]
    assert summary["no_trigger"].startswith("round 4: every malicious client failed: ")
    assert ("fault.raises" if fault == "fault__raises" else "not finite") in summary["no_trigger"]
    assert summary["coalition"] == {"acted": 0, "idle": 0, "failed": 4, "absent": 0}
    assert summary["malicious_norm"] is None
    assert "no trigger fired: round 4" in str(run_table(summary).title)
    (note,) = [text for text in inaction_notes(complete_runs(tmp_path, read_study(tmp_path))[0]) if text.startswith("accumulative: ")]
    assert note.startswith("accumulative: no trigger fired: round 4: every malicious client failed: ")


def test_each_of_several_triggers_is_given_up_in_its_round(configure: Configure, tmp_path: Path) -> None:
    more = {"schedule__triggers": 3, "schedule__trigger_every": 2}
    config = configure(**more, **ALONE, fault__raises=members(configure()))
    summary, _ = run(config, tmp_path)
    assert summary["missed_triggers"] == [4, 6, 8]
    assert summary["rounds"] == planned_rounds(config)
    assert "and 2 more" in summary["no_trigger"]


@pytest.mark.parametrize(
    ("attack", "reason", "role"),
    [
        ("never", "the attack did not fire", "idle"),
        ("says_why", "there is nothing to send", "idle"),
        ("nan", "every malicious client failed: an update is not finite", "failed"),
        ("infinite", "every malicious client failed: an update is not finite", "failed"),
    ],
)
def test_an_attack_that_does_not_act(configure: Configure, tmp_path: Path, own: str, attack: str, reason: str, role: str) -> None:
    config = configure(attack__name=f"{own}:{attack}", **ALONE)
    summary, folder = run(config, tmp_path)
    assert summary["rounds"] == 6
    assert summary["no_trigger"] == f"round 4: {reason}"
    assert summary["coalition"][role] == 4
    assert lines(folder)[0].get("idle") == (reason if attack == "says_why" else None)


@pytest.mark.parametrize("name", ["accumulative", "trigger-only"])
def test_a_zero_gradient_is_no_trigger(configure: Configure, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_sim.model.flat_model.FlatModel.gradient", lambda self, theta, *_: 0.0 * theta)
    summary, folder = run(configure(attack__name=name, **ALONE), tmp_path)
    due = 4 if name == "accumulative" else 1
    assert summary["no_trigger"] == f"round {due}: the gradient of the trigger batch is zero"
    assert lines(folder)[due - 1]["idle"] == "the gradient of the trigger batch is zero"
    assert summary["rounds"] == due + 2


def never_sampled(configure: Configure, **more: Any) -> Config:
    """1 of 400 clients is malicious and one is sampled per round: with these rounds it is never sampled."""
    few = {"data__num_clients": 400, "attack__poison_ratio": -1.0, "attack__malicious_fraction": 0.0025, "server__clients_per_round": 1}
    config = configure(**few, **more)
    malicious = malicious_clients(config)
    assert all(malicious.isdisjoint(sample_clients(config, round_)) for round_ in range(1, 10))
    return config


def test_a_coalition_that_is_not_sampled_in_time_is_not_waited_for(configure: Configure, tmp_path: Path) -> None:
    config = never_sampled(configure, schedule__trigger_wait=4)
    summary, _ = run(config, tmp_path)
    assert summary["rounds"] == planned_rounds(config) == 6, "no round is played for a client that will not come"
    assert summary["no_trigger"] == (
        "round 4: no malicious client was sampled in round 4, and none is until round 8 (schedule.trigger-wait)"
    )
    assert summary["coalition"] == {"acted": 0, "idle": 0, "failed": 0, "absent": 4}


def test_a_due_trigger_waits_only_for_a_client_that_comes(configure: Configure) -> None:
    config = never_sampled(configure, schedule__trigger_wait=2000)
    malicious = malicious_clients(config)
    first = next(round_ for round_ in range(4, 2005) if not malicious.isdisjoint(sample_clients(config, round_)))
    assert expected_rounds(config) == 3 * (6 + first - 4)
    assert given_up(config, 4, (), malicious) == ""
    assert given_up(config, first - 1, (), malicious) == ""
    short = never_sampled(configure, schedule__trigger_wait=first - 5)
    assert f"none is until round {first - 1}" in given_up(short, 4, (), malicious)
    assert expected_rounds(short) == 18


@pytest.mark.parametrize("spent_in", [(4,), (2,), (90,)])
def test_a_phase_ends_whatever_happens(configure: Configure, spent_in: tuple[int, ...]) -> None:
    config = configure()
    assert due_round(config, ()) == 4
    assert phase_of(config, spent_in[0] + 1, spent_in, attacked=True) == "recover"
    assert phase_of(config, spent_in[0] + 3, spent_in, attacked=True) == "end"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"attack__name": "none", "attack__malicious_fraction": 0.0}, "no attack (attack.name = 'none')"),
        ({"attack__poison_ratio": 0.0}, "no client is malicious (attack.poison-ratio = 0)"),
        ({"attack__malicious_fraction": 0.0}, "no client is malicious (attack.malicious-fraction = 0)"),
        ({"schedule__triggers": 0}, "none is planned (schedule.triggers = 0)"),
    ],
)
def test_why_no_trigger_was_planned(configure: Configure, runs_dir: Path, settings: dict[str, Any], reason: str) -> None:
    summary, _ = run(configure(**settings, **ALONE), runs_dir)
    assert summary["no_trigger"] == reason


def test_the_summary_of_a_run_that_fired_has_no_reason(configure: Configure, runs_dir: Path) -> None:
    summary, folder = run(configure(), runs_dir)
    assert summary["no_trigger"] is None
    assert summary["missed_triggers"] == []
    assert summary["coalition"] == {"acted": 4, "idle": 0, "failed": 0, "absent": 0}
    attacked = [line["attack"] for line in lines(folder) if "attack" in line]
    assert summary["malicious_norm"]["largest"] == max(figures["malicious_norm"] for figures in attacked)
    assert summary["malicious_norm"]["median"] <= summary["malicious_norm"]["largest"]
    assert summary["honest_norm"]["median"] > 0.0
    assert summary["phase_rounds"] == {"played": 3, "evaluated": 3}


def test_with_the_budget_of_a_client_no_update_is_longer(configure: Configure, runs_dir: Path) -> None:
    free, _ = run(configure(**ALONE, strategy__name="mean", attack__norm_bound=0.5), runs_dir)
    assert free["malicious_norm"]["largest"] > 2.0, "two of twelve move the mean by 0.5"
    bound, folder = run(configure(**ALONE, strategy__name="mean", attack__norm_bound=0.5, attack__budget="client"), runs_dir)
    assert bound["malicious_norm"]["largest"] == pytest.approx(0.5)
    assert all(line["attack"]["malicious_norm"] <= 0.5 * (1 + 1e-6) for line in lines(folder) if "attack" in line)
    assert bound["trigger_round"] == 4


def test_the_worst_loss_is_never_negative_and_counts_the_round_before_the_trigger(configure: Configure, runs_dir: Path) -> None:
    better, _ = run(configure(attack__malicious_fraction=0.0, schedule__burn_in_epochs=0, **ALONE), runs_dir)
    assert better["worst_accuracy_in_phase"] > better["accuracy"]["burn_in"], "the model only learns"
    assert better["worst_loss_in_phase"] == 0.0
    unseen, _ = run(configure(evaluate__every=100, monitor__action="none", **ALONE), runs_dir)
    assert unseen["phase_rounds"] == {"played": 3, "evaluated": 0}
    loss = unseen["accuracy"]["burn_in"] - unseen["accuracy"]["before_trigger"]
    assert unseen["worst_loss_in_phase"] == max(loss, 0.0)


def test_an_attack_that_raises_ends_the_run_with_its_line(configure: Configure, tmp_path: Path, own: str) -> None:
    config = configure(attack__name=f"{own}:raises", **ALONE)
    with pytest.raises(OutsideCodeError) as caught:
        run(config, tmp_path)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("round 2 of the attacked track: the attack raised (attack.on-error = 'stop'): attack.name = ")
    assert first.endswith(f"{own}, line 18: ValueError: no [idea]")
    assert f'File "{own}", line 18, in raises' in rest[0]
    assert rest[-1] == "ValueError: no [idea]"


def test_an_attack_that_raises_can_be_recorded(configure: Configure, tmp_path: Path, own: str) -> None:
    config = configure(attack__name=f"{own}:raises", attack__on_error="record", **ALONE)
    summary, folder = run(config, tmp_path)
    (failing,) = [line for line in lines(folder) if "failures" in line]
    assert failing["round"] == 2
    assert set(failing["failures"]) == set(members(config).split(","))
    assert all(f"{own}, line 18: ValueError: no [idea]" in reason for reason in failing["failures"].values())
    assert summary["trigger_round"] == 4
    assert summary["coalition"] == {"acted": 3, "idle": 0, "failed": 1, "absent": 0}


def test_a_run_that_resumes_remembers_a_missed_trigger(configure: Configure, tmp_path: Path) -> None:
    config = configure(fault__raises=members(configure()), checkpoint__every=1, **ALONE)

    class Dies(InlineTransport):
        calls = 0

        def exchange(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls > 5:  # one per round
                raise KeyboardInterrupt
            return super().exchange(*args, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, Dies(answer))
    summary, _ = run(config, tmp_path)
    assert (summary["rounds"], summary["missed_triggers"]) == (6, [4])
