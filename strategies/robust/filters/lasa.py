"""LASA: layer by layer, leaves out clients whose layer has an unusual length or an unusual share of positive signs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fl_sim.model.flat_model import FlatModel
from strategies.robust.outliers import median_scores
from strategies.robust.ranges import number
from strategies.robust.vectors import clipped, lengths, median


def lasa(
    updates: Tensor,
    weights: Tensor,
    model: FlatModel,
    report: dict[str, Any],
    sparsity: float = 0.3,
    length_limit: float = 1.0,
    sign_limit: float = 1.0,
) -> Tensor:
    """In each layer the mean over the clients that pass two filters there.

    `h_i` = g_i, clipped at the median length, with the smallest `sparsity` of its weights set to 0. In the layer l:
    `r_i = (1 + sum sign(h_i) / sum |sign(h_i)|) / 2`, kept = `{i: z(|h_i|) < length_limit and z(r_i) < sign_limit}`,
    `z(v) = |v - median| / std`; `combined = mean over kept of h_i`, over all clients if nobody is kept. Equal weights.

    Args: updates (n, d); model, whose parameter tensors are the layers; sparsity from 0 to below 1; the limits > 0. A client is reported as
    left out if more than half of the layers leave it out. Raises OptionError.
    Source: Xu et al. 2025, "Achieving Byzantine-Resilient Federated Learning via Layer-Adaptive Sparsified Model Aggregation", Algorithm
    1, and the authors' code: biases are not set to 0, and the numbers 0.3, 1 and 1.
    """
    number("sparsity", sparsity, least=0.0, most=0.999)
    number("length_limit", length_limit, above=0.0)
    number("sign_limit", sign_limit, above=0.0)
    rows = sparsified(clipped(updates, median(lengths(updates))), model, sparsity)
    parts, dropped, sizes = [], [], [shape.numel() for shape in model.layout.values()]
    for layer in rows.split(sizes, dim=1):
        kept = (median_scores(lengths(layer)) < length_limit) & (median_scores(positive_share(layer)) < sign_limit)
        dropped.append(~kept)
        parts.append(layer[kept if bool(kept.any()) else torch.ones_like(kept)].mean(dim=0))
    report["left_out"] = torch.stack(dropped).double().mean(dim=0) > 0.5
    return torch.cat(parts)


def positive_share(layer: Tensor) -> Tensor:
    """`(1 + sum sign / sum |sign|) / 2` (n,), float64, of each row of a layer (n, k): the share of positive signs; 0.5 for a zero row."""
    signs = torch.sign(layer).double()
    return 0.5 * (1.0 + signs.sum(dim=1) / signs.abs().sum(dim=1).clamp(min=1.0))


def sparsified(updates: Tensor, model: FlatModel, sparsity: float) -> Tensor:
    """The updates (n, d), with the `sparsity` smallest of each one's weights (parameters of two or more dimensions) set to 0."""
    weights = torch.cat([torch.full((shape.numel(),), len(shape) >= 2) for shape in model.layout.values()])
    count = int(weights.sum()) - int(int(weights.sum()) * (1.0 - sparsity))
    smallest = updates[:, weights].abs().sort(dim=1, stable=True).indices[:, :count]
    rows, places = updates.clone(), torch.nonzero(weights).flatten()
    return rows.scatter_(1, places[smallest], 0.0)
