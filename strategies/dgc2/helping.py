"""Helping a class that falls behind: the updates that raise it count more.

Ours (docs/mathematics.md, section 11.4).
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 4.0  # what is added to the factor of an update that points straight at the classes that fell behind as far as they ever did


def strength(deficits: Tensor, falls: Tensor) -> float:
    """How much helpful updates are to be strengthened, from 0 to 4: 4 as soon as a class is as far behind as it ever was in clean rounds.

    deficits (c,): points of confidence by which each class is below its reference; falls (c,): the largest ones of clean rounds, above 0.
    0 if a deficit is not a number.
    """
    share = float((deficits.clamp(min=0.0) / falls).max())
    return MOST * min(share, 1.0) if share > 0.0 else 0.0


def boosts(updates: Tensor, lengths: Tensor, gradient: Tensor, strength: float) -> Tensor:
    """The factors (n,) of updates (n, d) of these lengths (n,): `1 + strength * max(cos(g_i, G), 0)`.

    gradient G (d,): of the shortfall `1/2 sum_c deficit_c^2`; the server subtracts updates, so one along G makes it smaller.
    """
    tiny = torch.finfo(updates.dtype).tiny
    cosines = updates @ gradient / (lengths * gradient.norm()).clamp(min=tiny)
    return 1.0 + strength * cosines.clamp(min=0.0)
