"""Strategies by name: Flower's classes, ByzFL's aggregators and the user's own, under attack and against what they should compute."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from clients.client_app import answer
from experiments.launch.launch import error_console
from experiments.launch.name_checks import name_problems
from experiments.launch.preflight import checked
from experiments.records.folder import read_rounds, run_folder
from experiments.run.execute import execute_run
from fl_sim.config.keys import Config
from fl_sim.config.options import parse_options
from fl_sim.config.resolve import ConfigError, config_hash, resolve
from fl_sim.data.federation import load_federation
from fl_sim.data.sampling import sample_clients
from fl_sim.grid.grid import ClientGrid, play_round
from fl_sim.grid.transports import InlineTransport
from fl_sim.model.burn_in import burn_in
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from fl_sim.model.saved import load_model
from fl_sim.model.vectors import flat_parameters
from fl_sim.registry import load_outside
from fl_sim.training.clipping import Clip
from fl_sim.wire.arrays import to_record
from fl_sim.wire.messages import PublicRule
from fl_sim.wire.object_state import State
from strategies.byzfl_rules import byzfl_combine
from strategies.catalogue import FLOWER, build_strategy, needs_of, public_combine, strategies
from strategies.checks import strategy_notes
from strategies.dgc.thresholds import Calibration, Level, Threshold
from strategies.dgc2.levels import no_limits
from strategies.flower_host import FlowerHost

Configure = Callable[..., Config]

OPTIONS: dict[str, dict[str, Any]] = {
    "flwr.FedAvgM": {"server_momentum": 0.9},
    "flwr.FedAdam": {"eta": 0.001},
    "flwr.FedAdagrad": {"eta": 0.001},
    "flwr.FedYogi": {"eta": 0.001},
    "flwr.Krum": {"num_malicious_nodes": 2},
    "flwr.MultiKrum": {"num_malicious_nodes": 2, "num_nodes_to_select": 6},
    "flwr.Bulyan": {"num_malicious_nodes": 2},
    "flwr.DifferentialPrivacyServerSideFixedClipping": {"noise_multiplier": 0.1, "clipping_norm": 0.1},
    "flwr.DifferentialPrivacyServerSideAdaptiveClipping": {"noise_multiplier": 0.1},
    "byzfl.SMEA": {"f": 2},
    "byzfl.TrMean": {"f": 2},
    "byzfl.Krum": {"f": 2},
    "byzfl.MultiKrum": {"f": 2},
    "byzfl.MoNNA": {"f": 2},
    "byzfl.Meamed": {"f": 2},
    "byzfl.CAF": {"f": 2},
    "byzfl.MDA": {"f": 2},
    "byzfl.CenteredClipping": {"tau": 0.1},
    "byzfl.NNM+TrMean": {"f": 2},
    "byzfl.ARC+GeometricMedian": {"f": 2},
    "byzfl.Bucketing+Median": {"s": 2},
}
FOREIGN = [name for name in [*strategies.names(), "byzfl.NNM+TrMean", "byzfl.ARC+GeometricMedian", "byzfl.Bucketing+Median"] if "." in name]


def run(config: Config, folder: Path) -> torch.Tensor:
    """The last model theta (d,) of a run."""
    execute_run(config, folder, InlineTransport(answer), lambda *_: None)
    return flat_parameters(load_model(run_folder(folder, config)))


def of_name(configure: Configure, name: str, **more: Any) -> Config:
    options = OPTIONS.get(name)
    return configure(strategy__name=name, strategy__options=json.dumps(options) if options else "", twin=False, control=False, **more)


SUBSETS = ("byzfl.SMEA", "flwr.Bulyan")  # all subsets of the clients; seconds a round: one round of each, below
FAST = ("flwr.FedAdam", "flwr.FedTrimmedAvg", "flwr.Krum", "byzfl.TrMean", "byzfl.GeometricMedian")  # the others in `make test` only
NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FOREIGN if name not in SUBSETS]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_runs_under_attack_and_gives_the_same_bytes_twice(configure: Configure, tmp_path: Path, name: str) -> None:
    config = of_name(configure, name)
    assert name_problems(config) == []
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = run(config, tmp_path / "first")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1], "nobody's global generator moves"
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.equal(first, run(config, tmp_path / "second"))
    start = burn_in(config, load_federation(config), lambda *_: None).theta
    assert torch.isfinite(first).all()
    assert not torch.equal(first, start)
    lines = read_rounds(run_folder(tmp_path / "first", config))["attacked"]
    assert lines[3]["attack"]["fired"] == 1.0
    assert all(line["poison_ratio"] == pytest.approx(2 / 12) for line in lines)


@pytest.mark.parametrize("name", SUBSETS)
def test_the_slow_ones_run_too(configure: Configure, tmp_path: Path, name: str) -> None:
    config = of_name(configure, name, schedule__accumulate_rounds=0, schedule__recovery_rounds=0)
    assert torch.isfinite(run(config, tmp_path)).all()


@pytest.mark.parametrize(("flower", "momentum"), [("flwr.FedAvg", 0.0), ("flwr.FedAvgM", 0.9)])
def test_flowers_averages_are_our_mean(configure: Configure, tmp_path: Path, flower: str, momentum: float) -> None:
    """The same server step by another way: FedAvg without momentum, FedAvgM with it. Attacked, several local steps, uneven clients."""
    more = {"client__local_steps": 2, "data__partition": "dirichlet", "server__momentum": momentum}
    ours = run(configure(strategy__name="mean", twin=False, control=False, **more), tmp_path)
    theirs = run(of_name(configure, flower, **more), tmp_path)
    torch.testing.assert_close(theirs, ours, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["byzfl.Average", "byzfl.TrMean"])
def test_byzfls_average_and_trimmed_mean_are_what_they_say(name: str) -> None:
    rows = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
    given = rows.clone()
    found = byzfl_combine(name.split(".")[1], OPTIONS.get(name, {}), 1)(rows, torch.ones(9), torch.arange(9))
    trimmed = rows.sort(dim=0).values
    torch.testing.assert_close(found, rows.mean(dim=0) if name.endswith("Average") else trimmed[2:-2].mean(dim=0))
    assert torch.equal(rows, given)


def host_of(config: Config) -> tuple[FlowerHost, torch.Tensor]:
    federation = load_federation(config)
    start = burn_in(config, federation, lambda *_: None)
    model = FlatModel(new_module(config, federation), start.buffers)
    host = build_strategy(config, start.theta, lambda round_: sample_clients(config, round_), model=model, federation=federation)
    assert isinstance(host, FlowerHost)
    return host, start.theta


def one_round(host: FlowerHost, theta: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The model after a round in which the clients' updates are rows (n, d)."""
    grid = ClientGrid(InlineTransport(answer), resolve({"data.num-clients": len(rows)}), torch.zeros(0))
    messages = list(host.configure_train(1, to_record({"theta": theta}), ConfigRecord({"phase": ""}), grid))
    clients = ConfigRecord({"ids": list(range(len(rows))), "weights": [10.0] * len(rows), "norms": [0.0] * len(rows)})
    reply = Message(RecordDict({"clients": clients, "rows": to_record({"rows": rows})}), reply_to=messages[0])
    host.aggregate_train(1, [reply])
    return host.theta


def test_krum_sees_small_updates_apart(configure: Configure) -> None:
    """Flower's distances expand squares; in float32 updates of 1e-5 beside weights of 1 drown. The one in the middle must win."""
    host, theta = host_of(of_name(configure, "flwr.Krum"))
    rows = 1e-5 * torch.randn(12, len(theta), generator=torch.Generator().manual_seed(4))
    rows[5] = rows.mean(dim=0)
    moved = one_round(host, theta, rows)
    torch.testing.assert_close(theta - moved, 0.05 * rows[5], rtol=0.0, atol=2e-7)


def test_a_zero_update_does_not_divide_flowers_clipping_by_zero(configure: Configure) -> None:
    host, theta = host_of(of_name(configure, "flwr.DifferentialPrivacyServerSideFixedClipping"))
    assert torch.isfinite(one_round(host, theta, torch.zeros(12, len(theta)))).all()


OWN = '''
from __future__ import annotations

from dataclasses import dataclass

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg


@dataclass
class Setting:
    every: int


class Stubborn(FedAvg):
    """Takes every second round, and checks that it sees an ordinary federation."""

    def __init__(self, every=2):
        super().__init__(fraction_evaluate=0.0)
        self.every = Setting(every).every

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        assert len(replies) == 12
        assert len({reply.metadata.src_node_id for reply in replies}) == 12
        assert all(len(reply.content["arrays"]) > 1 for reply in replies), "named layers"
        arrays, metrics = super().aggregate_train(server_round, replies)
        return (arrays, metrics) if server_round % self.every == 0 else (None, MetricRecord({"waiting": 1}))
'''


def test_a_users_own_class_from_a_file_outside_the_project_runs_under_attack(configure: Configure, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "my_defence.py"
    path.parent.mkdir()
    path.write_text(OWN)
    config = configure(strategy__name=f"{path}:Stubborn", strategy__options="every = 3", twin=False, control=False)
    assert name_problems(config) == []
    run(config, tmp_path)
    lines = read_rounds(run_folder(tmp_path, config))["attacked"]
    moved = [line["strategy"]["applied_norm"] > 0.0 for line in lines]
    assert moved == [False, False, True, False, False, True]
    assert lines[0]["strategy"]["waiting"] == 1
    assert lines[3]["attack"]["fired"] == 1.0


def test_a_module_on_the_path_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_module.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_outside("their_module:Stubborn").__name__ == "Stubborn"


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("flwr.FedAverage", "", "did you mean 'flwr.FedAvg'?"),
        ("byzfl.Medain", "", "did you mean 'byzfl.Median'?"),
        ("byzfl.NMN+TrMean", "", "NNM, Bucketing, Clipping, ARC"),
        ("nothing", "", "package.module:name"),
        ("flwr.Krum", '{"malicious": 3}', "it has no option malicious; it takes "),
        ("byzfl.TrMean", '{"f": -1}', "f must be a non-negative integer"),
        ("byzfl.TrMean", '{"tau": 1.0}', "has no option tau"),
        ("mean", '{"f": 1}', "expected strategy.options to be empty"),
        ("no_such_module:Thing", "", "No module named 'no_such_module'"),
        ("/nowhere/file.py:Thing", "", "there is no file '/nowhere/file.py'"),
        ("json:JSONDecoder", "", "expected a subclass of flwr.serverapp.strategy.Strategy"),
        ("flwr.DifferentialPrivacyServerSideFixedClipping", "{}", "missing"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(configure: Configure, name: str, options: str, says: str) -> None:
    try:
        problems = name_problems(configure(strategy__name=name, strategy__options=options))
    except ConfigError as error:
        problems = error.problems
    (problem,) = problems
    assert says in problem
    assert name in problem


@pytest.mark.parametrize(("options", "says"), [("{", "neither JSON nor TOML"), ("[1]", "expected an object of arguments")])
def test_options_that_are_none_are_refused(configure: Configure, options: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        configure(strategy__name="flwr.FedAvg", strategy__options=options)


def test_options_that_are_none_are_one_problem_in_a_study_too() -> None:
    """Its checks go on with the other keys, to find all problems at once."""
    flat = {"data.name": "digits", "attack.name": "alie", "attack.options": "tau = 1, b = 2", "server.momentum": 2.0}
    with pytest.raises(ConfigError) as caught:
        checked([flat, flat], error_console())
    problems = caught.value.problems
    assert len([text for text in problems if text.startswith("expected attack.options to be a JSON object or TOML keys")]) == 1
    assert len([text for text in problems if text.startswith("expected server.momentum")]) == 1


def test_every_spelling_of_options_is_one_run(configure: Configure) -> None:
    spellings: list[dict[str, Any]] = [
        {"strategy__options": '{"num_malicious_nodes": 2}'},
        {"strategy__options": '{ "num_malicious_nodes" :2}'},
        {"strategy__options": "num_malicious_nodes = 2"},
        {"strategy__options": {"num_malicious_nodes": 2}},
        {"strategy__options.num_malicious_nodes": 2},
    ]
    flats = [{key.replace("__", "."): value for key, value in spelling.items()} for spelling in spellings]
    assert len({config_hash(resolve({"strategy.name": "flwr.Krum", **flat})) for flat in flats}) == 1


RULES = """
import torch

def trimmed(updates, weights, trim=1):
    return updates.sort(dim=0).values[trim:-trim].mean(dim=0)

def moving(updates, weights, clients, server_data, state):
    assert clients.tolist() == sorted(clients.tolist()) and len(clients) == len(updates)
    assert len(server_data.labels) == 64
    state["mean"] = 0.5 * state.get("mean", torch.zeros(updates.shape[1])) + updates.mean(dim=0)
    return state["mean"]

def short(updates, weights):
    return updates.mean(dim=0)[:-1]

def number(updates, weights):
    return 1.0

def broken(updates, weights):
    return updates.mean(dim=0) * float("nan")
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "my_rules.py"
    path.write_text(RULES)
    return path


def test_a_plain_function_is_a_rule(configure: Configure, tmp_path: Path, rules: Path) -> None:
    """The trimmed mean of a file is ByzFL's, to rounding; its options are arguments."""
    ours = run(configure(strategy__name=f"{rules}:trimmed", strategy__options="trim = 2", twin=False, control=False), tmp_path)
    theirs = run(of_name(configure, "byzfl.TrMean"), tmp_path)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_rule_gets_ids_data_and_a_state_that_is_saved(configure: Configure, tmp_path: Path, rules: Path) -> None:
    config = configure(strategy__name=f"{rules}:moving", twin=False, control=False)
    assert needs_of(config).server_data
    assert needs_of(config).client_ids
    federation = load_federation(config)
    start = burn_in(config, federation, lambda *_: None)
    model = FlatModel(new_module(config, federation), start.buffers)
    make = partial(build_strategy, config, start.theta, lambda round_: list(range(12)), model=model, federation=federation)
    grid, strategy = ClientGrid(InlineTransport(answer), config, start.buffers), make()
    play_round(strategy, grid, 1, "recover")
    state = strategy.save()
    play_round(strategy, grid, 2, "recover")
    expected = strategy.theta
    strategy = make()  # as in another process
    strategy.load(State(json.loads(json.dumps(state.json)), state.tensors))
    play_round(strategy, grid, 2, "recover")
    assert torch.equal(strategy.theta, expected)
    without = make()
    without.load(State(json.loads(json.dumps(state.json)), {**state.tensors, "combine.state.mean": torch.zeros(len(start.theta))}))
    play_round(without, grid, 2, "recover")
    assert not torch.equal(without.theta, expected), "the state matters"


@pytest.mark.parametrize(
    ("name", "says"),
    [("short", "to return a tensor of shape"), ("number", "got float"), ("broken", "finite numbers")],
)
def test_a_rule_that_returns_no_update_ends_the_run_by_its_name(
    configure: Configure, tmp_path: Path, rules: Path, name: str, says: str
) -> None:
    with pytest.raises(RuntimeError, match=says) as caught:
        run(configure(strategy__name=f"{rules}:{name}", twin=False, control=False), tmp_path)
    assert f"{rules}:{name}" in str(caught.value)


def test_what_a_strategy_publishes(configure: Configure) -> None:
    rows, weights = torch.randn(9, 5, generator=torch.Generator().manual_seed(2)), torch.ones(9)
    trimmed = rows.sort(dim=0).values[2:-2].mean(dim=0)
    torch.testing.assert_close(public_combine(of_name(configure, "byzfl.TrMean"))(rows, weights), trimmed)
    host, _ = host_of(of_name(configure, "flwr.FedAvg"))
    assert host.public_rule() == PublicRule("flwr.FedAvg", combine=None, step_size=0.05)
    federation = load_federation(config := configure(strategy__name="clip-after", strategy__bound=3.0, server__learning_rate=0.2))
    model = FlatModel(new_module(config, federation))
    theta = flat_parameters(new_module(config, federation))
    rule = build_strategy(config, theta, lambda round_: [0], model=model, federation=federation).public_rule()
    assert rule == PublicRule("clip-after", None, Clip("l2", 3.0), "", 0.2)


def test_what_is_not_called_of_a_flower_strategy_is_said(configure: Configure, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        OWN
        + "\n    def start(self, *args, **kwargs):\n        raise AssertionError\n\n    def configure_evaluate(self, *args):\n        return []\n"
    )
    notes = strategy_notes(configure(strategy__name=f"{path}:Stubborn"))
    assert [note.partition(": ")[2].split()[0] for note in notes] == ["start", "configure_evaluate"]
    assert strategy_notes(configure(strategy__name="flwr.FedAvg")) == []


def test_options_are_json_or_toml() -> None:
    assert parse_options('{"f": 2, "tau": 1.5}') == {"f": 2, "tau": 1.5} == parse_options("f = 2\ntau = 1.5")
    assert parse_options(" ") == {}


def test_the_table_names_what_flower_has() -> None:
    import flwr.serverapp.strategy as flower

    assert set(FLOWER) <= set(flower.__all__)


def test_a_strategy_that_makes_a_broken_model_ends_the_run(configure: Configure) -> None:
    host, theta = host_of(of_name(configure, "flwr.FedAvg"))

    class Broken(type(host.inner)):  # type: ignore[misc]
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            return ArrayRecord({name: type(array)(np.full_like(array.numpy(), np.nan)) for name, array in arrays.items()}), metrics

    host.inner = Broken()
    with pytest.raises(RuntimeError, match=r"Broken .*made a model that is not finite"):
        one_round(host, theta, torch.zeros(12, len(theta)))


@pytest.mark.parametrize("name", ["dgc", "dgc-2", "flwr.FedAvgM", "flwr.FedAdam", "byzfl.CenteredClipping"])
def test_a_saved_state_brings_back_everything_that_the_next_round_depends_on(configure: Configure, name: str) -> None:
    """The same round, once and again after two others and a restore, makes the same model: optimiser, guard and centre are back."""
    config = of_name(configure, name, strategy__calibration_rounds=10)
    federation = load_federation(config)
    start = burn_in(config, federation, lambda *_: None)
    model, lines = (
        FlatModel(new_module(config, federation), start.buffers),
        dict.fromkeys(("history", "fixed", "rise"), Threshold(1e9, 0.0)),
    )
    make = partial(
        build_strategy,
        config,
        start.theta,
        lambda round_: sample_clients(config, round_),
        model=model,
        federation=federation,
        calibration=Calibration(lines, lines, lines, {"history": Level(0.0, 9.0), "fixed": Level(0.0, 9.0)}, 1.0)
        if name == "dgc"
        else no_limits(config.data.num_clients, 0.1)._replace(cuts=torch.full((config.data.num_clients,), 1.05))
        if name == "dgc-2"
        else None,
    )
    strategy = make()
    grid = ClientGrid(InlineTransport(answer), config, start.buffers)

    def play(round_: int) -> torch.Tensor:
        play_round(strategy, grid, round_, phase="")
        return strategy.theta

    play(1)
    state = strategy.save()
    first = play(2)
    play(3)
    strategy.load(state)
    assert torch.equal(play(2), first)
    strategy = make()  # as in another process
    strategy.load(State(json.loads(json.dumps(state.json)), state.tensors))
    assert torch.equal(play(2), first)


def test_a_strategy_that_waits_for_more_nodes_than_there_are_ends_the_run(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", lambda _: None)
    host, theta = host_of(configure(strategy__name="flwr.FedAvg", strategy__options='{"min_available_nodes": 13}'))
    with pytest.raises(RuntimeError, match="more nodes than the 12 clients"):
        one_round(host, theta, torch.zeros(12, len(theta)))


def test_settings_for_clients_that_nobody_reads_are_said_once_and_different_models_refused(
    configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    host, theta = host_of(configure(strategy__name="flwr.FedAvg"))

    class Asking(type(host.inner)):  # type: ignore[misc]
        personal = False

        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            config["proximal-mu"] = 1.0
            messages = list(super().configure_train(server_round, arrays, config, grid))
            if self.personal:
                other = ArrayRecord({name: type(array)(array.numpy() + 1.0) for name, array in arrays.items()})
                messages[3].content = RecordDict({"arrays": other, "config": config})
            return messages

    host.inner = Asking()
    with caplog.at_level("WARNING", logger="flwr"):
        logging.getLogger("flwr").propagate = True
        one_round(host, theta, torch.zeros(12, len(theta)))
        one_round(host, theta, torch.zeros(12, len(theta)))
        logging.getLogger("flwr").propagate = False
    assert sum("proximal-mu" in record.message for record in caplog.records) == 1
    host.inner.personal = True
    with pytest.raises(RuntimeError, match="different models"):
        one_round(host, theta, torch.zeros(12, len(theta)))
