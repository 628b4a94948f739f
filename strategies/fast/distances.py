"""Distances between the updates of a round."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

COORDINATES = 1 << 13  # of each update, in one product: they stay in the cache
ROUNDING = 1e-13  # of float64 products, as a share of |g_i|^2 + |g_j|^2


class _Last(NamedTuple):
    """The distances of the updates that were asked for last, if these are still the same numbers."""

    updates: weakref.ref[Tensor]
    version: int
    distances: Tensor


_last: list[_Last] = []  # a rule asks for its result, and then for whom it left out


def squared_distances(updates: Tensor) -> Tensor:
    """`_squared_distances` of updates (n, d), computed once for as long as the same tensor is asked for."""
    last = _last[0] if _last else None  # read once: cells of a sweep may run in threads
    if last and last.updates() is updates and last.version == updates._version:
        return last.distances.clone()
    distances = _squared_distances(updates)
    _last[:] = [_Last(weakref.ref(updates), updates._version, distances)]
    return distances.clone()


def _squared_distances(updates: Tensor) -> Tensor:
    """`|g_i - g_j|^2` (n, n) of updates (n, d), in float64, from the scalar products of the updates less their mean.

    Coordinates come in parts, so that no second copy of the updates is held. What is 0 up to rounding is 0: equal updates have no distance.
    """
    mean, products = updates.mean(dim=0), updates.new_zeros(len(updates), len(updates), dtype=torch.float64)
    for rows, centre in zip(updates.split(COORDINATES, dim=1), mean.split(COORDINATES), strict=True):
        part = rows.double() - centre.double()
        products += part @ part.T
    lengths = products.diagonal().unsqueeze(0) + products.diagonal().unsqueeze(1)
    distances = lengths - (products + products.T)
    return torch.where(distances > ROUNDING * lengths, distances, 0.0)


def nearest_neighbours(updates: Tensor, count: int) -> Tensor:
    """The ids (n, count) of the `count` updates nearest to each of the updates (n, d), itself first; of equally near ones the first."""
    return squared_distances(updates).sort(dim=1, stable=True).indices[:, :count]
