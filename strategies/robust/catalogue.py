"""The published defences by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from strategies.robust.filters.alignins import alignins
from strategies.robust.filters.deepsight import deepsight
from strategies.robust.filters.dnc import dnc
from strategies.robust.filters.flanders import flanders
from strategies.robust.filters.fldetector import fldetector
from strategies.robust.filters.lasa import lasa
from strategies.robust.filters.signguard import signguard
from strategies.robust.noise.crfl import crfl
from strategies.robust.noise.sparsefed import sparsefed
from strategies.robust.weights.afa import afa
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
