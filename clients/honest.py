"""Honest updates of blocks of clients, also when a client fails."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fl_sim.config.keys import Config
from fl_sim.data.batches import CohortBatches
from fl_sim.data.federation import Federation
from fl_sim.grid.faults import ClientFaultError, has_nan_client, raise_if_faulty
from fl_sim.model.flat_model import FlatModel
from fl_sim.outside_code import OutsideCodeError, error_words, is_interrupt
from fl_sim.training.clipping import Clip
from fl_sim.training.local import BlockSum, block_sum, block_updates, weights_of
from fl_sim.wire.messages import Blocks, ClientReport

BATCH_NUMBERS = 2**24  # most numbers in the examples drawn at once, 64 MiB


@dataclass(frozen=True)
class RoundInputs:
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
    """Results by block position: weighted sums (d,) or rows (k, d); reports; the reasons why another worker should try a block."""

    sums: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    rows: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    reports: dict[int, tuple[ClientReport, ...]] = field(default_factory=dict[int, tuple[ClientReport, ...]])
    retry: dict[int, str] = field(default_factory=dict[int, str])


class NotFiniteError(ValueError):
    """An update holds NaN or infinity."""


def compute_blocks(inputs: RoundInputs, blocks: Blocks, *, last_attempt: bool) -> BlockResults:
    """The updates of all clients of `blocks`.

    A block with a failing client is added to `retry`. At the last attempt it is computed without the clients that fail alone; these are
    reported with their reasons.
    """
    results = BlockResults()
    for (position, members), batches in zip(blocks, _batches_by_block(inputs, blocks), strict=True):
        clients, reasons = list(members), dict[int, str]()
        try:
            value = _compute(inputs, clients, batches)
        except BaseException as error:  # whatever a client raises becomes the reason in the round's record
            if is_interrupt(error):
                raise
            if not last_attempt:
                results.retry[position] = reason_of(error)
                continue
            reasons = failing_clients(inputs, clients)
            healthy = [client for client in clients if client not in reasons]
            value = _compute(inputs, healthy)
        if isinstance(value, BlockSum):
            results.sums[position] = value.total
            weights, lengths = value.weights, value.norms
        else:
            results.rows[position] = value[0]
            weights, lengths = value[1], torch.linalg.vector_norm(value[0], dim=-1).tolist()
        healthy = [client for client in clients if client not in reasons]
        failures = [ClientReport(client, 0.0, float("nan"), reason) for client, reason in reasons.items()]
        results.reports[position] = (*map(ClientReport, healthy, weights, lengths), *failures)
    return results


def _batches_by_block(inputs: RoundInputs, blocks: Blocks) -> Generator[CohortBatches | None]:
    """The batches of each block, drawn for as many blocks at once as `BATCH_NUMBERS` allows. None if a block must be drawn by itself:
    because it has no clients, or because drawing several at once failed."""
    settings = inputs.config.client
    largest = max((len(members) for _, members in blocks), default=1) or 1
    numbers = largest * settings.local_steps * settings.batch_size * math.prod(inputs.federation.dataset.image_shape)
    step = max(1, BATCH_NUMBERS // numbers)
    for group in (blocks[at : at + step] for at in range(0, len(blocks), step)):
        together, start = None, 0
        with contextlib.suppress(Exception):  # each block is then drawn by itself, and the one that fails raises
            together = _batches(inputs, [client for _, members in group for client in members])
        for _, members in group:
            yield together.part(start, start + len(members)) if together and members else None
            start += len(members)


def _batches(inputs: RoundInputs, clients: list[int]) -> CohortBatches:
    settings = inputs.config.client
    return inputs.federation.cohort(clients, inputs.round, settings.local_steps, settings.batch_size, settings.weight)


def _compute(inputs: RoundInputs, clients: list[int], batches: CohortBatches | None = None) -> BlockSum | tuple[Tensor, list[float]]:
    """One block: its weighted sum, or its rows and weights if the rule needs every update. `batches` None: they are drawn here."""
    if not clients:
        zero = torch.zeros_like(inputs.theta)
        return (zero[:0].reshape(0, len(zero)), []) if inputs.stacked else BlockSum(zero, [], [])
    raise_if_faulty(inputs.config.fault, clients)
    batches = batches or _batches(inputs, clients)
    if inputs.stacked:
        rows = block_updates(inputs.model, inputs.theta, batches, inputs.config.client)
        value, tensor = (rows, weights_of(batches)), rows
    else:
        value = block_sum(inputs.model, inputs.theta, batches, inputs.config.client, inputs.before)
        tensor = value.total
    if has_nan_client(inputs.config.fault, clients):
        tensor.fill_(float("nan"))
    if not bool(torch.isfinite(tensor).all()):
        raise NotFiniteError("an update is not finite")
    return value


def failing_clients(inputs: RoundInputs, clients: list[int]) -> dict[int, str]:
    """The clients that fail when computed alone, with the reason."""
    reasons: dict[int, str] = {}
    for client in clients:
        try:
            _compute(inputs, [client])
        except BaseException as error:
            if is_interrupt(error):
                raise
            reasons[client] = reason_of(error)
    return reasons


def reason_of(error: BaseException) -> str:
    """Why a client failed; with the file and the line if a model from outside raised."""
    return str(error) if isinstance(error, ClientFaultError | NotFiniteError | OutsideCodeError) else error_words(error)
