"""The published defences by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from strategies.robust.filters.dnc import dnc
from strategies.robust.filters.signguard import signguard


class Defence(NamedTuple):
    """combine: `(updates (n, d), weights (n,), **inputs and options) -> (d,)`, as a rule from outside (docs/contributing.md, section 2.2);
    weighted: whether the weights of clients count."""

    combine: Callable[..., Tensor]
    weighted: bool = False


ROBUST: Mapping[str, Defence] = {
    "signguard": Defence(signguard),
    "dnc": Defence(dnc),
}
