"""The published defences by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from strategies.robust.filters.alignins import alignins
from strategies.robust.filters.clipped_clustering import clipped_clustering
from strategies.robust.filters.deepsight import deepsight
from strategies.robust.filters.dnc import dnc
from strategies.robust.filters.flame import flame
from strategies.robust.filters.flanders import flanders
from strategies.robust.filters.fldetector import fldetector
from strategies.robust.filters.lasa import lasa
from strategies.robust.filters.signguard import signguard
from strategies.robust.noise.crfl import crfl
from strategies.robust.noise.sparsefed import sparsefed
from strategies.robust.noise.weak_dp import weak_dp
from strategies.robust.weights.afa import afa
from strategies.robust.weights.fltrust import fltrust
from strategies.robust.weights.foolsgold import foolsgold
from strategies.robust.weights.rlr import rlr
from strategies.robust.weights.zeno import zeno


class Defence(NamedTuple):
    """combine: `(updates (n, d), weights (n,), **inputs and options) -> (d,)`, as a rule from outside (docs/contributing.md, section 2.2);
    weighted: whether the weights of clients count; at_once: whether it acts in round 1 already, and not only after some rounds."""

    combine: Callable[..., Tensor]
    weighted: bool = False
    at_once: bool = True


ROBUST: Mapping[str, Defence] = {
    "signguard": Defence(signguard),
    "dnc": Defence(dnc),
    "flame": Defence(flame),
    "clipped-clustering": Defence(clipped_clustering),
    "fltrust": Defence(fltrust),
    "foolsgold": Defence(foolsgold),
    "rlr": Defence(rlr, weighted=True),
    "weak-dp": Defence(weak_dp, weighted=True),
    "alignins": Defence(alignins),
    "lasa": Defence(lasa),
    "deepsight": Defence(deepsight),
    "fldetector": Defence(fldetector, at_once=False),
    "flanders": Defence(flanders, weighted=True, at_once=False),
    "zeno": Defence(zeno),
    "afa": Defence(afa, weighted=True),
    "sparsefed": Defence(sparsefed, weighted=True),
    "crfl": Defence(crfl, weighted=True),
}
