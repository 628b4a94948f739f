"""The benchmarks' legs on a few rounds: they run, count what they say, and their tables and figure can be drawn. Nothing is timed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.benchmarks import __main__ as benchmarks
from experiments.benchmarks import floor, loop, ours, soak
from experiments.benchmarks.figure import curve_figure
from experiments.benchmarks.gpu import __main__ as gpu
from experiments.benchmarks.gpu.fused import VARIANTS
from experiments.benchmarks.gpu.fused import measure as fused
from experiments.benchmarks.scale.memory import Sample
from experiments.benchmarks.workloads import CURVE, WORKLOADS, make_data, workload_of
from fl_sim.config.resolve import resolve
from fl_sim.data.federation import load_federation


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_what_its_title_says(name: str, tmp_path: Path) -> None:
    workload = WORKLOADS[name]
    make_data(workload, tmp_path)
    config = resolve(workload.flat(tmp_path, next(iter(workload.strategies)), "inline", 3))
    federation = load_federation(config)
    assert config.clients_per_round == workload.clients
    assert {len(share) for share in federation.splits.shares} == {workload.share}
    batches = federation.cohort([0, 1], 1, workload.steps, workload.batch)
    assert batches.inputs.shape == (2, workload.steps, workload.batch, 1, workload.pixels, workload.pixels)


@pytest.mark.parametrize("name", ["W1", "W3"])
def test_our_leg_and_the_loop(name: str, tmp_path: Path) -> None:
    workload = replace(WORKLOADS[name], clients=4, name=f"{name}x4")
    folder = make_data(workload, tmp_path)
    assert len(loop.measure(workload, folder, 3)) == 3
    found = ours.measure(f"{name}x4", tmp_path, 3, "inline", "mean")
    assert found["rounds"] == 3
    assert 0.0 < found["compute"] < found["round"]
    table = benchmarks.table_of(f"{name}x4", {"ours inline · mean": [found], "loop": [{"round": 0.01, "startup": 1.0}]})
    assert [column.header for column in table.columns][1] == "round (ms)"


def test_the_floor_counts_operations_and_bytes() -> None:
    # A 64-64-10 MLP: 64 * 64 + 64 * 10 multiplications and additions forward; backward as many for the weights, and 64 * 10 for the
    # hidden layer's values. The layers' biases are counted with the parameters: 64 * 64 + 64 + 64 * 10 + 10.
    seconds, operations, size = floor.measure(WORKLOADS["W1"], 2)
    assert len(seconds) == 2
    assert operations == 2 * 1000 * (2 * (64 * 64 + 64 * 10) + 64 * 10)
    assert size == 4 * (1000 * 64 + 64 * 64 + 64 + 64 * 10 + 10)


def test_legs_alternate(tmp_path: Path) -> None:
    names = [name for name, _ in benchmarks.legs_of(WORKLOADS["W4"], tmp_path, ["ours", "stock"])]
    assert names == [
        "ours ray · mean",
        "ours inline · mean",
        "stock · FedAvg",
        "ours ray · clip-before 1",
        "ours inline · clip-before 1",
        "ours ray · flwr.Krum",
        "ours inline · flwr.Krum",
        "stock · Krum",
        "ours ray · byzfl.MultiKrum f = 4",
        "ours inline · byzfl.MultiKrum f = 4",
        "ours ray · byzfl.NNM+TrMean f = 4",
        "ours inline · byzfl.NNM+TrMean f = 4",
    ]


def test_a_bound_or_options_stand_behind_a_strategys_name(tmp_path: Path) -> None:
    assert WORKLOADS["W4"].flat(tmp_path, "clip-before 1", "inline", 3)["strategy.bound"] == 1.0
    flat = WORKLOADS["W4"].flat(tmp_path, "byzfl.MultiKrum f = 4", "inline", 3)
    assert (flat["strategy.name"], flat["strategy.options"]) == ("byzfl.MultiKrum", "f = 4")


def test_legs_can_be_chosen(tmp_path: Path) -> None:
    assert [name for name, _ in benchmarks.legs_of(WORKLOADS["W1"], tmp_path, ["loop", "floor"])] == ["loop", "floor"]


def test_the_curve(tmp_path: Path) -> None:
    curve_figure(tmp_path / "clients.png", {workload_of(name).clients: {"ours inline · mean": [{"round": 0.01}]} for name in CURVE})
    assert (tmp_path / "clients.png").stat().st_size > 5000


def test_the_soak_sees_what_grows(tmp_path: Path) -> None:
    steady = [0.010] * 1000
    slower = [0.010 + 0.00001 * round_ for round_ in range(1000)]
    flat = [Sample(at * 0.01, 10**9, 2 * 10**9, at) for at in range(0, 1000, 7)]
    leaking = [Sample(at * 0.01, 10**9, 2 * 10**9 + 10**6 * at, at) for at in range(0, 1000, 7)]
    assert soak.growth(steady, flat)["seconds ratio"] == pytest.approx(1.0)
    assert soak.growth(steady, flat)["rss ratio"] == pytest.approx(1.0)
    assert soak.growth(slower, flat)["seconds ratio"] == pytest.approx((0.01 + 899.5e-5) / (0.01 + 119.5e-5))
    assert soak.growth(steady, leaking)["rss ratio"] == pytest.approx(2.9 / 2.3, rel=0.01), "of the rounds 200 to 400 and the last 200"
    assert soak.growth(steady, leaking)["rss largest ratio"] > soak.growth(steady, leaking)["rss ratio"]
    soak.soak_figure(tmp_path / "soak.png", slower, leaking, "a title")
    assert (tmp_path / "soak.png").stat().st_size > 5000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_benchmark_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["-o", str(tmp_path / "out")])
    assert "expected a GPU that PyTorch can use, got none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "CUDA" not in name and "compiled" not in name])
def test_a_fused_batch_in_each_way(variant: str) -> None:
    flat = {"model.name": "mlp", "data.num-clients": 5, "client.batch-size": 2, "attack.name": "none", "device": "cpu"}
    assert len(fused(flat, variant, 3)) == 3


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_goes_on_when_a_leg_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "RULES", {"mean": {"strategy.name": "mean"}, "unknown": {"strategy.name": "no-such-rule"}})
    monkeypatch.setattr(gpu, "ATTACKS", {"no attack": {"attack.name": "none"}})
    monkeypatch.setattr(gpu, "VARIANTS", ())
    words = ["--device", "cpu", "--preset", "digits", "--clients", "6", "--batch", "2", "--rounds", "4", "--stock", "0"]
    assert gpu.main([*words, "-o", str(tmp_path)]) == 0
    legs = json.loads((tmp_path / "gpu.json").read_text())["legs"]
    assert 0.0 < legs["mean · no attack · float32"]["compute"] < legs["mean · no attack · float32"]["round"]
    assert "no-such-rule" in legs["unknown · no attack · float32"]["error"]
    page = (tmp_path / "gpu.md").read_text()
    assert "| smoke test, ray | " in page
    assert "| unknown · no attack · bfloat16 | failed: " in page
    assert (tmp_path / "gpu.png").stat().st_size > 5000
