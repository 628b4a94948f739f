"""AFA (adaptive federated averaging): drops models unusually (un)like the mean, weighs clients by their record, blocks bad ones."""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.robust.ranges import number
from strategies.rule import CannotCombineError, RuleView

PRIOR = 3.0  # good and bad rounds that each client starts with


def afa(updates: Tensor, weights: Tensor, view: RuleView, slack: float = 2.0, step: float = 0.5, certainty: float = 0.95) -> Tensor:
    """The mean of the updates that are left, weighted by `p_i w_i`, `p_i = a_i / (a_i + b_i)`.

    `W_i = theta - client_lr g_i`, `s_i = cos(W, W_i)`, W the weighted mean of those left. While somebody is dropped: if mean(s) <
    median(s), drop those below `median - x std`, else those above `median + x std`; x starts at `slack` and grows by `step`. Then a_i grows
    by 1 for clients that are left and b_i for the others. A client is blocked for good once `P(Beta(a_i, b_i) <= 0.5) > certainty`.

    Args: updates (n, d); weights (n,); view.state: a, b by client id, 3 at first; slack >= 0; step > 0; certainty above 0.5 and below 1.
    Raises OptionError, and CannotCombineError if every client is blocked.
    Source: Muñoz-González et al. 2019, "Byzantine-Robust Federated Machine Learning through Adaptive Model Averaging", Algorithm 1 and
    sections 3.2 and 3.3. A client that is blocked in this round is dropped in it already.
    """
    number("slack", slack, least=0.0)
    number("step", step, above=0.0)
    number("certainty", certainty, above=0.5, most=0.999999)
    good, bad = (_by_client(view, name) for name in ("good", "bad"))
    clients = view.clients
    allowed = ~blocked(good, bad, certainty)[clients]
    if not bool(allowed.any()):
        raise CannotCombineError("afa has blocked every client of the round")
    trust = (good / (good + bad))[clients] * weights.double()
    kept = similar(view.theta.double() - view.client_lr * updates.double(), trust, allowed, slack, step)
    good[clients[kept]] += 1.0
    bad[clients[allowed & ~kept]] += 1.0
    kept &= ~blocked(good, bad, certainty)[clients]
    view.state.update(good=good, bad=bad)
    view.report.update(left_out=~kept, blocked=int((~allowed).sum()))
    if not bool(kept.any()):
        raise CannotCombineError("afa drops every update of the round")
    shares = (good / (good + bad))[clients] * weights.double() * kept
    return ((shares / shares.sum()) @ updates.double()).to(updates)


def blocked(good: Tensor, bad: Tensor, certainty: float) -> Tensor:
    """Which clients, bool, are more likely bad than good: `P(Beta(a_i, b_i) <= 0.5) > certainty`."""
    from scipy.stats import beta  # takes half a second: only where it is used

    return torch.from_numpy(beta.cdf(0.5, good.numpy(), bad.numpy())) > certainty


def similar(models: Tensor, trust: Tensor, allowed: Tensor, slack: float, step: float) -> Tensor:
    """The clients, bool (n,), among the `allowed` that are left when nobody is dropped any more. models (n, d); trust (n,)."""
    kept = allowed.clone()
    while True:
        mean = (trust * kept) @ models / (trust * kept).sum()
        similarities = torch.cosine_similarity(models, mean.unsqueeze(0), dim=1)
        among = similarities[kept]
        middle, spread = among.quantile(0.5), among.std(correction=0)
        below = bool(among.mean() < middle)
        unusual = similarities < middle - slack * spread if below else similarities > middle + slack * spread
        if not bool((kept & unusual).any()):
            return kept
        kept &= ~unusual
        slack += step


def _by_client(view: RuleView, name: str) -> Tensor:
    """A count by client id, float64; `PRIOR` for clients that were never seen."""
    counts = view.state.get(name, torch.zeros(0, dtype=torch.float64))
    missing = max(int(view.clients.max()) + 1 - len(counts), 0)
    return torch.cat([counts, counts.new_full((missing,), PRIOR)])
