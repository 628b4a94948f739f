"""The published defences by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from strategies.robust.filters.clipped_clustering import clipped_clustering
from strategies.robust.filters.dnc import dnc
from strategies.robust.filters.flame import flame
from strategies.robust.filters.signguard import signguard
from strategies.robust.noise.weak_dp import weak_dp
from strategies.robust.weights.fltrust import fltrust
from strategies.robust.weights.foolsgold import foolsgold
from strategies.robust.weights.rlr import rlr


class Defence(NamedTuple):
    """combine: `(updates (n, d), weights (n,), **inputs and options) -> (d,)`, as a rule from outside (docs/contributing.md, section 2.2);
    weighted: whether the weights of clients count."""

    combine: Callable[..., Tensor]
    weighted: bool = False


ROBUST: Mapping[str, Defence] = {
    "signguard": Defence(signguard),
    "dnc": Defence(dnc),
    "flame": Defence(flame),
    "clipped-clustering": Defence(clipped_clustering),
    "fltrust": Defence(fltrust),
    "foolsgold": Defence(foolsgold),
    "rlr": Defence(rlr, weighted=True),
    "weak-dp": Defence(weak_dp, weighted=True),
}
