"""The published defences that weigh, clip, thin out or blur, against loops in NumPy's float64; and the smoothed test."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_sim.config.keys import Config
from fl_sim.data.batches import Batch
from fl_sim.model.flat_model import FlatModel
from fl_sim.wire.object_state import State, restore_state, save_state
from strategies.catalogue import instance_of
from strategies.checks import strategy_problems
from strategies.robust.noise.crfl import crfl
from strategies.robust.noise.smoothing import COPIES, ERROR, smoothed_test, votes
from strategies.robust.noise.sparsefed import sparsefed
from strategies.robust.weights.afa import afa, blocked
from strategies.robust.weights.zeno import zeno
from strategies.rule import CannotCombineError
from strategies.server_sgd import ServerState, server_step
from strategies.trial import trial_inputs
from tests.support.rule_views import SIZE, rule_view
from tests.support.runs import lines, run

Configure = Callable[..., Config]
N = 12


def rows(seed: int, n: int = N, d: int = SIZE) -> Tensor:
    return torch.linspace(-1.0, 2.0, d) + 0.5 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def close(combined: Tensor, expected: Any, tolerance: float = 1e-6) -> None:
    """The largest difference is below a share of the largest number."""
    assert np.abs(combined.double().numpy() - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sparsefed_is_its_oracle(momentum: float) -> None:
    weights, state = torch.arange(1.0, N + 1), dict[str, Tensor]()
    waiting, velocity, w = np.zeros(SIZE), np.zeros(SIZE), weights.double().numpy()
    for round_ in range(4):
        updates, report = rows(round_), dict[str, Any]()
        combined = sparsefed(updates, weights, state, report, bound=4.0, share=0.2, momentum=momentum)
        norms = [math.sqrt(row @ row) for row in updates.double().numpy()]
        mean = sum(w[i] * min(1.0, 4.0 / norms[i]) * updates[i].double().numpy() for i in range(N)) / w.sum()
        velocity = momentum * velocity + mean
        waiting = waiting + velocity
        passes = sorted(range(SIZE), key=lambda j, e=waiting: -abs(e[j]))[: int(0.2 * SIZE)]
        expected = np.array([waiting[j] if j in passes else 0.0 for j in range(SIZE)])
        waiting = waiting - expected
        close(combined, expected)
        assert report["clipped"] == sum(norm > 4.0 for norm in norms) > 0
        assert report["waiting_norm"] == pytest.approx(np.linalg.norm(waiting), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_zeno_is_its_oracle(seed: int) -> None:
    updates, report = rows(seed), dict[str, Any]()
    own = updates[0] + 0.2
    updates[-4:] *= torch.tensor([[-1.0], [-100.0], [50.0], [0.0]])
    combined = zeno(updates, torch.ones(N), own, 0.1, report, rho=0.05, epsilon=0.5)
    v, expected, kept = own.double().numpy(), [], []
    for i, g in enumerate(updates.double().numpy()):
        h = g * np.linalg.norm(v) / max(np.linalg.norm(g), 1e-300)
        if 0.1 * (v @ h) - 0.05 * (h @ h) >= -0.1 * 0.5:
            kept.append(i)
            expected.append(h)
    assert torch.nonzero(~report["left_out"]).flatten().tolist() == kept
    assert {8, 9}.isdisjoint(kept)
    assert {10, 11} <= set(kept), "length does not count, and a zero update does not harm"
    close(combined, np.mean(expected, axis=0))
    with pytest.raises(CannotCombineError, match="accepts none of the 12"):
        zeno(-updates[:8].repeat(2, 1)[:12], torch.ones(N), own, 0.1, {}, rho=0.05)


def afa_round(g: np.ndarray, w: np.ndarray, theta: np.ndarray, good: np.ndarray, bad: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """By the paper's loop; the chance of a beta variable with whole parameters is a binomial sum."""

    def is_blocked(a: float, b: float) -> bool:
        size = int(a + b) - 1
        return sum(math.comb(size, j) for j in range(int(a), size + 1)) / 2**size > 0.95

    allowed = [i for i in range(len(g)) if not is_blocked(good[i], bad[i])]
    kept, slack, models = list(allowed), 2.0, theta - 0.1 * g
    shares = good / (good + bad) * w
    while True:
        mean = sum(shares[i] * models[i] for i in kept) / sum(shares[i] for i in kept)
        cosines = {i: models[i] @ mean / np.linalg.norm(models[i]) / np.linalg.norm(mean) for i in kept}
        values = list(cosines.values())
        middle, spread = np.median(values), np.std(values)
        if np.mean(values) < middle:
            dropped = [i for i in kept if cosines[i] < middle - slack * spread]
        else:
            dropped = [i for i in kept if cosines[i] > middle + slack * spread]
        if not dropped:
            break
        kept = [i for i in kept if i not in dropped]
        slack += 0.5
    for i in allowed:
        (good if i in kept else bad)[i] += 1
    kept = [i for i in kept if not is_blocked(good[i], bad[i])]
    shares = good / (good + bad) * w
    return sum(shares[i] * g[i] for i in kept) / sum(shares[i] for i in kept), kept


@pytest.mark.parametrize("seed", range(3))
def test_afa_is_its_oracle_and_blocks_for_good(seed: int) -> None:
    weights, state, theta = torch.arange(1.0, N + 1), dict[str, Tensor](), torch.full((SIZE,), 0.2)
    good, bad, w = np.full(N, 3.0), np.full(N, 3.0), weights.double().numpy()
    for round_ in range(8):
        updates = rows(10 * seed + round_)
        updates[4] = -8.0 * updates[4]
        view = rule_view(theta, torch.arange(N), state)
        combined = afa(updates, weights, view)
        expected, kept = afa_round(updates.double().numpy(), w, theta.double().numpy(), good, bad)
        assert torch.nonzero(~view.report["left_out"]).flatten().tolist() == kept
        assert 4 not in kept
        close(combined, expected)
        # client 4 has 3 good and 3 + 6 bad rounds after round 6: P(Beta(3, 9) <= 0.5) = 0.967
        assert view.report["blocked"] == (round_ >= 6)
    np.testing.assert_array_equal(state["good"].numpy(), good)


def test_blocking_is_the_binomial_sum() -> None:
    good, bad = torch.tensor([3.0, 3.0, 9.0]), torch.tensor([8.0, 9.0, 3.0])
    assert blocked(good, bad, 0.95).tolist() == [False, True, False]  # 1 - 56 / 1024 = 0.945, 1 - 67 / 2048 = 0.967


@pytest.mark.parametrize("bound", [1.0, 100.0])
def test_crfl_makes_server_sgd_step_to_the_clipped_noisy_model(bound: float) -> None:
    """Five rounds: theta' = clip(theta - lr m) + noise, with the momentum of the means alone."""
    server = ServerState(0.3 * torch.ones(SIZE), torch.zeros(SIZE))
    weights, state = torch.arange(1.0, N + 1), dict[str, Tensor]()
    theta, mean = server.theta.double().numpy(), np.zeros(SIZE)
    for round_ in range(5):
        updates = rows(round_)
        view = rule_view(server.theta, torch.arange(N), state, seed=round_)
        server = server_step(server, crfl(updates, weights, view, bound=bound, noise=0.01), 0.1, 0.9)
        w = weights.double().numpy()
        mean = 0.9 * mean + w @ updates.double().numpy() / w.sum()
        candidate = theta - 0.1 * mean
        noise = 0.01 * torch.randn(SIZE, generator=torch.Generator().manual_seed(round_)).double().numpy()
        theta = candidate * min(1.0, bound / np.linalg.norm(candidate)) + noise
        close(server.theta, theta, 1e-5)
        assert np.linalg.norm(theta - noise) <= bound + 1e-9
        assert view.report["clipped_model"] == (np.linalg.norm(candidate) > bound)
    close(state["velocity"], server.velocity.double().numpy(), 1e-4)


def test_the_votes_of_noisy_copies_are_normal_probabilities() -> None:
    """One weight, two classes: a copy names class 1 for x = 1 if theta + noise > 0, with chance Phi(theta / noise)."""

    class OneWeight(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([torch.zeros(len(images)), self.weight * images.flatten(1)[:, 0]], dim=1)

    model, inputs = FlatModel(OneWeight()), torch.tensor([[1.0], [-1.0], [1.0]])
    theta, noise = torch.tensor([0.1]), 0.2
    counts = votes(model, theta, inputs, noise, torch.Generator().manual_seed(0))
    drawn = theta + noise * torch.cat(
        [torch.randn(1, generator=generator) for generator in [torch.Generator().manual_seed(0)] for _ in range(COPIES)]
    )
    assert counts.sum(dim=1).tolist() == [COPIES] * 3
    assert int(counts[0, 1]) == int(counts[1, 0]) == int((drawn > 0.0).sum())
    chance = 0.5 * (1.0 + math.erf(0.5 / math.sqrt(2.0)))
    assert abs(int(counts[0, 1]) / COPIES - chance) < 3.0 * math.sqrt(chance * (1.0 - chance) / COPIES)
    examples = Batch(inputs, torch.tensor([1, 0, 0]))
    share = int(counts[0, 1]) / COPIES
    certain = 2.0 * share - 1.0 > 2.0 * math.sqrt(math.log(1.0 / ERROR) / (2 * COPIES))
    result = smoothed_test(model, theta, examples, noise, torch.Generator().manual_seed(0))
    assert result == pytest.approx((200 / 3, 200 / 3 if certain else 0.0))
    sure = smoothed_test(model, torch.tensor([2.0]), examples, noise, torch.Generator().manual_seed(0))
    assert sure == pytest.approx((200 / 3, 200 / 3))


STATEFUL = {"fldetector": '{"window": 2}', "flanders": "", "afa": "", "sparsefed": '{"momentum": 0.5}', "crfl": ""}


@pytest.mark.parametrize("name", list(STATEFUL))
def test_a_state_of_many_rounds_survives_a_checkpoint(configure: Configure, name: str) -> None:
    """Six rounds and two more, in one combination, and in a new one that has loaded the state."""
    config = configure(strategy__name=name, strategy__options=STATEFUL[name], data__num_clients=N)

    def combination() -> Any:
        return instance_of(config, trial_inputs(N)).combine  # pyright: ignore

    def play(combine: Any, rounds: range) -> list[Tensor]:
        results = []
        for round_ in rounds:
            combine.see(torch.full((8,), 0.01 * round_**2))
            clients = torch.arange(N)[torch.arange(N) != round_]
            results.append(combine(rows(round_, d=8)[clients], torch.ones(N - 1), clients))
        return results

    whole, part = combination(), combination()
    play(whole, range(6))
    play(part, range(6))
    saved, resumed = save_state({"combine": part}), combination()
    restore_state(State(json.loads(json.dumps(saved.json)), saved.tensors), {"combine": resumed})
    fresh = play(combination(), range(6, 8))
    expected = play(whole, range(6, 8))
    assert all(torch.equal(one, other) for one, other in zip(play(resumed, range(6, 8)), expected, strict=True))
    assert name == "fldetector" or not all(torch.equal(one, other) for one, other in zip(fresh, expected, strict=True))
    assert resumed.state.keys() == whole.state.keys()
    assert all(torch.equal(resumed.state[key].nan_to_num(), value.nan_to_num()) for key, value in whole.state.items())


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("alignins", "share = 0", "strategy.options.share to be a number > 0 and <= 1, got 0"),
        ("lasa", "sparsity = 1", "strategy.options.sparsity to be a number >= 0 and <= 0.999, got 1"),
        ("deepsight", "samples = 1.5", "strategy.options.samples to be a whole number >= 1, got 1.5"),
        ("fldetector", "window = 1", "strategy.options.window to be a whole number >= 2, got 1"),
        ("flanders", "assumed_malicious = 12", "at least 1f + 1 = 13 updates a round with flanders and f = 12, got 12"),
        ("flanders", "assumed_malicious = 0", "strategy.options.assumed_malicious to be a whole number >= 1 and <= 11, got 0"),
        ("zeno", "rho = -1", "strategy.options.rho to be a number >= 0, got -1"),
        ("afa", "certainty = 0.5", "strategy.options.certainty to be a number > 0.5"),
        ("sparsefed", "bound = 0", "strategy.options.bound to be a number > 0, got 0"),
        ("crfl", "noise = 'much'", "strategy.options.noise to be a number >= 0, got 'much'"),
    ],
)
def test_a_bad_option_is_one_sentence_before_the_start(configure: Configure, name: str, options: str, says: str) -> None:
    (problem,) = strategy_problems(configure(strategy__name=name, strategy__options=options))
    assert says in problem
    assert name in problem


@pytest.mark.slow
def test_a_run_under_crfl_ends_with_its_smoothed_test(configure: Configure, tmp_path: Path) -> None:
    options = '{"noise": 0.001, "bound": 1000.0}'
    summary, folder = run(configure(strategy__name="crfl", strategy__options=options, twin=True, control=False), tmp_path)
    tested = [line for track in ("attacked", "twin") for line in lines(folder, track) if "smoothed" in line]
    assert [line["track"] for line in tested] == ["attacked", "twin"]
    assert summary["smoothed"] == tested[0]["smoothed"] | {"attack_success_rate": None}
    twin = tested[1]
    assert abs(twin["smoothed"]["accuracy"] - twin["whole_accuracy"]) < 15.0, "little noise changes little"
    assert twin["smoothed"]["certain"] <= twin["smoothed"]["accuracy"]
