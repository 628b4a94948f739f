"""Slow and obvious NumPy versions, in float64, of attacks that have no closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def krum_winner(vectors: Sequence[np.ndarray], f: int) -> int:
    """The index of the vector whose n - f - 2 nearest others are nearest, by squared distance; the first of equals."""
    scores = list[float]()
    for i, vector in enumerate(vectors):
        distances = sorted(float(np.sum((vector - other) ** 2)) for j, other in enumerate(vectors) if j != i)
        scores.append(sum(distances[: max(len(vectors) - f - 2, 1)]))
    return int(np.argmin(scores))


def fang_krum(rows: Sequence[np.ndarray], direction: np.ndarray, copies: int) -> float:
    """Fang et al. 2020, section 3.2: lambda from its upper bound, halved until Krum selects one of the copies; 0 if it never does."""
    h, d, sums = len(rows), len(direction), list[float]()
    for i, row in enumerate(rows):
        distances = sorted(math.dist(row, other) for j, other in enumerate(rows) if j != i)
        sums.append(sum(distances[: max(h - 2, 1)]))
    strength = bound = min(sums) / (max(h - copies - 1, 1) * math.sqrt(d)) + max(math.hypot(*row) for row in rows) / math.sqrt(d)
    while strength > 1e-5 * bound:
        if krum_winner([*[strength * direction] * copies, *rows], copies) < copies:
            return strength
        strength /= 2
    return 0.0


def fang_trim(rows: Sequence[np.ndarray], mean: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Fang et al. 2020, section 3.3, full knowledge, one member: coordinate by coordinate beyond the honest values; u (d,) from [0, 1)."""
    sent = np.zeros(len(mean))
    for j in range(len(mean)):
        values = [float(row[j]) for row in rows]
        b = 1.0 + float(u[j])
        if mean[j] > 0.0:
            sent[j] = min(values) / b if min(values) > 0.0 else min(values) * b
        elif mean[j] < 0.0:
            sent[j] = max(values) * b if max(values) > 0.0 else max(values) / b
    return sent


def poisonedfl(
    thetas: Sequence[np.ndarray], earlier: Sequence[np.ndarray], signs: np.ndarray, server_lr: float, threshold: int
) -> list[np.ndarray]:
    """The updates that PoisonedFL sends when it sees these models, one a round, and has sent `earlier` (Xie et al. 2025, section 4, as
    released). One step at a time, because rounding grows by half in each round."""
    sent, factor, tested = [np.zeros(len(signs))], 8.0, thetas[0]
    for t in range(1, len(thetas)):
        tested = thetas[t] if t % 50 == 1 else tested
        step = (thetas[t - 1] - thetas[t]) / server_lr
        length, before = np.linalg.norm(step), earlier[t - 1]
        magnitude = np.array([abs(step[j] - before[j] * length / (np.linalg.norm(before) + 1e-9)) for j in range(len(signs))])
        if t % 50 == 0:
            agree = 0
            for j in range(len(signs)):
                move = tested[j] - thetas[t][j]
                agree += np.sign(move if move != 0.0 else -thetas[t][j]) == signs[j]
            if agree < threshold and 0.7 * factor >= 0.5:
                factor *= 0.7
        sent.append(factor * length * magnitude * signs / (np.linalg.norm(magnitude) + 1e-9))
    return sent
