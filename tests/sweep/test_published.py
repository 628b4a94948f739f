"""Published accuracies: which runs they are matched with, and how the orders are compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.sweep.numbers import published_numbers
from experiments.sweep.published import Pair, agreement, match_published
from experiments.sweep.spec import read_sweep
from fl_sim.config.resolve import resolve
from tests.support.small_study import write_study_records


def test_published_numbers_are_matched_with_the_runs_with_their_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [
        {"at": {"strategy": "mean", "attack.poison-ratio": "0.1"}, "accuracy": 33.0},
        {"at": {"strategy": "dgc", "attack.poison-ratio": "0.1"}, "round": 4, "accuracy": 44.0},
        {"at": {"strategy": "dgc", "attack.poison-ratio": "0.1"}, "round": 5, "accuracy": 44.0},
        {"at": {"strategy": "krum"}, "accuracy": 1.0},
    ]
    entry = {"source": "A", "setting": "B", "numbers": numbers}
    monkeypatch.setattr("experiments.sweep.published.published_numbers", lambda: {"test": entry})
    pairs = match_published("test", write_study_records(tmp_path))
    assert [(pair.published, pair.ours) for pair in pairs] == [(33.0, [39.0, 38.0]), (44.0, [98.0, 98.0])], "round 5 was not evaluated"
    assert [pair.setting for pair in pairs] == ["mean · poison-ratio 0.1", "dgc · poison-ratio 0.1 · round 4"]


def test_orders_are_compared_between_neighbours_that_the_paper_tells_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    chains = {"strategy": [["mean", "clip 1", "clip 0.1"], ["mean", "linf"]], "round": [["1", "2"]]}
    monkeypatch.setattr("experiments.sweep.published.published_numbers", lambda: {"test": {"chains": chains}})

    def pair(strategy: str, published: float, *ours: float, round_: int = 1) -> Pair:
        return Pair({"strategy": strategy}, round_, published, ours)

    first = [pair("mean", 10.0, 30.0), pair("clip 1", 20.0, 20.0, 44.0), pair("clip 0.1", 30.0, 31.0), pair("linf", 10.4, 99.0)]
    second = [pair("mean", 50.0, 30.0, round_=2), pair("clip 1", 20.2, 99.0, round_=2)]
    counts = agreement("test", first + second)
    # Steps: mean to clip 1 (32 over 30: same), clip 1 to 0.1 (31 under 32: other), mean to linf (not told apart); in round 2 mean to
    # clip 1 (99 over 30, published the other way); from round 1 to 2: mean (equal), clip 1 (not told apart).
    assert counts == (1, 2, 1)
    assert str(counts) == "same order in 1 of 4 neighbouring pairs (25 %), equal in 1, the other in 2"


@pytest.mark.parametrize("name", ["pang2021-table3", "pang2021-table4", "pang2021-table5", "pang2021-table6", "zhu2023-c10"])
def test_chains_and_rows_name_what_is_published(name: str) -> None:
    entry = published_numbers()[name]
    settings = [{**number["at"], **({"round": str(number["round"])} if "round" in number else {})} for number in entry["numbers"]]
    assert set(entry["rows"]) < set(settings[0])
    for axis, chains in entry["chains"].items():
        assert {value for chain in chains for value in chain} == {setting[axis] for setting in settings}
    itself = [Pair(number["at"], number.get("round"), number["accuracy"], [number["accuracy"]]) for number in entry["numbers"]]
    counts = agreement(name, itself)
    assert counts.other == counts.equal == 0
    assert counts.same >= 12


@pytest.mark.parametrize(
    ("name", "scale", "data", "epochs", "rounds"),
    [
        ("pang_table4", "", "cifar10", 100, 1000),
        ("pang_table4", "cpu", "fashion-mnist", 5, 200),
        ("pang_table4", "cpu-cifar10", "cifar10", 50, 200),
        ("pang_table5", "", "mnist", 2, 200),
        ("pang_table5", "cpu", "fashion-mnist", 2, 200),
    ],
)
def test_tables_4_and_5_have_a_cell_for_every_number(name: str, scale: str, data: str, epochs: int, rounds: int) -> None:
    sweep = read_sweep(name, scale)
    configs = [resolve({**sweep.common, **cell.flat}) for cell in sweep.cells]
    found = {(config.data.name, config.schedule.burn_in_epochs, config.schedule.accumulate_rounds) for config in configs}
    assert found == {(data, epochs, rounds)}
    numbers = published_numbers()[sweep.published]["numbers"]
    assert len(numbers) == len(sweep.cells)
    assert all(any(number["at"].items() <= cell.labels.items() for cell in sweep.cells) for number in numbers)


@pytest.mark.parametrize("scale", ["", "cpu", "cpu-cifar10", "ten-images", "batch-norm"])
@pytest.mark.parametrize("name", ["pang_table3", "pang_table6", "zhu_c10"])
def test_every_published_number_has_its_cell(name: str, scale: str) -> None:
    sweep = read_sweep(name, scale)
    configs = [resolve({**sweep.common, **cell.flat}) for cell in sweep.cells]
    assert {config.data.name for config in configs} == ({"fashion-mnist"} if scale == "cpu" else {"cifar10"})
    assert {config.server.learning_rate for config in configs} == {0.1}, "the papers'"
    assert {config.attack.keep_honest for config in configs if config.attack.objective == "cosine"} == {False}, "the released code's"
    assert {config.model.name for config in configs} == {"cnn" if "cpu" in scale else "resnet18"}
    labels = [cell.labels for cell in sweep.cells]
    for number in published_numbers()[sweep.published]["numbers"]:
        same = [config for config, of in zip(configs, labels, strict=True) if number["at"].items() <= of.items()]
        assert same, number
        rounds = number.get("round")
        if rounds:
            assert all(config.schedule.accumulate_rounds >= rounds and rounds % config.evaluate.every == 0 for config in same)
