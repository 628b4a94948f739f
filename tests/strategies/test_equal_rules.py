"""One server optimiser for all: a rule of Flower and the same rule of ByzFL or ours are the same defence. Weights, order, and trust."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from clients.client_app import answer
from experiments.run.execute import execute_run
from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.data.sampling import malicious_clients
from fl_sim.grid.grid import ClientGrid, play_round
from fl_sim.grid.transports import InlineTransport
from fl_sim.model.burn_in import burn_in
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from fl_sim.wire.arrays import to_record
from fl_sim.wire.messages import Order, PublicRule, Reply
from fl_sim.wire.object_state import State
from strategies.byzfl_rules import byzfl_combine
from strategies.catalogue import build_strategy, needs_of
from strategies.checks import strategy_problems
from strategies.flower_host import FlowerHost
from tests.support.runs import lines, theta

Configure = Callable[..., Config]
N, F = 12, 2
OPTIONS: dict[str, dict[str, Any]] = {
    "flwr.FedTrimmedAvg": {"beta": 0.17},  # int(0.17 * 12) is 2
    "flwr.Krum": {"num_malicious_nodes": F},
    "flwr.MultiKrum": {"num_malicious_nodes": F, "num_nodes_to_select": 6},
    "flwr.Bulyan": {"num_malicious_nodes": F},
    "flwr.DifferentialPrivacyServerSideAdaptiveClipping": {"noise_multiplier": 0.1},
    "byzfl.Krum+1": {"f": F + 1},
    "byzfl.Bucketing+Median": {"s": 2},
    "byzfl.CenteredClipping": {"tau": 0.1},
} | {
    f"byzfl.{name}": {"f": F}
    for name in ("TrMean", "Krum", "MultiKrum", "MDA", "MoNNA", "Meamed", "CAF", "SMEA", "NNM+TrMean", "ARC+GeometricMedian")
}


def of_name(configure: Configure, name: str, **more: Any) -> Config:
    options = OPTIONS.get(name)
    name = name.removesuffix("+1")
    return configure(strategy__name=name, strategy__options=json.dumps(options) if options else "", twin=False, control=False, **more)


def last_model(config: Config, folder: Path) -> torch.Tensor:
    return theta(execute_run(config, folder, InlineTransport(answer), lambda *_: None))


class Server:
    """A strategy of a configuration, given updates directly."""

    def __init__(self, config: Config) -> None:
        federation = load_federation(config)
        start = burn_in(config, federation, lambda *_: None)
        self.model = FlatModel(new_module(config, federation), start.buffers)
        self.federation, self.start = federation, start.theta
        self.strategy = build_strategy(config, start.theta, lambda _: range(N), model=self.model, federation=federation)
        self._grid = ClientGrid(InlineTransport(answer), config, start.buffers)

    def round(self, rows: torch.Tensor, weights: list[float] | None = None) -> torch.Tensor:
        """The model after a round in which the clients' updates are rows (n, d)."""
        settings = ConfigRecord({"phase": ""})
        (message,) = self.strategy.configure_train(1, to_record({"theta": self.strategy.theta}), settings, self._grid)
        clients = ConfigRecord({"ids": list(range(len(rows))), "weights": weights or [10.0] * len(rows), "norms": [0.0] * len(rows)})
        self.strategy.aggregate_train(1, [Message(RecordDict({"clients": clients, "rows": to_record({"rows": rows})}), reply_to=message)])
        return self.strategy.theta


def rows_of(d: int, seed: int = 1, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(N, d, generator=torch.Generator().manual_seed(seed))


PAIRS = [
    ("flwr.FedAvg", "mean"),
    ("flwr.FedTrimmedAvg", "byzfl.TrMean"),
    ("flwr.FedMedian", "byzfl.Median"),
]


@pytest.mark.parametrize(("flowers", "ours"), PAIRS)
def test_equal_rules_give_equal_runs(configure: Configure, tmp_path: Path, flowers: str, ours: str) -> None:
    """Attacked, with momentum 0.9, several local steps, uneven clients: as near as float32 sums in another order."""
    more = {"client__local_steps": 2, "data__partition": "dirichlet"}
    theirs, expected = (last_model(of_name(configure, name, **more), tmp_path) for name in (flowers, ours))
    torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=2e-6)


def test_krum_is_krum_with_as_many_neighbours(configure: Configure) -> None:
    """Flower's Krum adds up n - f - 2 distances, as Blanchard et al. 2017, ByzFL's n - f - 1: one more f is the same score."""
    for seed in range(5):
        flowers, byzfls = Server(of_name(configure, "flwr.Krum")), Server(of_name(configure, "byzfl.Krum+1"))
        rows = rows_of(len(flowers.start), seed)
        torch.testing.assert_close(flowers.round(rows), byzfls.round(rows), rtol=1e-6, atol=1e-7)


def test_small_updates_keep_their_digits(configure: Configure) -> None:
    """In float32 weights of about 0.1 and a client learning rate of 0.05, updates of 1e-7 would be lost."""
    server = Server(of_name(configure, "flwr.FedAvg", server__learning_rate=1.0))
    rows = rows_of(len(server.start), scale=1e-7)
    server.round(rows)
    assert isinstance(server.strategy, FlowerHost)
    torch.testing.assert_close(server.strategy.state.velocity, rows.mean(dim=0), rtol=1e-5, atol=1e-13)


def test_own_is_the_strategys_own_step(configure: Configure, tmp_path: Path) -> None:
    """FedAvg's own step is the client's learning rate without momentum."""
    more = {"client__local_steps": 2, "client__learning_rate": 0.03}
    own = last_model(of_name(configure, "flwr.FedAvg", strategy__optimiser="own", server__momentum=0.9, **more), tmp_path)
    ours = last_model(
        configure(strategy__name="mean", twin=False, server__momentum=0.0, server__learning_rate=0.03, control=False, **more), tmp_path
    )
    torch.testing.assert_close(own, ours, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["flwr.FedAvgM", "flwr.FedAdam", "flwr.FedAdagrad", "flwr.FedYogi"])
def test_an_optimiser_makes_its_own_step_whatever_the_key(configure: Configure, name: str) -> None:
    moved = []
    for optimiser in ("server", "own"):
        server = Server(of_name(configure, name, strategy__optimiser=optimiser))
        server.round(rows_of(len(server.start)))
        moved.append(server.round(rows_of(len(server.start), 2)))
        assert server.strategy.step_size == 0.05
    assert torch.equal(*moved)


def test_the_coalition_knows_the_step_that_is_made(configure: Configure) -> None:
    def published(name: str, **more: Any) -> PublicRule:
        return Server(of_name(configure, name, server__learning_rate=0.2, client__learning_rate=0.03, **more)).strategy.public_rule()

    assert published("flwr.FedMedian").step_size == 0.2
    assert published("flwr.FedMedian", strategy__optimiser="own").step_size == 0.03
    assert published("flwr.FedAdam").step_size == 0.03
    assert published("byzfl.Median").step_size == 0.2


@pytest.mark.parametrize("name", ["flwr.FedAvg", "flwr.FedMedian", "flwr.DifferentialPrivacyServerSideAdaptiveClipping", "byzfl.MoNNA"])
def test_the_velocity_is_saved(configure: Configure, name: str) -> None:
    config = of_name(configure, name)
    server = Server(config)
    d = len(server.start)
    server.round(rows_of(d, 1))
    state = server.strategy.save()
    expected = server.round(rows_of(d, 2))
    other = Server(config)
    other.strategy.load(State(json.loads(json.dumps(state.json)), state.tensors))
    assert torch.equal(other.round(rows_of(d, 2)), expected)
    without = Server(config)
    without.strategy.load(State(state.json, {**state.tensors, "velocity": torch.zeros(d)}))
    assert not torch.equal(without.round(rows_of(d, 2)), expected)


def test_a_zero_update_of_a_model_that_begins_with_zero(configure: Configure) -> None:
    """The least number above 0 has the square 0: the DP wrapper would divide by it."""
    for optimiser in ("server", "own"):
        options = '{"noise_multiplier": 0.1, "clipping_norm": 0.1}'
        name = "flwr.DifferentialPrivacyServerSideFixedClipping"
        server = Server(configure(strategy__name=name, strategy__options=options, strategy__optimiser=optimiser))
        assert isinstance(server.strategy, FlowerHost)
        server.strategy.state = server.strategy.state._replace(theta=torch.zeros_like(server.start))
        assert torch.isfinite(server.round(torch.zeros(N, len(server.start)))).all()


# Trust and order.


def test_monna_trusts_the_server_and_no_client(configure: Configure) -> None:
    """Rows 0 and 1 are malicious. ByzFL's own MoNNA averages around row 0."""
    import byzfl

    config = of_name(configure, "byzfl.MoNNA", server__learning_rate=1.0)
    assert needs_of(config).server_data
    server = Server(config)
    own = server.model.gradient(server.start, *server.federation.probe())
    rows = own + 0.01 * own.norm() * rows_of(len(own)) / len(own) ** 0.5
    rows[:F] = -100.0 * own
    server.round(rows)
    combined = server.start - server.strategy.theta
    torch.testing.assert_close(combined, torch.cat([own.unsqueeze(0), rows[F:]]).mean(dim=0), rtol=1e-4, atol=1e-6)
    assert (combined - own).norm() < 0.1 * own.norm()
    assert (byzfl.MoNNA(f=F)(rows) - own).norm() > 10.0 * own.norm()
    assert server.strategy.public_rule().combine is None, "the server's data is not public"


def test_monna_may_not_be_told_to_trust_a_client(configure: Configure) -> None:
    (problem,) = strategy_problems(configure(strategy__name="byzfl.MoNNA", strategy__options='{"f": 2, "idx": 1}'))
    assert "no option idx" in problem


@pytest.mark.parametrize(
    "name", ["Average", "Median", "TrMean", "GeometricMedian", "Krum", "MultiKrum", "CenteredClipping", "MDA", "MoNNA", "Meamed", "CAF", "NNM+TrMean", "ARC+GeometricMedian"]
)  # fmt: skip
def test_the_order_of_clients_does_not_matter_to_byzfl(name: str) -> None:
    rows, order = rows_of(6, 3), torch.randperm(N, generator=torch.Generator().manual_seed(4))

    def combined(updates: torch.Tensor) -> torch.Tensor:
        combine = byzfl_combine(name, OPTIONS.get(f"byzfl.{name}", {}), 1, lambda theta: theta)
        combine.see(torch.full((6,), 0.1))
        return combine(updates, torch.ones(N), torch.arange(N))

    torch.testing.assert_close(combined(rows[order]), combined(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["flwr.FedAvg", "flwr.FedMedian", "flwr.FedTrimmedAvg", "flwr.Krum", "flwr.MultiKrum", "flwr.Bulyan"])
def test_the_order_of_clients_does_not_matter_to_flower(configure: Configure, name: str) -> None:
    config = of_name(configure, name)
    rows, order = rows_of(len(Server(config).start), 3), torch.randperm(N, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(Server(config).round(rows[order]), Server(config).round(rows), rtol=1e-5, atol=1e-6)


# Weights.


@pytest.mark.parametrize(
    ("name", "weighted"),
    [
        ("mean", True),
        ("flwr.FedAvg", True),
        ("flwr.MultiKrum", True),
        ("flwr.FedMedian", False),
        ("flwr.FedTrimmedAvg", False),
        ("flwr.Krum", False),
        ("flwr.Bulyan", False),
        ("byzfl.Median", False),
        ("byzfl.Average", False),
        ("byzfl.NNM+TrMean", False),
    ],
)
def test_a_strategy_says_whether_weights_count_and_it_is_so(configure: Configure, name: str, weighted: bool) -> None:
    config = of_name(configure, name)
    server, other = Server(config), Server(config)
    assert server.strategy.public_rule().weighted == weighted
    if name != "mean":  # its updates arrive as one sum
        rows = rows_of(len(server.start))
        uneven = [float(1 + 7 * i) for i in range(N)]
        assert torch.equal(server.round(rows), other.round(rows, uneven)) == (not weighted)


class Watched(InlineTransport):
    """Keeps the rows of each round."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.replies: list[Reply] = []

    def _answer(self, order: Order) -> Reply:
        self.replies.append(reply := answer(order))
        return reply


@pytest.mark.parametrize("knowledge", ["omniscient", "coalition"])
@pytest.mark.parametrize("name", ["byzfl.Average", "flwr.FedMedian", "mean"])
def test_the_budget_holds_against_the_rule_that_is_applied(configure: Configure, name: str, knowledge: str) -> None:
    """eta = 1, members with small shares: with weights that the rule ignores they would move the mean by more than eta."""
    more: dict[str, Any] = {"client__weight": "share", "data__partition": "quantity-skew", "attack__name": "gaussian", "attack__tau": 50.0}
    config = of_name(configure, name, attack__norm_bound=1.0, attack__knowledge=knowledge, client__batch_size=5, **more)
    honest, server, watched = Server(config), Server(config), Watched()

    def mean_of(transport: InlineTransport, malicious: frozenset[int], target: Server) -> torch.Tensor:
        grid = ClientGrid(transport, config, torch.zeros(0), malicious=malicious)
        play_round(target.strategy, grid, 1, "accumulate")
        return target.start - target.strategy.theta

    clean = mean_of(InlineTransport(answer), frozenset(), honest)
    attacked = mean_of(watched, malicious_clients(config), server)
    (weights,) = {tuple(report.weight for reports in reply.reports.values() for report in reports) for reply in watched.replies}
    assert (set(weights) == {1.0}) == (name != "mean")
    if name != "flwr.FedMedian" and knowledge == "omniscient":
        moved = torch.linalg.vector_norm(attacked - clean) / config.server.learning_rate
        assert float(moved) == pytest.approx(1.0, rel=1e-3)


def test_equal_weights_make_the_mean_the_average(configure: Configure, tmp_path: Path) -> None:
    more = {"data__partition": "quantity-skew", "attack__name": "none"}
    ours = last_model(of_name(configure, "mean", client__weight="equal", **more), tmp_path)
    byzfls = last_model(of_name(configure, "byzfl.Average", client__weight="share", **more), tmp_path)
    torch.testing.assert_close(ours, byzfls, rtol=1e-4, atol=1e-6)
    assert not np.allclose(ours, last_model(of_name(configure, "mean", client__weight="share", **more), tmp_path), atol=1e-5)
    assert len(lines(next(tmp_path.glob("test-*")))) == 6
