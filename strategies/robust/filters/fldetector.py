"""FLDetector: removes clients whose updates cannot be predicted from their own last ones."""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.robust.outliers import number_of_clusters, upper_cluster
from strategies.robust.ranges import whole
from strategies.robust.vectors import mean_of
from strategies.rule import CannotCombineError, RuleView


def fldetector(updates: Tensor, weights: Tensor, view: RuleView, window: int = 10) -> Tensor:
    """The mean of the updates of the clients that were not removed.

    `prediction_i = g_i of the last round + H (theta - theta of the last round)`, H by L-BFGS from the last `window` steps of the model and
    of the mean; `d_i = |prediction_i - g_i|`, `e_i = d_i / sum_j d_j`; `score_i` = the mean of e_i over the last `window` rounds. Where the
    gap statistic sees more than one cluster of scores, those of the upper one of two are removed, for good. Equal weights.

    Args: updates (n, d); view.state: the last updates (n, d), steps (window, d) and errors (window, clients); window, rounds, >= 2. The
    first `2 * window` rounds remove nobody. Raises OptionError, and CannotCombineError if nobody is left.
    Source: Zhang et al. 2022, "FLDetector: Defending Federated Learning Against Model Poisoning Attacks via Detecting Malicious Clients",
    Algorithms 1 to 3. There the training begins anew without the removed clients; here it goes on, and only the records begin anew. Only
    clients of two rounds in a row get an error.
    """
    whole("window", window, least=2)
    state, clients = view.state, view.clients
    removed = _extended(state.get("removed", torch.zeros(0, dtype=torch.bool)), clients, False)
    mean_steps = state.get("mean_steps", updates.new_zeros(0, updates.shape[1]))
    if len(mean_steps) == window:
        change = curvature_product(state["theta_steps"], mean_steps, view.theta - state["theta"])
        errors = prediction_errors(updates, change, clients, removed, state)
        past = state.get("errors", torch.zeros(0, 0, dtype=torch.float64))
        state["errors"] = torch.cat([_extended(past.T, clients, torch.nan).T, errors.unsqueeze(0)])[-window:]
        if len(state["errors"]) == window:
            scores = state["errors"].nanmean(dim=0)
            judged = torch.nonzero(scores.isfinite() & ~removed).flatten()
            if len(judged) > 2 and number_of_clusters(scores[judged], view.generator) > 1:
                removed[judged[upper_cluster(scores[judged])]] = True
                begin_anew(state)
                mean_steps = mean_steps[:0]
    kept = ~removed[clients]
    state["removed"], view.report["left_out"] = removed, ~kept
    if not bool(kept.any()):
        raise CannotCombineError("fldetector has removed every client of the round")
    mean = mean_of(updates, kept)
    if "theta" in state:
        past_steps = state.get("theta_steps", updates.new_zeros(0, updates.shape[1]))
        state["theta_steps"] = torch.cat([past_steps, (view.theta - state["theta"]).unsqueeze(0)])[-window:]
        state["mean_steps"] = torch.cat([mean_steps, (mean - state["mean"]).unsqueeze(0)])[-window:]
    state |= {"theta": view.theta, "mean": mean, "updates": updates, "clients": clients}
    return mean


def begin_anew(state: dict[str, Tensor]) -> None:
    """Forget the steps and errors of rounds with clients that are removed now."""
    for name in ("theta", "theta_steps", "mean_steps", "errors"):
        state.pop(name, None)


def prediction_errors(updates: Tensor, change: Tensor, clients: Tensor, removed: Tensor, state: dict[str, Tensor]) -> Tensor:
    """e_i by client id, float64: a client's share of all prediction errors of the round; NaN for a client without one, or a removed one."""
    errors = torch.full((len(removed),), torch.nan, dtype=torch.float64)
    rows = {int(client): row for row, client in enumerate(state["clients"])}
    for update, client in zip(updates, clients.tolist(), strict=True):
        if client in rows and not removed[client]:
            prediction = state["updates"][rows[client]].double() + change
            errors[client] = torch.linalg.vector_norm(prediction - update.double())
    return errors / errors.nansum().clamp(min=torch.finfo(torch.float64).tiny)


def curvature_product(steps: Tensor, changes: Tensor, vector: Tensor) -> Tensor:
    """`B v` (d,), float64: L-BFGS's Hessian B from steps S (k, d) of the model and changes Y (k, d) of the gradient, oldest first.

    `B = s I - [s S, Y] [[s S'S, L], [L', -D]]^-1 [s S, Y]'`, `s = y.s / s.s` of the newest pair, D and L the diagonal and what is below it
    of S'Y. Source: Byrd et al. 1994, "Representations of quasi-Newton matrices", Theorem 2.3.
    """
    s, y, v = steps.double(), changes.double(), vector.double()
    scale = (y[-1] @ s[-1]) / (s[-1] @ s[-1]).clamp(min=torch.finfo(torch.float64).tiny)
    cross = s @ y.T
    lower = cross.tril(-1)
    middle = torch.cat([torch.cat([scale * s @ s.T, lower], 1), torch.cat([lower.T, -torch.diag(cross.diagonal())], 1)])
    basis = torch.cat([scale * s, y])
    return scale * v - basis.T @ (torch.linalg.pinv(middle) @ (basis @ v))


def _extended(values: Tensor, clients: Tensor, missing: float) -> Tensor:
    """Values by client id (clients, …), with `missing` for those that were never seen."""
    size = max(int(clients.max()) + 1 - len(values), 0)
    return torch.cat([values, values.new_full((size, *values.shape[1:]), missing)])
