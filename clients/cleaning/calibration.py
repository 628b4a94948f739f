"""What clean rounds and clean images say about scores: thresholds, and the bins in which the records count them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clients.cleaning.correction import discrepancy, owner_means
from clients.cleaning.images import Context
from fl_sim.config.keys import Config
from fl_sim.data.batches import CohortBatches
from fl_sim.data.federation import Federation
from fl_sim.data.sampling import sample_clients
from fl_sim.training.local import block_sum

# The rounds of the calibration are numbered from here, so that its samples and batches are not those of the run's rounds.
FIRST = 2_000_000
LEVELS = (0.005, 0.01, 0.02, 0.05, *(level / 10 for level in range(1, 10)), 0.95, 0.98, 0.99, 0.995)  # of clean scores, in `bin_edges`
DOUBLINGS = 10  # bins beyond the quantiles, each twice as far from the median as the one before


def clean_discrepancies(config: Config, federation: Federation, context: Context) -> list[Tensor]:
    """The discrepancies of the images (or with `cleaning.unit = "batch"` their means by local batch) in each of
    `cleaning.calibration-rounds` clean rounds, each a vector.

    From `context.theta`: the weighted mean of the honest updates and server SGD with momentum, whatever the strategy, which a client need
    not know. The model is then discarded.
    """
    clean = config.model_copy(update={"attack": config.attack.model_copy(update={"name": "none", "poison_ratio": -1.0})})
    client, server, theta = config.client, config.server, context.theta
    velocity, rounds = torch.zeros_like(theta), list[Tensor]()
    for round_ in range(FIRST + 1, FIRST + 1 + config.cleaning.calibration_rounds):
        clients, scores, total, weight = sample_clients(clean, round_), list[Tensor](), torch.zeros_like(theta), 0.0
        for start in range(0, len(clients), client.block):
            members = clients[start : start + client.block]
            batches = federation.cohort(members, round_, client.local_steps, client.batch_size, client.weight)
            scores.append(_scores(context, theta, batches))
            block = block_sum(context.model, theta, batches, client, None)
            total, weight = total + block.total, weight + sum(block.weights)
        rounds.append(torch.cat(scores))
        velocity = server.momentum * velocity + total / weight
        theta = theta - server.learning_rate * velocity
    return rounds


def _scores(context: Context, theta: Tensor, batches: CohortBatches) -> Tensor:
    places = batches.weights > 0
    now = Context(context.model, theta, 0, context.settings, context.scale, context.fitted)
    scores = discrepancy(now, batches.inputs[places])
    if context.settings.unit == "example":
        return scores
    owners = torch.arange(places.shape[0] * places.shape[1], device=places.device).view(*places.shape[:2], 1).expand(places.shape)[places]
    return owner_means(scores, owners)


def fit_threshold(rounds: Sequence[Tensor], fpr: float) -> tuple[float, float]:
    """`(P0, growth)` so that the share `fpr` of the scores of clean rounds 1..R is above `P0 + growth * round`.

    growth is the least-squares slope of the rounds' mean scores, at least 0; P0 the `1 - fpr` quantile of `score - growth * round`.
    Args: rounds, the scores of each. Source: the form is Zhu et al. 2023, section 4.1; there both are set by hand.
    """
    t = torch.arange(1.0, len(rounds) + 1.0, dtype=torch.float64)
    y = torch.tensor([float(scores.double().mean()) for scores in rounds], dtype=torch.float64)
    growth = max(0.0, float(((t - t.mean()) * (y - y.mean())).sum() / (t - t.mean()).square().sum()))
    rest = torch.cat([scores.double().cpu() - growth * (number + 1) for number, scores in enumerate(rounds)])
    return quantile(rest, 1.0 - fpr), growth


def bin_edges(scores: Tensor) -> Tensor:
    """Edges (k,), ascending, of bins for scores: quantiles of clean ones (e,), and beyond them steps that double."""
    finite = scores.double().cpu()
    finite = finite[torch.isfinite(finite)]
    middle = torch.tensor([quantile(finite, level) for level in LEVELS], dtype=torch.float64)
    centre = quantile(finite, 0.5)
    reach = max(float(middle[-1] - centre), float(centre - middle[0]), torch.finfo(torch.float64).tiny)
    beyond = reach * 2.0 ** torch.arange(1, DOUBLINGS + 1, dtype=torch.float64)
    return torch.cat([(centre - beyond).flip(0), middle, centre + beyond])


def quantile(values: Tensor, level: float) -> float:
    """The smallest value that at least the share `level` of the values (e,) do not exceed. (`torch.quantile` takes at most 2^24 values.)"""
    place = min(max(int(torch.ceil(torch.tensor(level * len(values), dtype=torch.float64))), 1), len(values))
    return float(values.kthvalue(place).values)
