"""CRFL: clips the global model and adds noise to it in each round; the result is tested as a vote of noisy copies."""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.robust.ranges import number
from strategies.rule import RuleView


def crfl(updates: Tensor, weights: Tensor, view: RuleView, bound: float = 15.0, noise: float = 0.01) -> Tensor:
    """The combined update with which the next model is a clipped and noisy one.

    `next = theta - server_lr (momentum v + sum_i w_i g_i / sum_i w_i)`, `theta' = next min(1, bound / |next|) + N(0, noise^2)`;
    `v' = (theta - theta') / server_lr`, `combined = v' - momentum v`, which makes server SGD step to theta'.

    Args: updates (n, d); weights (n,); view.state: v (d,), server SGD's velocity; bound > 0, of the model's l2 norm; noise >= 0, the
    standard deviation per number of the model. Raises OptionError.
    Source: Xie et al. 2021, "CRFL: Certifiably Robust Federated Learning against Backdoor Attacks", Algorithm 1. There the bound grows by
    round and depends on the data set, and no noise is added in the last round, which a rule does not know. The smoothed test is in
    `smoothed_test.py`.
    """
    number("bound", bound, above=0.0)
    number("noise", noise, least=0.0)
    carried = view.server_momentum * view.state.get("velocity", torch.zeros_like(view.theta))
    candidate = view.theta - view.server_lr * (carried + weights @ updates / weights.sum())
    length = float(torch.linalg.vector_norm(candidate, dtype=torch.float64))
    spread = noise * torch.randn(len(candidate), generator=view.generator)
    target = candidate * min(1.0, bound / max(length, 1e-30)) + spread
    velocity = (view.theta - target) / view.server_lr
    view.state["velocity"] = velocity
    view.report.update(model_norm=length, clipped_model=int(length > bound))
    return velocity - carried
