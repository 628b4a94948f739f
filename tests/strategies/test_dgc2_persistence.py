"""Persistence, sketches, and who pushes together: each against a loop or a closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from strategies.dgc2.persistence import Pushes, add, conspirators, factors, largest_persistence, no_pushes, persistence, products, sketch

BETA = 0.95


def applied(pushes: Pushes, updates: Tensor, beta: float = BETA, scales: Tensor | None = None) -> Pushes:
    """The pushes after updates (n, d), each applied with its factor; the given ones stay."""
    old = pushes._replace(sums=pushes.sums.clone())
    factor = torch.ones(len(updates)).to(updates) if scales is None else scales
    return add(old, updates, factor, products(old, updates), beta)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_persistence_is_the_squared_discounted_sum_over_the_discounted_squares() -> None:
    updates = draw(12, 3, 40).double()
    pushes = Pushes(*(part.double() for part in no_pushes(3, 40)))
    for round_ in range(12):
        pushes = applied(pushes, updates[round_])
    for client in range(3):
        rows = updates[:, client].numpy()
        total = np.sum([BETA ** (11 - t) * rows[t] for t in range(12)], axis=0)
        squares = sum((BETA ** (11 - t)) ** 2 * float(rows[t] @ rows[t]) for t in range(12))
        np.testing.assert_allclose(float(persistence(pushes)[client]), float(total @ total) / squares, rtol=1e-12)


def test_the_same_update_for_ever_has_the_largest_persistence_and_independent_ones_about_one() -> None:
    same, other = no_pushes(1, 1024), no_pushes(200, 1024)
    for round_ in range(150):
        same = applied(same, draw(1, 1024), BETA)
        other = applied(other, draw(200, 1024, seed=round_), BETA)
    assert float(persistence(same)) == pytest.approx(largest_persistence(BETA), rel=2e-3)
    assert float(persistence(other).mean()) == pytest.approx(1.0, abs=0.05)


def test_a_sketch_is_linear_and_keeps_inner_products_in_expectation() -> None:
    a, b = draw(1, 3000), draw(1, 3000, seed=2) + 0.5 * draw(1, 3000)
    products = list[float]()
    for seed in range(100):
        signs = draw(3000, seed=100 + seed).sign()
        torch.testing.assert_close(sketch(2.0 * a + b, signs), 2.0 * sketch(a, signs) + sketch(b, signs))
        products.append(float((sketch(a, signs) * sketch(b, signs)).sum()))
    lengths = float(a.norm() * b.norm())
    assert np.mean(products) == pytest.approx(float((a * b).sum()), abs=4.0 * lengths / math.sqrt(1024 * 100))
    assert np.std(products) < 1.5 * lengths / math.sqrt(1024)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.floats(1.2, 20.0), st.floats(0.0, 3.0), st.floats(0.5, 0.99))
def test_no_sequence_of_updates_exceeds_the_cut_and_the_factor_is_the_largest_that_does_not(
    seed: int, cut: float, pull: float, beta: float
) -> None:
    """Updates that are partly the same, of any length, some zero: R stays at most the cut, and a little more of an update would not."""
    generator = torch.Generator().manual_seed(seed)
    common, cuts = torch.randn(1024, generator=generator), torch.full((6,), cut)
    pushes = no_pushes(6, 1024)
    for _ in range(15):
        lengths = torch.rand(6, 1, generator=generator) ** 4 * (torch.rand(6, 1, generator=generator) > 0.2)
        sketches = lengths * (pull * common + torch.randn(6, 1024, generator=generator))
        scales = factors(pushes, products(pushes, sketches), beta, cuts)
        more = persistence(applied(pushes, sketches, beta, torch.clamp(scales + 0.02, max=1.0)))
        pushes = applied(pushes, sketches, beta, scales)
        assert bool(((scales >= 0.0) & (scales <= 1.0)).all())
        assert bool((persistence(pushes) <= cut * (1.0 + 1e-4)).all())
        assert bool((more[scales < 0.98] > cut * (1.0 - 1e-4)).all())


def test_what_an_unseen_push_can_do() -> None:
    """docs/mathematics.md, section 11.2: with a cosine alpha to h and independent rest, `E R = 1 + 2 beta alpha^2 / (1 - beta)`, so that a
    cut allows `alpha* = sqrt((cut - 1) (1 - beta) / (2 beta))`; whatever is sent, the mean push along h is at most
    `b sqrt(cut (1 - beta) / (1 + beta))`, and a liar whose rest cancels over the rounds comes near it."""
    cut, rounds, clients, dimensions = 2.2, 300, 40, 1024
    alpha = math.sqrt((cut - 1.0) * (1.0 - BETA) / (2.0 * BETA))
    h = torch.zeros(dimensions)
    h[0] = 1.0
    pushes, values = no_pushes(clients, dimensions), list[float]()
    for round_ in range(rounds):
        rest = draw(clients, dimensions, seed=round_)
        rest[:, 0] = 0.0
        pushes = applied(pushes, alpha * h + math.sqrt(1.0 - alpha**2) * rest / rest.norm(dim=1, keepdim=True), BETA)
        values.append(float(persistence(pushes).mean()))
    assert np.mean(values[100:]) == pytest.approx(cut, rel=0.03)

    most = math.sqrt(cut / largest_persistence(BETA))
    for rest_sign, low, high in ((1.0, 0.0, 0.5), (-1.0, 0.85, 1.0)):  # a rest that adds up, and one that cancels
        pushes, moved, rest, sign = no_pushes(1, dimensions), 0.0, draw(dimensions, seed=5), 1.0
        rest[0] = 0.0
        rest = rest / rest.norm()
        for round_ in range(rounds):
            sign = rest_sign * sign
            update = (most * h + math.sqrt(1.0 - most**2) * sign * rest).unsqueeze(0)
            scale = factors(pushes, products(pushes, update), BETA, torch.tensor([cut]))
            pushes = applied(pushes, scale * update, BETA)
            moved += float(scale) * most if round_ >= 100 else 0.0
        assert low <= moved / (rounds - 100) / most <= high + 1e-6


def pushed_apart(sums: Tensor) -> float:
    """The largest `|(S - mean S) v|^2`, by a singular value decomposition."""
    return float(torch.linalg.matrix_norm(sums - sums.mean(dim=0), 2) ** 2)


@settings(derandomize=True, deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.floats(5.0, 60.0), st.floats(0.0, 3.0), st.integers(1, 9))
def test_together_clients_do_not_push_apart_by_more_than_the_limit(seed: int, limit: float, pull: float, members: int) -> None:
    """Whatever members send, in one direction or in turns, with everybody in each round."""
    generator = torch.Generator().manual_seed(seed)
    sums, cuts, clients = torch.zeros(20, 1024), torch.full((20,), 2.0), torch.arange(20)
    directions = torch.nn.functional.normalize(torch.randn(3, 1024, generator=generator), dim=1)
    for round_ in range(40):
        sketches = torch.nn.functional.normalize(torch.randn(20, 1024, generator=generator), dim=1)
        sketches[:members] += pull * directions[(round_ // 10) % 3]
        joint = conspirators(sums, sketches, clients, BETA, cuts, limit)
        sums = BETA * sums + torch.where(joint.silent, 0.0, 1.0).unsqueeze(1) * sketches
        assert pushed_apart(sums) <= 1.001 * limit
        assert joint.push == pytest.approx(pushed_apart(sums), rel=1e-3)


def test_of_those_who_push_together_the_strongest_go_first_in_proportion_to_what_they_may() -> None:
    h, clients = draw(1, 1024) / 32.0, torch.arange(40)
    sums = draw(40, 1024, seed=2) / 32.0
    lengths = torch.cat([torch.full((10,), 3.0), torch.zeros(30)]).unsqueeze(1)
    sums = sums + lengths * h
    sketches = draw(40, 1024, seed=3) / 32.0 + 0.2 * lengths * h
    unlimited = conspirators(sums, sketches, clients, BETA, torch.full((40,), 2.0), float("inf"))
    assert not unlimited.silent.any()
    one = conspirators(sums, sketches, clients, BETA, torch.full((40,), 2.0), 0.99 * unlimited.push)
    assert one.silent.any()
    assert not one.silent[10:].any()
    assert one.push <= 0.99 * unlimited.push
    cuts = torch.full((40,), 2.0)
    cuts[:5] = float("inf")  # these always pushed like that
    other = conspirators(sums, sketches, clients, BETA, cuts, 0.99 * unlimited.push)
    assert other.silent[5:10].any()
    assert not other.silent[:5].any()


def test_what_is_not_a_number_is_nobodys_push() -> None:
    joint = conspirators(torch.zeros(3, 1024), torch.full((3, 1024), math.nan), torch.arange(3), BETA, torch.full((3,), 2.0), 1.0)
    assert not joint.silent.any()


def test_what_all_push_together_is_not_pushed_apart() -> None:
    same = draw(1, 1024).expand(30, 1024)
    joint = conspirators(torch.zeros(30, 1024), same, torch.arange(30), BETA, torch.full((30,), 2.0), 1.0)
    assert not joint.silent.any()
    assert joint.push == pytest.approx(0.0, abs=1e-3)
