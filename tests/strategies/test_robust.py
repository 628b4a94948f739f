"""The published defences: a contract that all of them keep, and each against a slow oracle in NumPy's float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiments.launch.name_checks import name_problems
from fl_sim.config.keys import Config
from fl_sim.config.resolve import resolve
from fl_sim.model.flat_model import FlatModel
from fl_sim.rng.streams import seeded_global_generators
from fl_sim.wire.object_state import State, restore_state, save_state
from strategies.byzfl_rules import byzfl_combine
from strategies.catalogue import instance_of, options_of, public_combine
from strategies.checks import strategy_notes, strategy_problems
from strategies.own_rule import OwnCombine
from strategies.robust.catalogue import ROBUST
from strategies.robust.filters.clipped_clustering import clipped_clustering
from strategies.robust.filters.dnc import dnc
from strategies.robust.filters.flame import flame
from strategies.robust.filters.signguard import signguard
from strategies.robust.layers import output_layer
from strategies.robust.noise.weak_dp import weak_dp
from strategies.robust.weights.fltrust import fltrust
from strategies.robust.weights.foolsgold import foolsgold
from strategies.robust.weights.rlr import rlr
from strategies.selection.left_out import left_out_by
from strategies.trial import trial_inputs
from tests.support import oracles
from tests.support.runs import fingerprint, lines, run
from tests.support.workers import Workers

Configure = Callable[..., Config]
N, D, F = 12, 8, 3


def rows(seed: int, n: int = N, d: int = D) -> Tensor:
    """Updates around a common direction; the last F of them point against it."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.ones(d) + 0.3 * torch.randn(n, d, generator=generator)
    values[n - F :] -= 2.5
    return values


def combine_of(name: str, **options: Any) -> OwnCombine:
    """A defence with stand-ins for the server's model and data."""
    keys = {"data.num-clients": N, "attack.poison-ratio": F / N, "strategy.name": name, "strategy.options": json.dumps(options)}
    combine = instance_of(resolve(keys), trial_inputs(N)).combine  # pyright: ignore
    assert isinstance(combine, OwnCombine)
    return combine


def call(combine: OwnCombine, updates: Tensor, clients: Tensor | None = None) -> Tensor:
    combine.see(torch.zeros(D))
    return combine(updates, torch.ones(len(updates)), torch.arange(len(updates)) if clients is None else clients)


@pytest.mark.parametrize("name", list(ROBUST))
def test_the_contract(name: str) -> None:
    """Shape, dtype, finite, deterministic, no mutation; a report of the right shape; the mean of equal updates up to noise."""
    updates = rows(1)
    before, first = updates.clone(), combine_of(name)
    combined = call(first, updates)
    assert combined.shape == (D,)
    assert combined.dtype == torch.float32
    assert torch.isfinite(combined).all()
    assert torch.equal(updates, before)
    assert torch.equal(combined, call(combine_of(name), updates))
    left = left_out_by(first, updates)
    assert left is None or left.shape == (N,)


@pytest.mark.parametrize("name", list(ROBUST))
def test_a_saved_state_brings_back_the_next_round(name: str) -> None:
    combine, other = combine_of(name), combine_of(name)
    call(combine, rows(1))
    saved = save_state({"combine": combine})
    expected = call(combine, rows(2))
    restore_state(State(json.loads(json.dumps(saved.json)), saved.tensors), {"combine": other})
    assert torch.equal(call(other, rows(2)), expected)


def oracle_signguard(updates: np.ndarray, drawn: list[int], lower: float, upper: float) -> tuple[np.ndarray, list[int]]:
    """By loops; mean shift by its definition: each point climbs to the mean of the points within the bandwidth."""
    norms = [np.sqrt((row**2).sum()) for row in updates]
    middle = np.median(norms)
    features = np.array([[np.mean([np.sign(row[j]) == sign for j in drawn]) for sign in (1, 0, -1)] for row in updates])
    features /= np.maximum(features.max(axis=0), 1e-8)
    n = len(updates)
    near = [sorted(np.linalg.norm(features - point, axis=1))[: int(n * 0.5)] for point in features]
    bandwidth = max(np.mean([distances[-1] for distances in near]), 1e-6)
    tops = []
    for point in features:
        for _ in range(300):
            moved = features[np.linalg.norm(features - point, axis=1) <= bandwidth].mean(axis=0)
            if np.linalg.norm(moved - point) < 1e-3 * bandwidth:
                break
            point = moved
        tops.append(point)
    groups = [[i for i in range(n) if np.linalg.norm(tops[i] - top) < bandwidth] for top in tops]
    largest = max(groups, key=len)
    kept = [i for i in largest if lower * middle < norms[i] < upper * middle]
    return np.mean([updates[i] * min(1.0, middle / norms[i]) for i in kept], axis=0), kept


@pytest.mark.parametrize("seed", range(5))
def test_signguard_is_its_oracle(seed: int) -> None:
    updates = rows(seed, d=60)
    updates[0] *= 9.0
    updates[1] *= 0.01
    report: dict[str, Any] = {}
    combined = signguard(updates, torch.ones(N), torch.Generator().manual_seed(seed), report, share=0.5)
    drawn = torch.randperm(60, generator=torch.Generator().manual_seed(seed))[:30].tolist()
    expected, kept = oracle_signguard(updates.double().numpy(), drawn, 0.1, 3.0)
    assert torch.nonzero(~report["left_out"]).flatten().tolist() == kept == list(range(2, N - F))
    np.testing.assert_allclose(combined.numpy(), expected, rtol=2e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("iterations", [1, 3])
def test_dnc_is_its_oracle(seed: int, iterations: int) -> None:
    updates, report = rows(seed, d=60), dict[str, Any]()
    combined = dnc(updates, torch.ones(N), torch.Generator().manual_seed(seed), report, 5, iterations, 40)
    generator, kept = torch.Generator().manual_seed(seed), set(range(N))
    for _ in range(iterations):
        drawn = torch.randperm(60, generator=generator)[:40].numpy()
        part = updates.double().numpy()[:, drawn]
        centred = part - part.mean(axis=0)
        _, _, vt = np.linalg.svd(centred)
        scores = [float(row @ vt[0]) ** 2 for row in centred]
        kept &= set(np.argsort(scores)[: N - 5])
    assert set(torch.nonzero(~report["left_out"]).flatten().tolist()) == kept
    assert kept <= set(range(N - F)), "the outliers stand out"
    np.testing.assert_allclose(combined.numpy(), updates.double().numpy()[sorted(kept)].mean(axis=0), rtol=1e-6)


def densest_majority(distances: np.ndarray) -> set[int]:
    """Single linkage by mutual reachability: the component that first holds more than half of the points as the threshold grows."""
    n = len(distances)
    core = np.sort(distances, axis=1)[:, 1]
    reach = np.maximum(distances, np.maximum(core[:, None], core[None, :]))
    component = list(range(n))
    for _, a, b in sorted((reach[i, j], i, j) for i in range(n) for j in range(i)):
        component = [component[a] if label == component[b] else label for label in component]
        members = {k for k in range(n) if component[k] == component[a]}
        if 2 * len(members) > n:
            return members
    raise AssertionError


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_flame_is_its_oracle(seed: int, noise: float) -> None:
    """The cluster of models, the clip at the median length of all, the noise relative to it."""
    updates, theta, lr = rows(seed, d=60), torch.linspace(-1.0, 1.0, 60), 0.1
    updates[2] *= 5.0
    report: dict[str, Any] = {}
    combined = flame(updates, torch.ones(N), theta, lr, torch.Generator().manual_seed(seed), report, noise)
    g, models = updates.double().numpy(), theta.double().numpy() - lr * updates.double().numpy()
    unit = [model / np.sqrt((model**2).sum()) for model in models]
    kept = densest_majority(np.array([[0.0 if i == j else 1.0 - a @ b for j, b in enumerate(unit)] for i, a in enumerate(unit)]))
    assert set(torch.nonzero(~report["left_out"]).flatten().tolist()) == kept
    assert kept <= set(range(N - F))
    norms = [np.sqrt((row**2).sum()) for row in g]
    bound = np.median(norms)
    expected = np.mean([g[i] * min(1.0, bound / norms[i]) for i in sorted(kept)], axis=0)
    drawn = torch.randn(60, generator=torch.Generator().manual_seed(seed)).double().numpy()
    np.testing.assert_allclose(combined.numpy(), expected + noise * bound * drawn, rtol=3e-6, atol=1e-7)


def test_flame_takes_models_for_what_they_are() -> None:
    """The cosine of two models is that of theta and their updates: an update a hundred times as long is another model, in the same direction."""
    updates = rows(3, d=60)[: N - F]
    updates[4] *= 100.0
    report: dict[str, Any] = {}
    flame(updates, torch.ones(N - F), torch.linspace(-1.0, 1.0, 60), 0.1, torch.Generator(), report)
    assert bool(report["left_out"][4])


def average_linkage(distances: np.ndarray) -> list[set[int]]:
    """Merges the two groups with the smallest mean distance until two are left."""
    groups = [{i} for i in range(len(distances))]
    while len(groups) > 2:
        pairs = [(np.mean([distances[i, j] for i in a for j in b]), x, y) for x, a in enumerate(groups) for y, b in enumerate(groups[:x])]
        _, x, y = min(pairs)
        groups[y] |= groups.pop(x)
    return groups


def test_clipped_clustering_is_its_oracle_over_rounds() -> None:
    """The bound is the median over all rounds so far."""
    state, history = dict[str, Tensor](), list[float]()
    for seed in range(4):
        updates, report = (1.0 + seed) * rows(seed, d=60), dict[str, Any]()
        combined = clipped_clustering(updates, torch.ones(N), state, report)
        g = updates.double().numpy()
        norms = [np.sqrt((row**2).sum()) for row in g]
        history += norms
        distances = np.array([[1.0 - a @ b / (x * y) for b, y in zip(g, norms, strict=True)] for a, x in zip(g, norms, strict=True)])
        kept = sorted(max(average_linkage(distances), key=len))
        bound = np.median(history)
        expected = np.mean([g[i] * min(1.0, bound / norms[i]) for i in kept], axis=0)
        assert torch.nonzero(~report["left_out"]).flatten().tolist() == kept == list(range(N - F))
        assert report["clipped"] == sum(norm > bound for norm in norms)
        np.testing.assert_allclose(combined.numpy(), expected, rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_fltrust_is_its_oracle(seed: int) -> None:
    """Nobody counts by length; who points away from the server does not count at all."""
    updates, report = rows(seed, d=60), dict[str, Any]()
    updates[1] *= 1e4
    updates[2] = 0.0
    own = torch.ones(60) + 0.5 * torch.randn(60, generator=torch.Generator().manual_seed(seed + 100))
    combined = fltrust(updates, torch.ones(N), own, report)
    g, g0 = updates.double().numpy(), own.double().numpy()
    length = np.sqrt((g0**2).sum())
    total, scores = np.zeros(60), []
    for row in g:
        norm = np.sqrt((row**2).sum())
        scores.append(0.0 if norm == 0.0 else max(0.0, row @ g0 / (norm * length)))
        total += 0.0 if norm == 0.0 else scores[-1] * length / norm * row
    np.testing.assert_allclose(combined.numpy(), total / sum(scores), rtol=3e-6)
    assert torch.nonzero(report["left_out"]).flatten().tolist() == [2, *range(N - F, N)]
    assert not fltrust(-own.expand(3, -1), torch.ones(3), own, {}).any(), "nobody is trusted"


def oracle_foolsgold(histories: np.ndarray) -> list[float]:
    """The authors' code, client by client."""
    n = len(histories)
    norms = [np.sqrt((row**2).sum()) for row in histories]
    cs = [[0.0 if i == j else histories[i] @ histories[j] / (norms[i] * norms[j]) for j in range(n)] for i in range(n)]
    largest = [max(row) for row in cs]
    for i in range(n):
        for j in range(n):
            if largest[j] > largest[i]:
                cs[i][j] *= largest[i] / largest[j]
    a = [min(max(1.0 - max(row), 0.0), 1.0) for row in cs]
    a = [min(x / max(a), 0.99) for x in a]
    return [0.0 if x == 0.0 else min(max(np.log(x / (1.0 - x)) + 0.5, 0.0), 1.0) for x in a]


@pytest.mark.parametrize("features", ["output", "all"])
def test_foolsgold_is_its_oracle_over_rounds(features: str) -> None:
    """Clients 7, 8 and 9 send nearly the same; client 5 is not there in the second round."""
    model, d = FlatModel(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6))), 46
    part = slice(16, 46) if features == "output" else slice(0, 46)
    state, sums = dict[str, Tensor](), np.zeros((10, d))
    for seed in range(3):
        clients = torch.tensor([i for i in range(10) if (i, seed) != (5, 1)])
        updates = torch.randn(len(clients), d, generator=torch.Generator().manual_seed(seed))
        updates[-3:] = updates[-1] + 0.05 * torch.randn(3, d, generator=torch.Generator().manual_seed(seed + 50))
        report: dict[str, Any] = {}
        combined = foolsgold(updates, torch.ones(len(clients)), clients, model, state, report, features)
        sums[clients.numpy()] += updates.double().numpy()
        shares = oracle_foolsgold(sums[clients.numpy()][:, part])
        expected = sum(share * row for share, row in zip(shares, updates.double().numpy(), strict=True)) / sum(shares)
        np.testing.assert_allclose(combined.numpy(), expected, rtol=1e-5, atol=1e-6)
        assert report["left_out"].tolist() == [share == 0.0 for share in shares]
        assert {7, 8, 9} <= set(clients[report["left_out"]].tolist())


def test_foolsgold_of_one_client_many_times_is_nothing() -> None:
    same = torch.ones(4, 8).cumsum(dim=1)
    model = FlatModel(nn.Linear(3, 2))
    assert not foolsgold(same, torch.ones(4), torch.arange(4), model, {}, {}).any()


@pytest.mark.parametrize("threshold", [0, 7])
def test_rlr_is_its_oracle(threshold: int) -> None:
    updates, weights = torch.randn(N, 60, generator=torch.Generator().manual_seed(1)) + 0.3, torch.arange(1.0, N + 1)
    report: dict[str, Any] = {}
    combined = rlr(updates, weights, report, F, threshold)
    expected = []
    for column in updates.double().numpy().T:
        mean = sum(w * x for w, x in zip(range(1, N + 1), column, strict=True)) / sum(range(1, N + 1))
        expected.append(mean if abs(sum(np.sign(column))) >= (threshold or F + 1) else -mean)
    np.testing.assert_allclose(combined.numpy(), expected, rtol=1e-5, atol=1e-7)
    means = (weights @ updates) / weights.sum()
    assert report["turned"] == pytest.approx(float((combined * means < 0).double().mean()))
    assert 0.0 < report["turned"] < 1.0


def test_weak_dp_is_its_oracle() -> None:
    updates, weights, report = rows(1, d=60), torch.arange(1.0, N + 1), dict[str, Any]()
    combined = weak_dp(updates, weights, torch.Generator().manual_seed(5), report, 8.0, 0.1)
    clipped = [oracles.clip(row, 8.0, "l2") for row in updates.double().numpy()]
    drawn = torch.randn(60, generator=torch.Generator().manual_seed(5)).double().numpy()
    np.testing.assert_allclose(combined.numpy(), oracles.weighted_mean(clipped, weights.tolist()) + 0.1 * drawn, rtol=1e-5, atol=1e-6)
    assert 0 < report["clipped"] == sum(np.sqrt((row**2).sum()) > 8.0 for row in updates.double().numpy()) < N


@pytest.mark.parametrize("s", [1, 3])
def test_centred_clipping_with_bucketing_is_byzfls(s: int) -> None:
    """Karimireddy et al. 2021 and 2022: ByzFL's own, around the last round's result, against loops."""
    combine = byzfl_combine("Bucketing+CenteredClipping", {"s": s, "tau": 2.0, "L": 2}, 1)
    centre = np.zeros(60)
    for seed in range(3):
        updates = rows(seed, d=60)
        combined = combine(updates, torch.ones(N), torch.arange(N))
        with seeded_global_generators(1, "byzfl", seed + 1):
            order = torch.randperm(N).numpy()
        if s == 1:
            order = np.arange(N)
        buckets = updates.double().numpy()[order].reshape(N // s, s, 60).mean(axis=1)
        for _ in range(2):
            steps = [row - centre for row in buckets]
            centre = centre + np.mean([step * min(1.0, 2.0 / np.sqrt((step**2).sum())) for step in steps], axis=0)
        np.testing.assert_allclose(combined.numpy(), centre, rtol=1e-5, atol=1e-6)


def test_the_output_layer_is_the_last_weights_and_their_bias() -> None:
    assert output_layer(FlatModel(nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Linear(2, 5)))) == slice(24, 39)
    assert output_layer(FlatModel(nn.Linear(3, 2))) == slice(0, 8)


BAD: list[tuple[str, str, str]] = [
    ("signguard", "lower = -0.1", "strategy.options.lower to be a number >= 0 and <= 1, got -0.1"),
    ("signguard", "f = 3", "it has no option f; it takes lower, upper, share"),
    ("signguard", "share = 'all'", "strategy.options.share to be a number > 0 and <= 1, got 'all'"),
    ("dnc", "iterations = 0", "strategy.options.iterations to be a whole number >= 1, got 0"),
    ("dnc", "assumed_malicious = 6", "at least 2f + 1 = 13 updates a round with dnc and f = 6, got 12"),
    ("dnc", "assumed_malicious = 0", "as the plain mean does"),
    ("flame", "noise = -1", "strategy.options.noise to be a number >= 0, got -1"),
    ("clipped-clustering", "linkage = 'ward'", "strategy.options.linkage to be one of average, single, complete, got 'ward'"),
    ("foolsgold", "features = 'last'", "strategy.options.features to be one of output, all, got 'last'"),
    ("fltrust", "share = 1", "it has no option share; it takes none"),
    ("rlr", "threshold = 13", "strategy.options.threshold to be a whole number >= 0 and <= 12, got 13"),
    ("rlr", "threshold = 1.5", "strategy.options.threshold to be a whole number >= 0 and <= 12, got 1.5"),
    ("weak-dp", "bound = 0", "strategy.options.bound to be a number > 0, got 0"),
    ("weak-dp", '{"bound": 1e9, "noise": 0.0}', "as the plain mean does"),
]


@pytest.mark.parametrize(("name", "options", "says"), BAD)
def test_a_bad_option_is_one_sentence_before_the_start(configure: Configure, name: str, options: str, says: str) -> None:
    (problem,) = name_problems(configure(strategy__name=name, strategy__options=options))
    assert says in problem
    assert name in problem


# How many malicious clients a rule expects.


@pytest.mark.parametrize(
    ("name", "option"),
    [("dnc", "assumed_malicious"), ("byzfl.TrMean", "f"), ("byzfl.NNM+Median", "f"), ("flwr.Krum", "num_malicious_nodes")],
)
def test_one_key_tells_every_rule(configure: Configure, name: str, option: str) -> None:
    assert options_of(configure(strategy__name=name)) == {option: 2}, "0.17 of 12"
    assert options_of(configure(strategy__name=name, attack__poison_ratio=0.25)) == {option: 3}
    assert options_of(configure(strategy__name=name, attack__poison_ratio=0.0)) == {option: 1}, "a rule that expects nobody is the mean"
    assert options_of(configure(strategy__name=name, attack__name="none")) == {option: 2}, "the rule of the attacked run"
    assert options_of(configure(strategy__name=name, strategy__assumed_malicious=4)) == {option: 4}
    both = configure(strategy__name=name, strategy__assumed_malicious=4, strategy__options=json.dumps({option: 1}))
    assert options_of(both) == {option: 1}, "the option wins"
    assert any("expects 2 malicious clients of 12" in note for note in strategy_notes(configure(strategy__name=name)))
    assert not any("expects" in note for note in strategy_notes(both))


def test_flowers_trimmed_mean_keeps_its_own_default(configure: Configure) -> None:
    assert options_of(configure(strategy__name="flwr.FedTrimmedAvg")) == {}
    for f in range(6):
        beta = options_of(configure(strategy__name="flwr.FedTrimmedAvg", strategy__assumed_malicious=f))["beta"]
        assert int(beta * N) == f
    assert options_of(configure(strategy__name="byzfl.Median")) == {}
    (problem,) = strategy_problems(configure(strategy__name="byzfl.TrMean", strategy__assumed_malicious=7))
    assert "(strategy.assumed-malicious: 7)" in problem
    assert "at least 2f + 1 = 15" in problem


def test_a_rule_of_ones_own_is_told_too(configure: Configure, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "def rule(updates, weights, report, server_lr, client_lr, assumed_malicious=0):\n"
        "    report['told'], report['rates'] = assumed_malicious, server_lr + client_lr\n"
        "    return updates.mean(dim=0)\n"
    )
    summary, folder = run(configure(strategy__name=f"{path}:rule", twin=False, control=False), tmp_path)
    assert {(line["strategy"]["told"], line["strategy"]["rates"]) for line in lines(folder)} == {(2.0, 0.1)}
    assert summary["assumed_malicious"] == 2


def test_the_coalitions_copy_draws_other_numbers(configure: Configure) -> None:
    config = configure(strategy__name="dnc", strategy__options='{"coordinates": 2}', data__num_clients=N)
    differ = 0
    for seed in range(5):
        updates = torch.randn(N, D, generator=torch.Generator().manual_seed(seed))
        rule = instance_of(config)
        differ += not torch.equal(rule.combine(updates, torch.ones(N), torch.arange(N)), public_combine(config)(updates, torch.ones(N)))  # pyright: ignore
    assert differ > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ROBUST))
def test_the_bytes_do_not_depend_on_workers_or_packing(configure: Configure, tmp_path: Path, name: str) -> None:
    """A whole attacked run of one process, and over three workers whose replies come in another order."""
    config = configure(strategy__name=name, twin=False, control=False)
    expected = fingerprint(run(config, tmp_path / "one")[1])
    assert fingerprint(run(config, tmp_path / "three", Workers(3))[1]) == expected
    assert "skipped" not in expected[1][0]
