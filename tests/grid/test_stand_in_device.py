"""The GPU path on a stand-in device (`tests.support.stand_in_device`): the same bytes as on the CPU, and few copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.accumulative.objectives import OBJECTIVES
from clients.catalogue import ATTACKS
from clients.client_app import answer
from experiments.run.execute import execute_run
from fl_sim.config.checks import LINE_SEARCHES
from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.grid.transports import InlineTransport
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from fl_sim.model.vectors import flat_parameters
from fl_sim.training.clipping import Clip
from fl_sim.training.local import block_sum, block_updates
from strategies.byzfl_rules import AGGREGATORS
from strategies.catalogue import FLOWER
from strategies.rule import RULES
from tests.support.runs import fingerprint, run, theta
from tests.support.stand_in_device import Copies, memory, stand_in_device

Configure = Callable[..., Config]
ONE_TRACK: Mapping[str, Any] = {"twin": False, "control": False, "client__engine": "vmap", "schedule__burn_in_epochs": 1}
DGC: Mapping[str, Any] = {"strategy__name": "dgc", "strategy__calibration_rounds": 10, "strategy__probation": 2}
FEW: Mapping[str, Any] = {  # clients, examples and rounds, for a model of 11 million parameters
    "data__num_clients": 4,
    "data__burn_in_share": 0.02,
    "attack__malicious_fraction": 0.25,
    "attack__set_size": 10,
    "attack__batch_size": 5,
    "client__batch_size": 2,
    "client__block": 2,
    "schedule__accumulate_rounds": 1,
    "schedule__recovery_rounds": 0,
    "evaluate__every": 5,
    "strategy__probe_size": 8,
}
FAST: dict[str, dict[str, Any]] = {
    "mean": {"strategy__name": "mean"},
    "stacked, alie": {"strategy__name": "flwr.FedMedian", "attack__name": "alie", "attack__malicious_fraction": 0.3},
}
SLOW: dict[str, dict[str, Any]] = {
    "clip-before": {"strategy__name": "clip-before", "attack__budget": "client"},
    "images": {"strategy__name": "mean", "attack__surface": "images", "client__local_steps": 2},
    **{
        f"attack {name}": {"attack__name": name, "attack__malicious_fraction": 0.3}
        for name in ATTACKS
        if name not in ("edge-case", *LINE_SEARCHES)
    },
    **{
        f"attack {name}": {"attack__name": name, "attack__malicious_fraction": 0.3, "attack__knowledge": "updates"}
        for name in LINE_SEARCHES
    },
    **{f"objective {name}": {"attack__objective": name} for name in OBJECTIVES},
    **{f"rule {name}": {"strategy__name": name} for name in RULES if name != "dgc"},
    **{f"rule flwr.{name}": {"strategy__name": f"flwr.{name}"} for name in FLOWER if not name.startswith("Differential")},
    **{f"rule byzfl.{name}": {"strategy__name": f"byzfl.{name}", "attack__knowledge": "rule"} for name in AGGREGATORS},
    **{f"dgc {guard}": {**DGC, "strategy__guard": guard} for guard in ("discrepancy", "rehearsing", "both")},
    **{f"dgc {action}": {**DGC, "strategy__action": action, "strategy__margin": 0.1} for action in ("backtrack", "clip", "skip")},
    "dgc of each client": {**DGC, "strategy__scope": "client"},
    "adaptive": {**DGC, "attack__discrepancy_weight": 1.0, "attack__alignment": 0.5},
    "exact": {"attack__scaling": "exact", "attack__class": 1},
    "rehearsed": {"attack__fire": "rehearsed", "attack__fire_from": 2},
    **{
        f"images {aim}": {"attack__surface": "images", "attack__pgd_aim": aim, "attack__trigger_images": "refreshed"}
        for aim in ("residual", "inner-product", "cosines")
    },
    "images by differences": {
        "attack__surface": "images",
        "attack__pgd_difference": 0.01,
        "attack__ball": "moving",
        "attack__trigger_images": "refreshed",
    },
    "model cnn": {"model__name": "cnn", "strategy__name": "clip-before"},
    "model resnet18": {"model__name": "resnet18", "strategy__name": "clip-before", **FEW},
    "batch norm": {"model__name": "cnn", "model__norm": "batch", "strategy__name": "clip-before"},
    "one by one": {"client__engine": "loop", "client__local_steps": 2, "client__weight": "share"},
    "members' data": {"attack__data": "members", "data__stream": True, "data__partition": "dirichlet"},
    "two waves": {"attack__malicious_fraction": 0.3, "monitor__action": "rollback", "monitor__drop": 0.5},
}


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    with stand_in_device(monkeypatch) as copies:
        yield copies


def same_on_both_devices(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config, folder / "cpu")
    with stand_in_device(monkeypatch) as copies:
        run(config, folder / "standin")
        assert copies["up"] > 0
    (on_cpu,), (on_device,) = ((folder / name).glob("*-*") for name in ("cpu", "standin"))
    assert fingerprint(on_device) == fingerprint(on_cpu)


@pytest.mark.parametrize("settings", FAST.values(), ids=FAST)
def test_a_run_gives_the_bytes_of_the_cpu(
    settings: dict[str, Any], configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same_on_both_devices(configure(**{**ONE_TRACK, **settings}), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("settings", SLOW.values(), ids=SLOW)
def test_every_kind_of_run_gives_the_bytes_of_the_cpu(
    settings: dict[str, Any], configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same_on_both_devices(configure(**{**ONE_TRACK, **settings}), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_bfloat16(steps: int, copies: Copies, configure: Configure, tmp_path: Path) -> None:
    """Layers compute in bfloat16 (the result is not that of float32), and updates, norms and sums are float32."""
    for precision in ("float32", "bfloat16"):
        settings = {"strategy__name": "clip-before", "client__local_steps": steps, "client__precision": precision, "attack__name": "none"}
        run(configure(**{**ONE_TRACK, **settings}), tmp_path / precision)
    (wide,), (narrow,) = ((tmp_path / precision).glob("*-*") for precision in ("float32", "bfloat16"))
    assert not torch.equal(theta(wide), theta(narrow))
    torch.testing.assert_close(theta(narrow), theta(wide), rtol=0.0, atol=0.01)


def test_a_block_that_does_not_fit_is_halved(copies: Copies, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the updates of two clients, in blocks of four: the rows are the same, their sum is added in another order."""
    config = configure(client__local_steps=2, client__engine="vmap")
    federation = load_federation(config)
    module = new_module(config, federation)
    model, before = FlatModel(module), Clip("l2", 0.1)
    start, batches = flat_parameters(module), federation.cohort([0, 1, 2, 3], 1, 2, 10)
    rows, total = block_updates(model, start, batches, config.client), block_sum(model, start, batches, config.client, before)
    monkeypatch.setitem(memory, "largest", 2 * len(start))
    with pytest.raises(torch.OutOfMemoryError):
        start.expand(3, -1).clone()
    halves = [block_updates(model, start, half, config.client) for half in batches.halves()]
    assert all(torch.equal(half.cpu(), rows.cpu()[2 * i : 2 * i + 2]) for i, half in enumerate(halves))
    halved = block_sum(model, start, batches, config.client, before)
    assert halved.norms == total.norms
    torch.testing.assert_close(halved.total.cpu(), total.total.cpu())


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_same_bytes(copies: Copies, configure: Configure, tmp_path: Path) -> None:
    config = configure(**{**ONE_TRACK, **DGC, "strategy__scope": "client", "checkpoint__every": 1})
    _, whole = run(config, tmp_path / "whole")

    def kill(track: str, round_: int, phase: str, accuracy: float | None) -> None:
        if (track, round_) == ("attacked", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute_run(config, tmp_path / "resumed", InlineTransport(answer), kill)
    _, resumed = run(config, tmp_path / "resumed")
    assert fingerprint(resumed) == fingerprint(whole)


def test_one_model_goes_up_and_one_sum_comes_down(copies: Copies, configure: Configure, tmp_path: Path) -> None:
    """Per honest round: the model up for the clients and up for the evaluation, one sum down per block's node; nothing else of size d."""
    rounds, blocks = 4, 4
    settings = {"attack__name": "none", "strategy__name": "mean", "data__num_clients": 16, "schedule__recovery_rounds": rounds}
    config = configure(**{**ONE_TRACK, **settings, "schedule__accumulate_rounds": 0})
    counted = list[Copies]()

    def count(track: str, round_: int, phase: str, accuracy: float | None) -> None:
        if track == "attacked":
            counted.append(Copies(copies))

    execute_run(config, tmp_path, InlineTransport(answer), count)
    round_copies = counted[-1] - counted[-2]
    assert round_copies["up (4810,)"] == 2
    assert round_copies["down (4810,)"] == 1
    assert round_copies["up"] <= 5 + blocks
    assert round_copies["down"] <= 5 + blocks
