"""Which clients a rule leaves out, against what the libraries return; and the rates of detection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, Krum, MultiKrum
from flwr.serverapp.strategy.multikrum import select_multikrum

from experiments.run.filtering import filter_rates, mean_rates
from fl_sim.config.keys import Config
from fl_sim.data.sampling import malicious_clients
from strategies.byzfl_rules import byzfl_combine
from strategies.own_rule import OwnCombine
from strategies.selection.left_out import left_out_by, rarely_a_neighbour
from tests.support.runs import lines, run

Configure = Callable[..., Config]


def rows(seed: int, n: int = 9, d: int = 6) -> torch.Tensor:
    """Noise, of which the rows 2 and 5 are far away."""
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    values[[2, 5]] += 4.0
    return values


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["Krum", "MultiKrum", "MDA"])
def test_byzfl_returns_the_mean_of_those_that_stay(name: str, seed: int) -> None:
    pytest.importorskip("byzfl")
    values, rule = rows(seed), byzfl_combine(name, {"f": 2}, 0)
    left = left_out_by(rule, values)
    assert left is not None
    torch.testing.assert_close(rule(values, torch.ones(9), torch.arange(9)), values[~left].mean(dim=0))
    assert {2, 5} <= set(torch.nonzero(left).flatten().tolist())
    assert int((~left).sum()) == (1 if name == "Krum" else 7)


@pytest.mark.parametrize("seed", range(5))
def test_flowers_selection_is_ours(seed: int) -> None:
    values = rows(seed, n=11)
    contents = [
        RecordDict({"arrays": ArrayRecord({"w": Array(row.double().numpy())}), "metrics": MetricRecord({"i": i})})
        for i, row in enumerate(values)
    ]
    for rule, kept in (
        (Krum(num_malicious_nodes=2), 1),
        (MultiKrum(num_malicious_nodes=2, num_nodes_to_select=4), 4),
        (Bulyan(num_malicious_nodes=2), 7),
    ):
        chosen = select_multikrum(contents, 2, kept)
        theirs = {int(content.metric_records["metrics"]["i"]) for content in chosen}  # pyright: ignore[reportArgumentType]
        left = left_out_by(rule, values)
        assert left is not None
        assert set(torch.nonzero(~left).flatten().tolist()) == theirs
    assert left_out_by(Bulyan(num_malicious_nodes=3), values) is None, "too few clients: Bulyan does nothing"


def test_monna_keeps_the_nearest_to_the_row_that_it_trusts() -> None:
    pytest.importorskip("byzfl")
    values = rows(1)
    rule = byzfl_combine("MoNNA", {"f": 2}, 0, lambda theta: theta)
    rule.see(torch.zeros(6))
    left = left_out_by(rule, values)
    assert left is not None
    combined = rule(values, torch.ones(9), torch.arange(9))
    torch.testing.assert_close(combined, torch.cat([values[~left], torch.zeros(1, 6)]).mean(dim=0))


def test_nnm_leaves_out_who_is_rarely_a_neighbour() -> None:
    pytest.importorskip("byzfl")
    values = rows(3)
    nearest = [np.argsort(((values - row) ** 2).sum(dim=1).numpy())[:7] for row in values]
    counts = np.bincount(np.concatenate(nearest), minlength=9)
    assert rarely_a_neighbour(values, 2).tolist() == (counts < 4.5).tolist()
    left = left_out_by(byzfl_combine("NNM+TrMean", {"f": 2}, 0), values)
    assert left is not None
    assert torch.nonzero(left).flatten().tolist() == [2, 5]


@pytest.mark.parametrize("name", ["Average", "TrMean", "CAF", "Clipping+Krum"])
def test_others_say_nothing(name: str) -> None:
    pytest.importorskip("byzfl")
    options = {"f": 2} if name != "Average" else {}
    assert left_out_by(byzfl_combine(name, options, 0), rows(0)) is None
    assert left_out_by(object(), rows(0)) is None


def test_an_own_rule_reports_in_its_state() -> None:
    rule = OwnCombine("own", lambda updates, weights, state: updates.mean(dim=0), {})
    assert left_out_by(rule, rows(0)) is None
    rule.state["left_out"] = torch.tensor([0, 0, 1, 0, 0, 1, 0, 0, 0])
    left = left_out_by(rule, rows(0))
    assert left is not None
    assert torch.nonzero(left).flatten().tolist() == [2, 5]


def test_rates_by_hand() -> None:
    rates = filter_rates([1, 2, 5], range(10), [2, 5, 7, 99])
    assert rates == {"true_positive_rate": 2 / 3, "false_positive_rate": 1 / 7, "precision": 2 / 3, "recall": 2 / 3}
    none = filter_rates([], range(3), [1])
    assert none == {"true_positive_rate": 0.0, "false_positive_rate": 0.0, "precision": None, "recall": 0.0}
    means = mean_rates([{"filtering": rates}, {}, {"filtering": none}])
    assert means is not None
    assert means["precision"] == 2 / 3
    assert means["recall"] == pytest.approx(1 / 3)
    assert mean_rates([{}]) is None


@pytest.mark.parametrize(
    "strategy",
    [
        {"strategy__name": "byzfl.MultiKrum", "strategy__options": '{"f": 3}'},
        {"strategy__name": "flwr.MultiKrum", "strategy__options": '{"num_malicious_nodes": 3, "num_nodes_to_select": 9}'},
    ],
    ids=["byzfl", "flwr"],
)
def test_noise_is_detected(configure: Configure, tmp_path: Path, strategy: dict[str, Any]) -> None:
    config = configure(
        **strategy, attack__name="gaussian", attack__poison_ratio=0.25, attack__norm_bound=1e6, attack__every=2, control=False, twin=False
    )
    summary, folder = run(config, tmp_path)
    malicious = sorted(malicious_clients(config))
    attacked = [line for line in lines(folder) if "attack" in line]
    assert [line["round"] for line in attacked] == [1, 3, 5]
    assert all(line["left_out"] == malicious for line in attacked)
    assert all(len(line["left_out"]) == 3 for line in lines(folder)), "clean rounds too"
    assert summary["filtering"] == {"true_positive_rate": 1.0, "false_positive_rate": 0.0, "precision": 1.0, "recall": 1.0}
    assert all("filtering" not in line for line in lines(folder) if line["phase"] == "recover")


def test_dgc_by_client_reports_whom_it_clipped(configure: Configure, tmp_path: Path) -> None:
    keys = {
        "strategy__name": "dgc",
        "strategy__scope": "client",
        "strategy__calibration_rounds": 10,
        "strategy__bound": 0.01,
        "strategy__margin": 1.0,
    }
    _, folder = run(configure(**keys, twin=False, control=False), tmp_path)
    assert all(len(line["left_out"]) == line["strategy"]["refused"] for line in lines(folder))
    assert any(line["left_out"] for line in lines(folder))


def test_a_mean_selects_nobody(configure: Configure, tmp_path: Path) -> None:
    summary, folder = run(configure(strategy__name="mean", twin=False, control=False), tmp_path)
    assert summary["filtering"] is None
    assert not [line for line in lines(folder) if "left_out" in line or "filtering" in line]
