"""How far single numbers, one per client, lie from the others: distances to the median, and clusters on a line."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_CLUSTERS = 8  # that the gap statistic compares
REFERENCES = 10  # sets of uniform numbers that it compares with


def median_scores(values: Tensor) -> Tensor:
    """`|v_i - median(v)| / std(v)` (n,), float64, the standard deviation over n; 0 if all values are equal."""
    values = values.double()
    distances = (values - values.quantile(0.5)).abs()
    return distances / values.std(correction=0).clamp(min=torch.finfo(torch.float64).tiny)


def within_sums(values: Tensor, most: int) -> list[float]:
    """The least sum of squared distances to the cluster means with which values (n,) fall into k clusters, for k = 1 to `most` <= n. Exact,
    because clusters on a line are intervals."""
    costs = _interval_costs(values)
    best = costs[0]  # (n,): of the values up to each
    sums = [float(best[-1])]
    for _ in range(most - 1):
        before = torch.cat([costs.new_full((1,), torch.inf), best[:-1]])  # of the values before the last cluster's first one
        best = (before.unsqueeze(1) + costs).amin(dim=0)
        sums.append(float(best[-1]))
    return sums


def upper_cluster(values: Tensor) -> Tensor:
    """The members, bool (n,), of the cluster with the larger mean when values (n,) fall into two with the least squared distances."""
    costs, ordered = _interval_costs(values), values.double().sort().values
    cut = int((costs[0, :-1] + costs[1:, -1]).argmin())
    return values.double() > ordered[cut]


def number_of_clusters(values: Tensor, generator: torch.Generator) -> int:
    """How many clusters values (n,) fall into, by the gap statistic; 1 if they are all equal.

    `gap(k) = mean_b ln W*_kb - ln W_k`, with W_k of `within_sums` and W*_kb of n uniform numbers; the smallest k with
    `gap(k) >= gap(k + 1) - s(k + 1)`, `s(k) = sqrt(1 + 1/B) std_b ln W*_kb`.
    Source: Tibshirani et al. 2001, "Estimating the number of clusters in a data set via the gap statistic", section 3, on values that are
    scaled to [0, 1].
    """
    values, n = values.double(), len(values)
    span = values.max() - values.min()
    most = min(MOST_CLUSTERS, n - 1)
    if not span > 0.0 or most < 2:
        return 1
    uniform = torch.rand(REFERENCES, n, generator=generator, dtype=torch.float64)
    expected = torch.tensor([within_sums(row, most) for row in uniform]).double().log()  # (B, k)
    sums = torch.tensor(within_sums((values - values.min()) / span, most), dtype=torch.float64)
    gaps = expected.mean(dim=0) - sums.clamp(min=1e-12).log()
    errors = (1.0 + 1.0 / REFERENCES) ** 0.5 * expected.std(dim=0, correction=0)
    holds = torch.nonzero(gaps[:-1] >= (gaps - errors)[1:]).flatten()
    return int(holds[0]) + 1 if len(holds) else most


def _interval_costs(values: Tensor) -> Tensor:
    """The sum of squared distances to their mean (n, n), float64, of the values from the i-th to the j-th smallest; infinite if j < i."""
    ordered = values.double().sort().values
    ordered = ordered - ordered.mean()  # the differences of sums below keep their digits
    zero = ordered.new_zeros(1)
    sums, squares = torch.cat([zero, ordered.cumsum(0)]), torch.cat([zero, ordered.square().cumsum(0)])
    sizes = torch.arange(1, len(values) + 1).unsqueeze(0) - torch.arange(len(values)).unsqueeze(1)  # j + 1 - i
    costs = squares[1:] - squares[:-1].unsqueeze(1) - (sums[1:] - sums[:-1].unsqueeze(1)).square() / sizes.clamp(min=1)
    return costs.clamp(min=0.0).masked_fill(sizes < 1, torch.inf)
