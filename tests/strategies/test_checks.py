"""Strategies that cannot act, or would be no defence, are refused before a run; what may surprise is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.launch.launch import error_console
from experiments.launch.preflight import notes
from fl_sim.config.keys import Config
from strategies.checks import strategy_notes, strategy_problems
from strategies.guarantees import guarantee_problem, tolerated

Configure = Callable[..., Config]
DP = "flwr.DifferentialPrivacyServerSideFixedClipping"

REFUSED: list[tuple[str, str, int, str]] = [
    ("flwr.Bulyan", '{"num_malicious_nodes": 30}', 100, "at least 4f + 3 = 123 updates"),
    ("flwr.Bulyan", "num_malicious_nodes = 0", 12, "as the plain mean does"),
    ("flwr.FedMedian", "", 1, "waits for more nodes than the 1 clients"),
    ("flwr.FedMedian", "", 2, "as the plain mean does"),
    ("flwr.FedTrimmedAvg", "", 4, "as the plain mean does"),
    ("flwr.FedTrimmedAvg", "beta = 0.0", 12, "as the plain mean does"),
    ("flwr.Krum", "num_malicious_nodes = 5", 12, "at least 2f + 3 = 13 updates"),
    ("flwr.Krum", "num_malicious_nodes = -3", 12, "expected a number of malicious clients >= 0"),
    ("flwr.MultiKrum", '{"num_nodes_to_select": 12, "num_malicious_nodes": 0}', 12, "as the plain mean does"),
    ("flwr.MultiKrum", '{"num_nodes_to_select": 11, "num_malicious_nodes": 2}', 12, "from 1 to 10"),
    ("flwr.FedAvg", "min_train_nodes = 13", 12, "waits for more nodes than the 12 clients"),
    ("flwr.FedAvg", "fraction_train = 0.0", 12, "asks no client"),
    (DP, '{"noise_multiplier": 0.0, "clipping_norm": 1e9}', 12, "as the plain mean does"),
    (DP, '{"noise_multiplier": 0.1, "clipping_norm": 0.1, "strategy": "Bulyan"}', 12, "Bulyan inside it"),
    ("byzfl.TrMean", "f = 5", 10, "at least 2f + 1 = 11 updates"),
    ("byzfl.TrMean", "f = 0", 12, "as the plain mean does"),
    ("byzfl.Krum", "f = 5", 12, "at least 2f + 3 = 13 updates"),
    ("byzfl.MultiKrum", "f = 0", 12, "as the plain mean does"),
    ("byzfl.MDA", "f = 10", 100, "at most 100,000 subsets"),
    ("byzfl.MDA", "f = 0", 12, "as the plain mean does"),
    ("byzfl.SMEA", "f = 10", 30, "at most 100,000 subsets"),
    ("byzfl.CAF", "f = 0", 12, "gave NoneType"),
    ("byzfl.Meamed", "f = 0", 12, "as the plain mean does"),
    ("byzfl.MoNNA", "f = 0", 12, "as the plain mean does"),
    ("byzfl.GeometricMedian", "T = 0", 12, "never moves the model"),
    ("byzfl.CenteredClipping", "L = 0", 12, "never moves the model"),
    ("byzfl.CenteredClipping", "tau = 1e9", 12, "as the plain mean does"),
    ("byzfl.Median", "", 1, "as the plain mean does"),
    ("byzfl.NNM+Median", "f = 0", 12, "as the plain mean does"),
    ("byzfl.NNM+Median", "f = 6", 12, "at least 2f + 1 = 13 updates"),
    ("byzfl.ARC+Median", "f = 0", 12, "ARC leaves every update as it is"),
    ("byzfl.Bucketing+Median", "", 12, "Bucketing leaves every update as it is"),
    ("byzfl.Bucketing+Median", "s = 20", 12, "as the plain mean does"),
    ("byzfl.Bucketing+TrMean", '{"s": 2, "f": 3}', 12, "got 6 (12 clients in 6 buckets)"),
    ("byzfl.Clipping+Average", "c = 1e9", 12, "as the plain mean does"),
]


@pytest.mark.parametrize(("name", "options", "n", "says"), REFUSED)
def test_what_cannot_act_is_refused_before_the_start(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, name: str, options: str, n: int, says: str
) -> None:
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", lambda _: None)
    config = configure(strategy__name=name, strategy__options=options, data__num_clients=n)
    (problem,) = strategy_problems(config)
    assert says in problem
    assert name in problem
    assert "Traceback" not in problem
    assert "\n" not in problem, "one sentence"


ACCEPTED: list[tuple[str, str, int]] = [
    ("flwr.Bulyan", "num_malicious_nodes = 24", 100),
    ("flwr.FedMedian", "", 3),
    ("flwr.FedTrimmedAvg", "", 5),
    ("flwr.Krum", "num_malicious_nodes = 4", 11),
    ("byzfl.TrMean", "f = 4", 9),
    ("byzfl.Krum", "f = 4", 11),
    ("byzfl.Bucketing+TrMean", '{"s": 2, "f": 2}', 10),
    ("byzfl.MDA", "f = 3", 12),
    ("byzfl.Median", "", 3),
    ("byzfl.Average", "", 12),
    ("flwr.FedAvg", "", 12),
]


@pytest.mark.parametrize(("name", "options", "n"), ACCEPTED)
def test_what_can_act_at_the_edge_is_accepted(configure: Configure, name: str, options: str, n: int) -> None:
    assert strategy_problems(configure(strategy__name=name, strategy__options=options, data__num_clients=n)) == []


def test_n_is_the_number_of_sampled_clients(configure: Configure) -> None:
    few = configure(strategy__name="byzfl.TrMean", strategy__options="f = 3", server__clients_per_round=6)
    assert "got 6" in strategy_problems(few)[0]


def test_own_is_for_flowers_strategies(configure: Configure) -> None:
    assert strategy_problems(configure(strategy__name="flwr.FedAvg", strategy__optimiser="own")) == []
    for name in ("mean", "byzfl.Median"):
        (problem,) = strategy_problems(configure(strategy__name=name, strategy__optimiser="own"))
        assert "expected strategy.optimiser = 'server'" in problem


@pytest.mark.parametrize(
    ("name", "options", "more", "says"),
    [
        ("flwr.FedAdam", "eta = 0.001", {}, "makes its own step"),
        ("flwr.FedAvgM", "", {}, "is flwr.FedAvg with strategy.optimiser = 'own'"),
        ("flwr.FedAvg", "fraction_train = 0.5", {}, "asks 6 of the 12 sampled clients"),
        ("byzfl.Krum", "f = 1", {"attack__malicious_fraction": 0.25}, "at most 1 malicious clients of 12: this run has up to 3"),
        ("flwr.FedTrimmedAvg", "beta = 0.2", {"attack__poison_ratio": 0.25}, "at most 2 malicious clients of 12: this run has up to 3"),
        ("clip-after", "", {"strategy__bound": float("inf")}, "it is the mean"),
    ],
)
def test_what_may_surprise_is_said(configure: Configure, name: str, options: str, more: dict[str, Any], says: str) -> None:
    config = configure(strategy__name=name, strategy__options=options, **more)
    assert strategy_problems(config) == []
    assert any(says in note for note in strategy_notes(config))


def test_that_weights_are_ignored_is_said_where_they_differ(configure: Configure) -> None:
    def said(name: str, **more: Any) -> bool:
        return any(
            "ignores client.weight" in note
            for note in notes([configure(strategy__name=name, **more)], [Path("new")], error_console(quiet=True))
        )

    uneven = {"client__weight": "share", "data__partition": "quantity-skew"}
    assert said("byzfl.Median", **uneven)
    assert said("flwr.FedMedian", **uneven)
    assert not said("flwr.FedAvg", **uneven)
    assert not said("mean", **uneven)
    assert not said("byzfl.Median"), "all weights are 10"
    assert not said("byzfl.Median", client__weight="equal", data__partition="quantity-skew")


def test_f_is_what_a_rule_is_made_for() -> None:
    assert tolerated("flwr.FedTrimmedAvg", {"beta": 0.29}, 100) == 28, "as Flower rounds"
    assert tolerated("byzfl.TrMean", {"f": 3}, 12) == 3
    assert tolerated("byzfl.NNM+Median", {"f": 3}, 12) == 3
    assert tolerated("byzfl.Bucketing+Median", {"s": 2}, 12) == 2, "six buckets"
    assert tolerated("flwr.FedMedian", {}, 12) == 5
    for name in ("mean", "dgc", "clip-after", "flwr.FedAvg", "byzfl.Average", "byzfl.NNM+Average", "byzfl.CenteredClipping", "my.py:rule"):
        assert tolerated(name, {"f": 3}, 12) is None, name
    assert guarantee_problem("my.py:rule", {"f": 99}, 3) == ""


def test_a_strategy_of_the_user_is_not_tried(configure: Configure, tmp_path: Path) -> None:
    """It may depend on the model."""
    path = tmp_path / "own.py"
    path.write_text("def rule(updates, weights):\n    assert updates.shape[1] > 100\n    return updates.mean(dim=0)\n")
    assert strategy_problems(configure(strategy__name=f"{path}:rule")) == []
