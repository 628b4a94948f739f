"""What clean rounds say: the bound of a clip, how persistent each honest client is, how much each class fluctuates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

USUAL = 0.99  # quantile of the honest clients' persistence that is nobody's fault
LEAST_CUT = 1.2  # a persistence of about 1 is that of independent updates
LEAST_RISE = 0.02  # nats: a probe loss that never rose in the clean rounds may rise by this much


class Levels(NamedTuple):
    """bound: of the clip of each update; cuts (N,): the largest persistence of each client; rises (c,): by how many nats the loss of a
    class may exceed its reference."""

    bound: float
    cuts: Tensor
    rises: Tensor


def no_limits(num_clients: int, bound: float = float("inf")) -> Levels:
    """Levels that restrict nothing but the length of updates, for the clean rounds."""
    return Levels(bound, torch.full((num_clients,), float("inf")), torch.full((1,), float("inf")))


def bound_of(norms: Sequence[float], quantile: float) -> float:
    """The `quantile` of honest norms, above 0."""
    return max(float(torch.tensor(norms, dtype=torch.float64).quantile(quantile)), torch.finfo(torch.float32).tiny)


def fit_levels(record: Mapping[str, Any], num_clients: int) -> Levels:
    """The levels that follow from a record of clean rounds: its `bound`; `persistence`, by client id the values of R; `rises`, by class the
    differences between the loss and its reference.

    A client's cut is the 99 % quantile of all values, or the largest of its own clean ones if that is more: under non-iid data a client
    whose examples are all alike pushes in one direction without any malice. A class may rise by its largest clean difference.
    """
    values: Mapping[str, Sequence[float]] = record["persistence"]
    pooled = torch.tensor([value for own in values.values() for value in own], dtype=torch.float64).quantile(USUAL)
    cuts = torch.full((num_clients,), max(float(pooled), LEAST_CUT))
    rises = torch.tensor(record["rises"]).amax(dim=0).clamp(min=LEAST_RISE)
    return Levels(record["bound"], cuts, rises)
