"""The published defences that leave out clients by direction, layer, cluster or forecast, against loops in NumPy's float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from strategies.robust.filters.alignins import alignins
from strategies.robust.filters.deepsight import deepsight, few_classes, output_changes, output_ratios
from strategies.robust.filters.flanders import flanders, forecast
from strategies.robust.filters.fldetector import curvature_product, fldetector
from strategies.robust.filters.lasa import lasa
from strategies.robust.outliers import number_of_clusters, upper_cluster, within_sums
from tests.support.rule_views import SIZE, rule_view, small_model

N, F = 12, 3
SIZES = (12, 4, 12, 3)  # of the small model's layers


def rows(seed: int, n: int = N, d: int = SIZE) -> Tensor:
    """Updates around a common direction; the last F of them point against it."""
    values = torch.linspace(-1.0, 2.0, d) + 0.3 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    values[n - F :] *= -1.5
    return values


def close(combined: Tensor, expected: Any) -> None:
    """The largest difference is below a millionth of the largest number."""
    assert np.abs(combined.double().numpy() - expected).max() < 1e-6 * np.abs(expected).max()


def z(values: list[float]) -> list[float]:
    spread = np.sqrt(np.mean([(value - np.mean(values)) ** 2 for value in values]))
    return [abs(value - np.median(values)) / spread for value in values]


def shortened(row: np.ndarray, bound: float) -> np.ndarray:
    return row * min(1.0, bound / np.sqrt((row**2).sum()))


@pytest.mark.parametrize("seed", range(5))
def test_alignins_is_its_oracle(seed: int) -> None:
    updates, theta, report = rows(seed), torch.randn(SIZE, generator=torch.Generator().manual_seed(seed + 50)), dict[str, Any]()
    combined = alignins(updates, torch.ones(N), theta, report, share=0.4, sign_limit=1.5, angle_limit=1.5)
    g, w = updates.double().numpy(), theta.double().numpy()
    angles = [row @ w / np.sqrt(row @ row) / np.sqrt(w @ w) for row in g]
    signs = []
    for row in g:
        largest = sorted(range(SIZE), key=lambda j, row=row: -abs(row[j]))[: int(0.4 * SIZE)]
        signs.append(np.mean([np.sign(row[j]) == np.sign(sum(np.sign(other[j]) for other in g)) for j in largest]))
    kept = [i for i in range(N) if z(signs)[i] < 1.5 and z(angles)[i] < 1.5]
    assert torch.nonzero(~report["left_out"]).flatten().tolist() == kept
    assert max(kept) < N - F, "those against the others are out"
    bound = np.median([np.sqrt(g[i] @ g[i]) for i in kept])
    close(combined, np.mean([shortened(g[i], bound) for i in kept], axis=0))


@pytest.mark.parametrize("seed", range(5))
def test_lasa_is_its_oracle(seed: int) -> None:
    updates, report = rows(seed), dict[str, Any]()
    combined = lasa(updates, torch.ones(N), small_model(), report, sparsity=0.25)
    g = updates.double().numpy()
    bound = np.median([np.sqrt(row @ row) for row in g])
    h = np.array([shortened(row, bound) for row in g])
    weights = [*range(12), *range(16, 28)]
    for row in h:
        for j in sorted(weights, key=lambda j, row=row: abs(row[j]))[: 24 - int(24 * 0.75)]:
            row[j] = 0.0
    expected, drops, first = [], np.zeros(N), 0
    for size in SIZES:
        layer = h[:, first : first + size]
        first += size
        lengths = [np.sqrt(row @ row) for row in layer]
        positive = [0.5 * (1.0 + np.sign(row).sum() / np.abs(np.sign(row)).sum()) for row in layer]
        spread = np.std(positive)
        kept = [i for i in range(N) if z(lengths)[i] < 1.0 and (spread == 0.0 or z(positive)[i] < 1.0)]
        drops += [i not in kept for i in range(N)]
        expected.append(layer[kept or range(N)].mean(axis=0))
    assert report["left_out"].tolist() == list(drops > 2)
    assert report["left_out"].any()
    close(combined, np.concatenate(expected))


def few_class_updates() -> Tensor:
    """Eight clients that change every class in much the same way, and six that change only the last class, all by the same numbers."""
    values = torch.ones(14, SIZE) + 0.02 * torch.randn(14, SIZE, generator=torch.Generator().manual_seed(3))
    output = torch.zeros(15)
    output[8:12], output[14] = 4.0, 4.0
    values[8:, 16:] = output + 0.01 * values[8:, 16:]
    return values


def test_deepsight_drops_the_cluster_of_models_that_changed_one_class() -> None:
    updates, theta = few_class_updates(), 0.3 * torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    view = rule_view(theta, torch.arange(14), {})
    combined = deepsight(updates, torch.ones(14), view, samples=50)
    assert view.report["left_out"].tolist() == [False] * 8 + [True] * 6
    g = updates.double().numpy()
    bound = np.median([np.sqrt(row @ row) for row in g])
    close(combined, np.mean([shortened(row, bound) for row in g[:8]], axis=0))


def test_what_deepsight_measures_is_its_oracle() -> None:
    updates, theta = few_class_updates(), 0.3 * torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    energies, biases = output_changes(updates, small_model())
    g = updates.double().numpy()
    expected = np.array([[(abs(row[28 + c]) + sum(abs(row[16 + 4 * c + k]) for k in range(4))) ** 2 for c in range(3)] for row in g])
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(energies.numpy(), expected, rtol=1e-12)
    assert torch.equal(biases, updates[:, 28:].double())
    exceedings = [sum(value > max(0.01, 1 / 3) * max(row) for value in row) for row in expected]
    assert few_classes(energies).tolist() == [count <= np.median(exceedings) / 2 for count in exceedings] == [False] * 8 + [True] * 6
    view = rule_view(theta, torch.arange(14), {}, seed=5)
    ratios = output_ratios(updates, view, 20)
    images, noise = view.server_data.inputs, torch.rand(60, 3, generator=torch.Generator().manual_seed(5))
    inputs = (images.min() + (images.max() - images.min()) * noise).double().numpy()

    def probabilities(t: np.ndarray) -> np.ndarray:
        scores = np.tanh(inputs @ t[:12].reshape(4, 3).T + t[12:16]) @ t[16:28].reshape(3, 4).T + t[28:]
        return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)

    w = theta.double().numpy()
    for i, part in itertools.product(range(14), range(3)):
        ratio = (probabilities(w - 0.1 * g[i]) / probabilities(w))[20 * part : 20 * part + 20]
        np.testing.assert_allclose(ratios[part, i].numpy(), ratio.mean(axis=0), rtol=1e-4)


def test_a_curvature_product_is_the_bfgs_recursion() -> None:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    hessian = factor @ factor.T + torch.eye(9)
    steps, vector = torch.randn(4, 9, generator=generator, dtype=torch.float64), torch.randn(9, generator=generator, dtype=torch.float64)
    changes = steps @ hessian
    b = float(changes[-1] @ steps[-1] / (steps[-1] @ steps[-1])) * np.eye(9)
    for s, y in zip(steps.numpy(), changes.numpy(), strict=True):
        b = b - np.outer(b @ s, b @ s) / (s @ b @ s) + np.outer(y, y) / (y @ s)
    np.testing.assert_allclose(curvature_product(steps, changes, vector).numpy(), b @ vector.numpy(), rtol=1e-9)


def fldetector_rounds(seed: int, rounds: int, malicious: int) -> tuple[list[tuple[Tensor, Tensor]], list[Any]]:
    """Gradients of quadratics with a little noise; the last `malicious` clients draw a direction anew in each round from round 3 on. The
    rounds' models and updates, and the removed clients after each."""
    generator, theta, state = torch.Generator().manual_seed(seed), torch.zeros(SIZE), dict[str, Tensor]()
    curvature = torch.linspace(0.5, 2.0, SIZE)
    centres = 1.0 + 0.2 * torch.randn(N, SIZE, generator=generator)
    seen, removed = [], []
    for round_ in range(1, rounds + 1):
        updates = curvature * (theta - centres) + 0.02 * torch.randn(N, SIZE, generator=generator)
        if malicious and round_ >= 3:
            updates[N - malicious :] += torch.randn(malicious, SIZE, generator=generator)
        view = rule_view(theta, torch.arange(N), state, seed=round_)
        seen.append((theta, updates))
        mean = fldetector(updates, torch.ones(N), view, window=3)
        removed.append(state["removed"].clone())
        theta = theta - 0.1 * mean
    return [*seen, (state.get("errors", torch.zeros(0)), torch.zeros(0))], removed


@pytest.mark.parametrize("seed", range(5))
def test_the_first_clients_that_fldetector_removes_are_the_unpredictable_ones(seed: int) -> None:
    _, removed = fldetector_rounds(seed, 7, malicious=F)
    assert not any(bool(mask.any()) for mask in removed[:6]), "two windows"
    assert removed[-1].tolist() == [False] * (N - F) + [True] * F


def test_fldetectors_errors_are_their_oracle() -> None:
    seen, removed = fldetector_rounds(0, 6, malicious=0)
    assert not removed[-1].any()
    thetas, updates = ([part.double().numpy() for part in parts] for parts in zip(*seen[:-1], strict=True))
    means = [one.mean(axis=0) for one in updates]
    expected = []
    for t in (4, 5):
        steps = np.diff(np.array(thetas[t - 4 : t]), axis=0)
        changes = np.diff(np.array(means[t - 4 : t]), axis=0)
        product = curvature_product(torch.from_numpy(steps), torch.from_numpy(changes), torch.from_numpy(thetas[t] - thetas[t - 1]))
        errors = [np.linalg.norm(updates[t - 1][i] + product.numpy() - updates[t][i]) for i in range(N)]
        expected.append(np.array(errors) / sum(errors))
    np.testing.assert_allclose(seen[-1][0].numpy(), expected, rtol=1e-3)  # differences of float32 updates


def test_a_client_that_is_not_in_two_rounds_in_a_row_has_no_error() -> None:
    state = dict[str, Tensor]()
    for round_ in range(1, 6):
        clients = torch.arange(N)[torch.arange(N) != (3 if round_ == 4 else -1)]
        view = rule_view(torch.full((SIZE,), 0.1 * round_ * round_), clients, state)
        fldetector(rows(round_)[clients], torch.ones(len(clients)), view, window=2)
    assert [torch.nonzero(line.isnan()).flatten().tolist() for line in state["errors"]] == [[3], [3]]


@pytest.mark.parametrize("seed", range(3))
def test_clusters_on_a_line_are_the_best_ones(seed: int) -> None:
    values = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = values.numpy()
    for k, found in zip(range(1, 4), within_sums(values, 3), strict=True):
        labellings = (np.array(labels) for labels in itertools.product(range(k), repeat=5))
        best = min(sum(((x[labels == j] - x[labels == j].mean()) ** 2).sum() for j in set(labels)) for labels in labellings)
        assert found == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert upper_cluster(torch.tensor([5.0, 1.0, 1.2, 5.5, 0.9])).tolist() == [True, False, False, True, False]


def test_the_gap_statistic_counts_groups() -> None:
    def count(values: Tensor) -> int:
        return number_of_clusters(values, torch.Generator().manual_seed(0))

    spread = 0.02 * torch.randn(40, generator=torch.Generator().manual_seed(1))
    assert count(torch.linspace(0.0, 1.0, 40)) == 1
    assert count(spread + torch.tensor([0.0, 1.0]).repeat(20)) == 2
    assert count(spread + torch.tensor([0.0, 1.0, 3.0, 7.0]).repeat(10)) == 4
    assert count(torch.ones(40)) == 1


@pytest.mark.parametrize("window", [2, 4])
def test_a_forecast_is_alternating_least_squares(window: int) -> None:
    """With B formed and inverted, as the paper has it."""
    series = torch.rand(window, 4, 6, generator=torch.Generator().manual_seed(window), dtype=torch.float64)
    x, a = series.numpy(), np.eye(4)

    def best_b(a: np.ndarray) -> np.ndarray:
        left = sum(x[t].T @ a @ x[t - 1] for t in range(1, window))
        return left @ np.linalg.inv(sum((a @ x[t - 1]).T @ (a @ x[t - 1]) for t in range(1, window)) + np.eye(6))

    for _ in range(100):
        b = best_b(a)
        left = sum(x[t] @ b @ x[t - 1].T for t in range(1, window))
        a = left @ np.linalg.inv(sum(x[t - 1] @ b.T @ b @ x[t - 1].T for t in range(1, window)) + np.eye(4))
    np.testing.assert_allclose(forecast(series).numpy(), a @ x[-1] @ best_b(a).T, rtol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_flanders_leaves_out_models_off_their_course(seed: int) -> None:
    """Clients drift steadily; from round 4 on F of them jump. Client 2 is not asked in round 3, and a new one comes in round 4."""
    generator, state, theta = torch.Generator().manual_seed(seed), dict[str, Tensor](), torch.randn(40)
    slopes = torch.randn(40, generator=generator) + 0.1 * torch.randn(N + 1, 40, generator=generator)
    weights = torch.arange(1.0, N + 2)
    for round_ in range(1, 6):
        clients = torch.tensor([i for i in range(N + 1) if not (round_ < 4 and i == 5) and not (round_ == 3 and i == 2)])
        updates = slopes[clients] * (1.0 + 0.05 * round_)
        if round_ >= 4:
            updates[-F:] += 20.0 * torch.randn(F, 40, generator=generator)
        view = rule_view(theta, clients, state, seed=round_)
        combined = flanders(updates, weights[clients], view, F, window=3, coordinates=30)
        kept = ~view.report["left_out"]
        expected_kept = [True] * len(clients) if round_ <= 3 else [True] * (len(clients) - F) + [False] * F
        assert kept.tolist() == expected_kept
        w, g = weights[clients][kept].double().numpy(), updates[kept].double().numpy()
        close(combined, w @ g / w.sum())
        theta = theta - 0.01 * combined
    assert state["models"].shape == (3, N + 1, 30)
    assert len(state["drawn"].unique()) == 30
