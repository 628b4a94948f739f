"""CRFL: clips the global model and adds noise to it in each round; the result is tested as a vote of noisy copies."""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.robust.ranges import number
from strategies.rule import RuleView


def crfl(updates: Tensor, weights: Tensor, view: RuleView, bound: float = 15.0, noise: float = 0.001) -> Tensor:
    """The combined update with which the next model is a clipped and noisy one.

    `m = momentum m + sum_i w_i g_i / sum_i w_i`, `next = theta - server_lr m`, `theta' = next min(1, bound / |next|) + N(0, noise^2)`;
    `v' = (theta - theta') / server_lr`, `combined = v' - momentum v`, which makes server SGD with velocity v step to theta'.

    Args: updates (n, d); weights (n,); view.state: m, v (d,); bound > 0, of the model's l2 norm; noise >= 0, the standard deviation per
    number of the model. Raises OptionError.
    Source: Xie et al. 2021, "CRFL: Certifiably Robust Federated Learning against Backdoor Attacks", Algorithm 1, with a momentum that
    carries neither the clip nor the noise on. There the bound grows by round and depends on the data set, the noise is 0.01 (logistic
    regression), and none is added in the last round, which a rule does not know. The smoothed test is in `smoothing.py`.
    """
    number("bound", bound, above=0.0)
    number("noise", noise, least=0.0)
    state, theta = view.state, view.theta
    carried, momentum = (view.server_momentum * state.get(name, torch.zeros_like(theta)) for name in ("velocity", "mean"))
    state["mean"] = momentum + weights @ updates / weights.sum()
    candidate = theta - view.server_lr * state["mean"]
    length = float(torch.linalg.vector_norm(candidate, dtype=torch.float64))
    spread = noise * torch.randn(len(candidate), generator=view.generator)
    state["velocity"] = (theta - candidate * min(1.0, bound / max(length, 1e-30)) - spread) / view.server_lr
    view.report.update(model_norm=length, clipped_model=int(length > bound))
    return state["velocity"] - carried
