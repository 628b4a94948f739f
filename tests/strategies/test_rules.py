"""Rules and the server optimiser."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_sim.config.keys import Strategy
from fl_sim.training.clipping import Clip
from strategies.rule import RULES, Rule, finish, stacked_mean
from strategies.server_sgd import ServerState, server_step
from tests.support import oracles

ROWS = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.3, -0.4, 0.0], [-20.0, 1.0, 5.0]])
IDS = torch.arange(4)
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])


def rule_of(name: str, bound: float = 1.0, norm: str = "l2") -> Rule:
    return RULES[name](Strategy.model_validate({"name": name, "bound": bound, "norm": norm}))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", list(RULES))
def test_every_rule_is_its_oracle(name: str, norm: str) -> None:
    """Contract table: shape, dtype, finite, deterministic, no mutation, and the value."""
    rule, before = rule_of(name, 0.8, norm), ROWS.clone()
    combined = finish(rule, stacked_mean(rule, ROWS, WEIGHTS, IDS), torch.linalg.vector_norm(ROWS, dim=1))
    rows = [row.numpy().astype(np.float64) for row in ROWS]
    if name == "clip-before":
        rows = [oracles.clip(row, 0.8, norm) for row in rows]
    expected = oracles.weighted_mean(rows, WEIGHTS.tolist())
    if name == "clip-after":
        expected = oracles.clip(expected, 0.8, norm)
    np.testing.assert_allclose(combined.update.numpy(), expected, rtol=1e-5)
    assert combined.update.dtype == torch.float32
    assert torch.equal(ROWS, before)


@pytest.mark.parametrize("name", ["clip-before", "clip-after"])
def test_an_infinite_bound_is_the_mean_rule_itself(name: str) -> None:
    assert rule_of(name, math.inf) == rule_of("mean")


def test_clipping_is_reported() -> None:
    lengths = torch.linalg.vector_norm(ROWS, dim=1)
    assert finish(rule_of("clip-before", 1.0), ROWS[0], lengths).metrics["clipped"] == 2.0
    after = finish(rule_of("clip-after", 1.0), ROWS[0], lengths).metrics
    assert (after["clipped"], after["combined_norm"]) == (1.0, 5.0)
    assert after["applied_norm"] == pytest.approx(1.0)


def test_a_rule_of_ones_own_needs_every_update_and_gets_clipped_ones() -> None:
    rule = Rule(before=Clip("l2", 1.0), combine=lambda rows, weights, clients: rows.abs().amax(dim=0))
    assert not rule.reducible
    torch.testing.assert_close(stacked_mean(rule, ROWS[:1], WEIGHTS[:1], IDS[:1]), torch.tensor([0.6, 0.8, 0.0]))


def test_server_sgd_is_the_oracle() -> None:
    generator = np.random.default_rng(0)
    combined = [generator.normal(size=5) for _ in range(4)]
    state = ServerState(torch.arange(5.0), torch.zeros(5))
    for update in combined:
        state = server_step(state, torch.tensor(update, dtype=torch.float32), 0.05, 0.9)
    np.testing.assert_allclose(state.theta.numpy(), oracles.server_sgd(np.arange(5.0), combined, 0.05, 0.9), rtol=1e-5)


@pytest.mark.parametrize("n", [1, 4, 5])
def test_the_median_of_the_docs_is_the_median(n: int) -> None:
    """Also of an even number of updates, of which PyTorch's own median takes the lower middle one."""
    page = (Path(__file__).parents[2] / "docs" / "defences.md").read_text(encoding="utf-8")
    ((text,),) = [re.findall(r"`\"median\": (lambda settings: .*)`, with updates", page)]
    rule = eval(text, {"Rule": Rule})(None)  # noqa: S307 - our own docs
    rows = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
    combined = stacked_mean(rule, rows, torch.ones(n), torch.arange(n))
    np.testing.assert_allclose(combined.numpy(), np.median(rows.numpy(), axis=0), rtol=1e-6)
