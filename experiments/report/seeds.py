"""Values over seeds, as one text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def over_seeds(values: Sequence[float]) -> str:
    """`mean (least to most)` of one or several accuracies."""
    if not values:
        return "-"
    mean = float(np.mean(values))
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})"
