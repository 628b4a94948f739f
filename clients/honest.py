"""Honest updates of blocks of clients, with what happens when a client fails."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fl_sim.clipping import Clip
from fl_sim.config import Config
from fl_sim.faults import has_nan_client, raise_if_faulty
from fl_sim.federation import Federation
from fl_sim.flat_model import FlatModel
from fl_sim.messages import Blocks, ClientReport
from fl_sim.training import Summed, block_sum, block_updates, weights_of


@dataclass(frozen=True)
class Work:
    """Everything that honest training of a round depends on."""

    config: Config
    federation: Federation
    model: FlatModel
    theta: Tensor  # (d,)
    round: int
    before: Clip | None
    stacked: bool


@dataclass
class BlockResults:
    """By block position: the weighted sum (d,) or the rows (k, d), the reports, and blocks that another worker should try."""

    sums: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    rows: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    reports: dict[int, tuple[ClientReport, ...]] = field(default_factory=dict[int, tuple[ClientReport, ...]])
    retry: dict[int, str] = field(default_factory=dict[int, str])


class NotFiniteError(ValueError):
    """An update holds NaN or infinity."""


def compute_blocks(work: Work, blocks: Blocks, *, last_attempt: bool) -> BlockResults:
    """The updates of all clients of `blocks`.

    A block with a failing client goes on the `retry` list; at the last attempt it is computed without the clients that fail
    by themselves, each reported with its reason.
    """
    results = BlockResults()
    for position, members in blocks:
        clients, lost = list(members), dict[int, str]()
        try:
            value = _compute(work, clients)
        except Exception as error:  # whatever a client raises becomes the reason in the round's record
            if not last_attempt:
                results.retry[position] = str(error)
                continue
            lost = failing_clients(work, clients)
            value = _compute(work, [client for client in clients if client not in lost])
        if isinstance(value, Summed):
            results.sums[position] = value.total
            weights, lengths = value.weights, value.norms
        else:
            results.rows[position] = value[0]
            weights, lengths = value[1], torch.linalg.vector_norm(value[0], dim=-1).tolist()
        healthy = [client for client in clients if client not in lost]
        results.reports[position] = tuple(
            [ClientReport(client, w, length) for client, w, length in zip(healthy, weights, lengths, strict=True)]
            + [ClientReport(client, 0.0, float("nan"), reason) for client, reason in lost.items()]
        )
    return results


def updates_of(work: Work, clients: list[int]) -> tuple[Tensor, list[float]]:
    """Single updates (k, d) of clients and their weights."""
    settings = work.config.client
    batches = work.federation.cohort(clients, work.round, settings.local_steps, settings.batch_size)
    return block_updates(work.model, work.theta, batches, settings), weights_of(batches)


def _compute(work: Work, clients: list[int]) -> Summed | tuple[Tensor, list[float]]:
    """One block: its weighted sum, or its rows and weights where the rule needs every update."""
    if not clients:
        zero = torch.zeros_like(work.theta)
        return (zero[:0].reshape(0, len(zero)), []) if work.stacked else Summed(zero, [], [])
    raise_if_faulty(work.config.fault, clients)
    if work.stacked:
        rows, weights = updates_of(work, clients)
        value, tensor = (rows, weights), rows
    else:
        settings = work.config.client
        batches = work.federation.cohort(clients, work.round, settings.local_steps, settings.batch_size)
        value = block_sum(work.model, work.theta, batches, settings, work.before)
        tensor = value.total
    if has_nan_client(work.config.fault, clients):
        tensor.fill_(float("nan"))
    if not bool(torch.isfinite(tensor).all()):
        raise NotFiniteError("an update is not finite")
    return value


def failing_clients(work: Work, clients: list[int]) -> dict[int, str]:
    """The clients that fail by themselves, with the reason."""
    lost: dict[int, str] = {}
    for client in clients:
        try:
            _compute(work, [client])
        except Exception as error:
            lost[client] = str(error)
    return lost
