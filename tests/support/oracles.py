"""Slow and obvious NumPy loops in float64: what the fast code is held against."""

from __future__ import annotations

import math

import numpy as np


def clip(vector: np.ndarray, bound: float, norm: str) -> np.ndarray:
    """One update rescaled to at most the bound."""
    length = math.sqrt(sum(float(x) ** 2 for x in vector)) if norm == "l2" else max(abs(float(x)) for x in vector)
    factor = 1.0 if length == 0.0 or length <= bound else bound / length
    return np.array([float(x) * factor for x in vector])


def weighted_mean(updates: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """sum_i w_i g_i / sum_i w_i."""
    total = np.zeros(len(updates[0]))
    for update, weight in zip(updates, weights, strict=True):
        total += weight * np.asarray(update, dtype=np.float64)
    return total / sum(weights)


def server_sgd(theta: np.ndarray, combined: list[np.ndarray], learning_rate: float, momentum: float) -> np.ndarray:
    """theta after SGD with momentum on a sequence of combined updates."""
    theta, velocity = np.array(theta, dtype=np.float64), np.zeros(len(theta))
    for update in combined:
        for j in range(len(theta)):
            velocity[j] = momentum * velocity[j] + update[j]
            theta[j] = theta[j] - learning_rate * velocity[j]
    return theta


def softmax_regression_gradient(theta: np.ndarray, inputs: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Gradient of the mean cross-entropy of a linear model (weights (c, p) then biases (c,), flat), example by example."""
    p = inputs.shape[1]
    weights, biases = theta[: classes * p].reshape(classes, p), theta[classes * p :]
    d_weights, d_biases = np.zeros_like(weights), np.zeros_like(biases)
    for x, y in zip(inputs, labels, strict=True):
        scores = weights @ x + biases
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        for c in range(classes):
            error = shares[c] - (1.0 if c == y else 0.0)
            d_weights[c] += error * x / len(labels)
            d_biases[c] += error / len(labels)
    return np.concatenate([d_weights.reshape(-1), d_biases])


def discrepancy(before: np.ndarray, after: np.ndarray, kind: str) -> list[float]:
    """Memorization Discrepancy of each example from logits (e, c), probability by probability: KL(p || q) or Jensen-Shannon."""

    def softmax(row: np.ndarray) -> list[float]:
        exponents = [math.exp(float(x) - float(max(row))) for x in row]
        return [x / sum(exponents) for x in exponents]

    def kl(p: list[float], q: list[float]) -> float:
        return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0.0)

    found: list[float] = []
    for row, other in zip(before, after, strict=True):
        p, q = softmax(row), softmax(other)
        half = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        found.append(kl(p, q) if kind == "kl" else kl(p, half) / 2 + kl(q, half) / 2)
    return found
