"""The attack success rate: lines and summary against a model's predictions counted here; the same wherever it runs and resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from clients.backdoors.patterns import square, stamped
from clients.knowledge import pixel_range
from experiments.launch.preflight import preflight
from experiments.report.figures.run_figures import draw_figures
from experiments.report.tables import run_table
from experiments.run.attack_success import success_problem
from experiments.run.history import TrackHistory
from experiments.run.shared_twins import twin_key
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.data.federation import load_federation
from fl_sim.model.saved import load_model
from tests.support.runs import fingerprint, lines, run
from tests.support.workers import Workers

Configure = Callable[..., Config]
SMALL: Mapping[str, Any] = {
    "attack__name": "badnets", "attack__poison_ratio": 0.25, "attack__to_class": 4, "strategy__name": "mean", "control": False,
    "schedule__accumulate_rounds": 6, "schedule__recovery_rounds": 3, "schedule__triggers": 0, "attack__to_round": 4,
}  # fmt: skip


def test_it_is_what_the_model_says_of_stamped_images(configure: Configure, tmp_path: Path) -> None:
    config = configure(**SMALL)
    summary, folder = run(config, tmp_path)
    federation = load_federation(config)
    test, pixels = federation.test(), pixel_range(federation.dataset, torch.device("cpu"))
    images = test.inputs[test.labels != 4]
    with torch.no_grad():
        predictions = load_model(folder)(stamped(images, square((1, 8, 8)), pixels, 1.0)).argmax(dim=1)
    final = 100.0 * float((predictions == 4).double().mean())
    attacked, twin = lines(folder), lines(folder, "twin")
    assert attacked[-1]["attack_success_rate"] == attacked[-1]["whole_attack_success_rate"] == pytest.approx(final)
    rates = summary["attack_success_rate"]
    assert rates["final"] == pytest.approx(final)
    assert rates["burn_in"] == attacked[0]["start"]["whole_attack_success_rate"] == attacked[0]["start"]["attack_success_rate"]
    assert [line["round"] for line in attacked if "whole_attack_success_rate" in line] == [4, 9]
    assert rates["end_of_attack"] == attacked[3]["attack_success_rate"] > rates["burn_in"] + 10.0
    assert all("attack_success_rate" in line for line in (*attacked, *twin)), "during the attack, after it, and in the twin"
    assert summary["clean_twin"]["attack_success_rate"] == twin[-1]["whole_attack_success_rate"] < rates["end_of_attack"]
    assert "attack success rate" in str(run_table(summary).caption)
    assert folder / "success.png" in draw_figures(folder)


def test_on_a_part_of_the_test_set(configure: Configure, tmp_path: Path) -> None:
    config = configure(**SMALL, evaluate__examples=50, evaluate__every=2, twin=False)
    _, folder = run(config, tmp_path)
    victims = int((load_federation(config).test(50).labels != 4).sum())
    rates = [line["attack_success_rate"] for line in lines(folder) if "attack_success_rate" in line]
    assert len(rates) >= 4
    assert all(rate * victims / 100.0 == pytest.approx(round(rate * victims / 100.0)) for rate in rates)


def test_without_a_targeted_attack_nothing_is_written(configure: Configure, tmp_path: Path) -> None:
    summary, folder = run(configure(attack__name="label-flip", twin=False), tmp_path)
    assert summary["attack_success_rate"] is None
    assert not [key for line in lines(folder) for key in (*line, *line.get("start", {})) if "success" in key]
    assert not (folder / "success.png").exists()


OWN = '''
from clients.baselines.label_flip import label_flip
from fl_sim.data.batches import Batch

def flip(knowledge, state, shift: int = 1):
    return label_flip(knowledge, state)

def sevens(view, shift: int = 1):
    """Test images of class 7, where label flip says 2 in their place."""
    seven = view.test.labels == 7
    return Batch(view.test.inputs[seven], view.test.labels[seven] * 0 + {answer})

flip.success_test = sevens
'''


def test_an_own_attack_names_its_success(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN.replace("{answer}", "2"))
    config = configure(attack__name=f"{tmp_path}/own.py:flip", attack__poison_ratio=0.5, twin=False)
    summary, folder = run(config, tmp_path)
    confusion = lines(folder)[-1]["whole_confusion"]
    assert summary["attack_success_rate"]["final"] == pytest.approx(100.0 * confusion[7][2] / sum(confusion[7]))


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"attack__to_class": 10}, "expected attack.to-class < 10, the number of classes of the data, got 10"),
        ({"attack__name": "label-flip-pair", "attack__class": 11}, "expected attack.class < 10"),
        ({"attack__options": '{"size": 9}'}, "expected a pattern of at most 8 x 8 pixels, the size of an image, got 9 x 9"),
        ({"attack__options": '{"place": "left"}'}, "expected the pattern's place to be one of"),
        ({"attack__name": "edge-case", "attack__edge_data": "cats"}, "expected attack.edge-data to be folder or one of"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_run(configure: Configure, keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match="cannot be measured") as caught:
        preflight([configure(**{**SMALL, "grid__transport": "inline", **keys})], Console())
    assert problem in str(caught.value)


def test_a_success_test_that_returns_something_else_is_refused(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN.replace("{answer}", "2").replace("view.test.inputs[seven]", "view.test.inputs"))
    config = configure(attack__name=f"{tmp_path}/own.py:flip")
    assert "to return images of shape" in success_problem(config, load_federation(config))


def test_twins_of_different_success_tests_are_not_shared(configure: Configure) -> None:
    track = TrackHistory(({"round": 1},))
    one, other = configure(**SMALL), configure(**SMALL | {"attack__to_class": 5})
    assert twin_key(one, track) != twin_key(other, track)
    assert twin_key(one, track) == twin_key(configure(**SMALL | {"attack__boost": 2.0}), track)


@pytest.mark.parametrize(
    "booster", [{}, {"attack__mask_share": 0.1, "attack__project_norm": 1.0, "attack__boost": 0.0}], ids=["plain", "boosted"]
)
def test_workers_do_not_change_a_byte(configure: Configure, tmp_path: Path, booster: dict[str, Any]) -> None:
    config = configure(**SMALL | booster | {"attack__name": "dba", "twin": False, "client__local_steps": 2})
    one = fingerprint(run(config, tmp_path / "one")[1])
    assert one == fingerprint(run(config, tmp_path / "two", Workers(2))[1])
