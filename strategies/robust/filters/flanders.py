"""FLANDERS: leaves out clients whose models are far from what a matrix autoregressive model forecasts."""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.robust.ranges import whole
from strategies.rule import RuleView

ITERATIONS = 100  # of the alternating least squares
PENALTY = 1.0  # on the squares of both matrices


def flanders(updates: Tensor, weights: Tensor, view: RuleView, assumed_malicious: int, window: int = 2, coordinates: int = 500) -> Tensor:
    """The weighted mean of the n - f updates whose models are nearest to the forecast.

    X_t (n, k) = `coordinates` of the models `theta - client_lr g_i` of round t; A, B of `autoregression` over the last `window` rounds;
    `forecast = A X_{t-1} B'`; `score_i = |X_t,i - forecast_i|^2`.

    Args: updates (n, d); weights (n,); view.state: the last matrices (window, clients, k) and global models (window, k); assumed_malicious,
    1 <= f < n; window >= 2, the rounds in which nobody is left out yet; coordinates >= 1, drawn in round 1. Raises OptionError.
    Source: Gabrielli et al. 2023, "Protecting Federated Learning from Extreme Model Poisoning Attacks via Multidimensional Time Series
    Anomaly Detection", Algorithm 1, and Flower's baseline. Who was not asked in a round is forecast from the global model. The
    baseline fits A and B to scaled models and forecasts with unscaled ones, and its first pair is (first, last); here forecasts are of
    scaled models, and pairs are consecutive.
    """
    n, state, clients = len(updates), view.state, view.clients
    whole("assumed_malicious", assumed_malicious, least=1, most=n - 1)
    whole("window", window, least=2)
    whole("coordinates", coordinates, least=1)
    if "drawn" not in state:
        state["drawn"] = torch.randperm(updates.shape[1], generator=view.generator)[:coordinates].sort().values
    drawn = state["drawn"]
    start = view.theta[drawn].double()
    models = start - view.client_lr * updates[:, drawn].double()
    starts = state.get("starts", start.new_zeros(0, len(drawn)))  # (window, k)
    past = state.get("models", start.new_zeros(0, 0, len(drawn)))  # (window, clients, k)
    missing = max(int(clients.max()) + 1 - past.shape[1], 0)
    past = torch.cat([past, starts.unsqueeze(1).expand(-1, missing, -1)], dim=1)
    kept = torch.ones(n, dtype=torch.bool)
    if len(past) == window:
        scores = forecast_errors(past[:, clients], models)
        kept[scores.sort(stable=True).indices[n - assumed_malicious :]] = False
    now = start.expand(past.shape[1], -1).clone()
    now[clients] = models
    state["models"], state["starts"] = torch.cat([past, now.unsqueeze(0)])[-window:], torch.cat([starts, start.unsqueeze(0)])[-window:]
    view.report["left_out"] = ~kept
    return (weights * kept) @ updates / (weights * kept).sum()


def forecast_errors(past: Tensor, models: Tensor) -> Tensor:
    """The squared distance (n,) of each model (n, k) to its forecast from past ones (window, n, k), all scaled by the past ones' range."""
    least, span = past.min(), (past.max() - past.min()).clamp(min=torch.finfo(torch.float64).tiny)
    scaled = (past - least) / span
    return ((models - least) / span - forecast(scaled)).square().sum(dim=1)


def forecast(series: Tensor) -> Tensor:
    """`A X_T B'` (n, k) of a series X_1 … X_T (T, n, k), float64, with the A (n, n) and B (k, k) that minimise
    `sum_t |X_t - A X_{t-1} B'|^2 + PENALTY (|A|^2 + |B|^2)`, by alternating least squares from A = 1.

    `B = N' (M M' + PENALTY)^-1 M` with M, N the stacked `A X_{t-1}` and `X_t` ((T - 1) n, k): it is never formed, because k may be large.
    """
    before, after, n = series[:-1], series[1:], series.shape[1]
    a = torch.eye(n, dtype=series.dtype)
    for _ in range(ITERATIONS):
        moved = _moved(before, a, before, after)  # X_{t-1} B'
        normal = (moved @ moved.transpose(1, 2)).sum(dim=0) + PENALTY * torch.eye(n, dtype=series.dtype)
        a = torch.linalg.solve(normal, (after @ moved.transpose(1, 2)).sum(dim=0), left=False)
    return a @ _moved(series[-1], a, before, after)


def _moved(matrices: Tensor, a: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """`X B'` of matrices X (…, n, k), with the best B for A: `X M' (M M' + PENALTY)^-1 N`."""
    projected = (a @ before).flatten(0, 1)  # M
    normal = projected @ projected.T + PENALTY * torch.eye(len(projected), dtype=a.dtype)
    return matrices @ projected.T @ torch.linalg.solve(normal, after.flatten(0, 1))
