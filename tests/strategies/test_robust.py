"""The published defences: a contract that all of them keep, and each against a slow oracle in NumPy's float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.launch.name_checks import name_problems
from fl_sim.config.keys import Config
from fl_sim.config.resolve import resolve
from fl_sim.wire.object_state import State, restore_state, save_state
from strategies.catalogue import instance_of, options_of, public_combine
from strategies.checks import strategy_notes, strategy_problems
from strategies.own_rule import OwnCombine
from strategies.robust.catalogue import ROBUST
from strategies.robust.filters.dnc import dnc
from strategies.robust.filters.signguard import signguard
from strategies.selection.left_out import left_out_by
from strategies.trial import trial_inputs
from tests.support.runs import lines, run

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


BAD: list[tuple[str, str, str]] = [
    ("signguard", "lower = -0.1", "strategy.options.lower to be a number >= 0 and <= 1, got -0.1"),
    ("signguard", "f = 3", "it has no option f; it takes lower, upper, share"),
    ("signguard", "share = 'all'", "strategy.options.share to be a number > 0 and <= 1, got 'all'"),
    ("dnc", "iterations = 0", "strategy.options.iterations to be a whole number >= 1, got 0"),
    ("dnc", "assumed_malicious = 6", "at least 2f + 1 = 13 updates a round with dnc and f = 6, got 12"),
    ("dnc", "assumed_malicious = 0", "as the plain mean does"),
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
