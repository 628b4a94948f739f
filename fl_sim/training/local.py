"""Local training of a block of clients: their updates in gradient units, and the weighted sum of these."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from fl_sim.config.keys import Client
from fl_sim.data.batches import CohortBatches
from fl_sim.model.abilities import abilities
from fl_sim.model.flat_model import FlatModel
from fl_sim.training import ghost_clipping as ghost
from fl_sim.training.clipping import Clip, clip, norms

VMAP_PIXELS, VMAP_PARAMETERS = 2000, 2**21  # measured, see `single_updates_by_vmap`
ROW_NUMBERS = 2**25  # numbers of single updates in memory at once, 128 MiB: fixed, because other chunks would round differently


class BlockSum(NamedTuple):
    """`total` (d,) = sum_i w_i * before(g_i); `weights` (k,); `norms` (k,) before clipping, NaN if not computed."""

    total: Tensor
    weights: list[float]
    norms: list[float]


def weights_of(batches: CohortBatches) -> list[float]:
    """w_i of each client: the examples used for its update (local steps times its batch size), or all of its examples
    (`client.weight = "share"`), or 1 ("equal")."""
    return [float(size) for size in batches.shares or (batches.labels.shape[1] * size for size in batches.sizes)]


def single_updates_by_vmap(model: FlatModel, theta: Tensor, batches: CohortBatches, settings: Client) -> bool:
    """Whether a block's single updates are computed by vmap, or else client by client.

    vmap on a GPU and wherever one client's batch is small, if the model can be vectorised (`fl_sim.model.abilities`). A fixed rule, not a
    measurement: the two differ in the last bits, and a run must give the same bytes wherever it is repeated. On a CPU, per-client
    convolution gradients become grouped convolutions: 100 clients of the 106 k CNN took 42 ms by vmap and 98 ms by loop with one 28x28
    image each, but 966 and 473 ms with ten. Ten clients of ResNet-18 with one 8x8 image each took 0.92 and 0.68 s: the
    copies of a large model's updates cost more than its layers.
    """
    if settings.engine != "auto":
        return settings.engine == "vmap"
    _, _, b, _, height, width = batches.inputs.shape
    fast = batches.inputs.is_cuda or (b * height * width <= VMAP_PIXELS and len(theta) <= VMAP_PARAMETERS)
    return fast and not abilities(model, _image_shape(batches)).no_vmap


def _image_shape(batches: CohortBatches) -> tuple[int, ...]:
    return tuple(batches.inputs.shape[3:])


def block_updates(model: FlatModel, theta: Tensor, batches: CohortBatches, settings: Client) -> Tensor:
    """Each client's update (k, d) in gradient units, from the shared model theta (d,).

    One local step: the gradient of its batch. Several: the sum of the gradients along its local SGD path. It equals
    `(theta - theta_i) / client_lr`, but has no cancellation error.
    """
    if single_updates_by_vmap(model, theta, batches, settings):
        return _updates_by_vmap(model, theta, batches, settings)
    updates = theta.new_empty(len(batches.sizes), len(theta))
    for row, size in enumerate(batches.sizes):
        update = updates[row]
        for step in range(batches.labels.shape[1]):
            local = theta if step == 0 else theta - settings.learning_rate * update
            weights = batches.weights[row, step, :size] if batches.dropped else None
            batch = (batches.inputs[row, step, :size], batches.labels[row, step, :size], weights)
            if step == 0:
                model.gradient(local, *batch, out=update)
            else:
                update += model.gradient(local, *batch)
    return updates


def _updates_by_vmap(model: FlatModel, theta: Tensor, batches: CohortBatches, settings: Client) -> Tensor:
    """`block_updates` of all clients at once, or of one half after the other if the GPU runs out of memory."""
    try:
        return _updates_at_once(model, theta, batches, settings)
    except torch.OutOfMemoryError:
        if len(batches.sizes) == 1:
            raise
    return torch.cat([_updates_by_vmap(model, theta, half, settings) for half in batches.halves()])


def _updates_at_once(model: FlatModel, theta: Tensor, batches: CohortBatches, settings: Client) -> Tensor:
    updates = model.gradients(theta, batches.inputs[:, 0], batches.labels[:, 0], batches.weights[:, 0])
    for step in range(1, batches.labels.shape[1]):
        local = theta - settings.learning_rate * updates
        updates = updates + model.gradients(local, batches.inputs[:, step], batches.labels[:, step], batches.weights[:, step])
    return updates


def block_sum(model: FlatModel, theta: Tensor, batches: CohortBatches, settings: Client, before: Clip | None) -> BlockSum:
    """`_block_sum` of the block, or of one half after the other if the GPU runs out of memory."""
    try:
        return _block_sum(model, theta, batches, settings, before)
    except torch.OutOfMemoryError:
        if len(batches.sizes) == 1:
            raise
    first, second = (block_sum(model, theta, half, settings, before) for half in batches.halves())
    return BlockSum(first.total + second.total, first.weights + second.weights, first.norms + second.norms)


def _block_sum(model: FlatModel, theta: Tensor, batches: CohortBatches, settings: Client, before: Clip | None) -> BlockSum:
    """The weighted sum of a block's (clipped) updates, if possible without forming single updates.

    One local step and no clip: `sum_i w_i g_i` is the gradient of the weighted loss of one joint batch, if the model treats the examples of
    a batch separately. With a clip: ghost clipping of one joint batch where it is faster (`fl_sim.training.ghost_clipping`). Else single
    updates, at most `ROW_NUMBERS` numbers at a time, so that a block of a large model does not fill the memory.
    """
    if before is None and settings.local_steps == 1 and abilities(model, _image_shape(batches)).separate:
        weights = weights_of(batches)
        per_example = batches.weights[:, 0] * torch.tensor(weights, device=theta.device).unsqueeze(1)
        total = model.gradient(theta, batches.inputs.flatten(0, 2), batches.labels.flatten(), per_example.flatten())
        return BlockSum(total, weights, [float("nan")] * len(weights))
    if before and settings.local_steps == 1 and settings.engine == "auto" and ghost.wins(model, theta, batches, before):
        total, lengths = ghost.clipped_sum(model, theta, batches, weights_of(batches), before)
        return BlockSum(total, weights_of(batches), lengths.tolist())
    rows = max(1, ROW_NUMBERS // len(theta))
    parts = [batches.part(start, start + rows) for start in range(0, len(batches.sizes), rows)]
    sums = [weighted_sum(block_updates(model, theta, part, settings), weights_of(part), before) for part in parts]
    total = functools.reduce(torch.add, (part.total for part in sums))
    return BlockSum(total, [w for part in sums for w in part.weights], [length for part in sums for length in part.norms])


def weighted_sum(updates: Tensor, weights: list[float], before: Clip | None) -> BlockSum:
    """`sum_i w_i * before(g_i)` of updates (k, d)."""
    clipped, lengths = clip(updates, before) if before else (updates, norms(updates))
    return BlockSum(updates.new_tensor(weights) @ clipped, weights, lengths.tolist())
