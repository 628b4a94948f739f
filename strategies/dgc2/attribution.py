"""Attribution by class: when some classes get worse, whose updates made them so?

Ours (docs/mathematics.md, section 11.3).
"""

from __future__ import annotations

import torch
from torch import Tensor

SHARE = 0.5  # of what the others take away from the loss: what the harmful updates may add


def harmful(harm: Tensor) -> Tensor:
    """The updates, bool (n,), to leave out: the largest harms above 0, until the rest add less than half of what the others take away.

    harm (n,): `-w_i <g_i, G>`, how fast update i raises the loss of the classes that get worse; G (d,) is the gradient of their loss.
    """
    order = harm.argsort(descending=True, stable=True)
    gains, relief = harm.clamp(min=0.0)[order], -harm.clamp(max=0.0).sum()
    remaining = gains.sum() - gains.cumsum(dim=0) + gains  # what is added if update order[i] and all after it stay
    mask = torch.zeros_like(harm, dtype=torch.bool)
    mask[order] = (gains > 0.0) & (remaining >= SHARE * relief)
    return mask


def harmful_part(vector: Tensor, gradient: Tensor) -> Tensor:
    """The part (d,) of a velocity that raises the loss with this gradient: `G min(<v, G>, 0) / |G|^2` (the server subtracts v)."""
    square = torch.dot(gradient, gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
    return gradient * (torch.dot(vector, gradient).clamp(max=0.0) / square)
