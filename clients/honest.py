"""Honest updates of blocks of clients, also when a client fails."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from clients.cleaning.catalogue import cleaning_of
from clients.cleaning.cohort import Cleaner, altered_places
from clients.cleaning.shares import purified
from fl_sim.config.keys import Config
from fl_sim.data.batches import CohortBatches
from fl_sim.data.federation import Federation
from fl_sim.grid.faults import ClientFaultError, has_nan_client, raise_if_faulty
from fl_sim.model.flat_model import FlatModel
from fl_sim.outside_code import OutsideCodeError, error_words, is_interrupt
from fl_sim.training.clipping import Clip, norms
from fl_sim.training.finite import all_finite
from fl_sim.training.local import BlockSum, block_sum, block_updates, weighted_sum, weights_of
from fl_sim.wire.messages import NOTHING_LEFT, Blocks, CleaningCounts, ClientReport

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
    fitted: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])  # what the cleaning was fitted to


@dataclass
class BlockResults:
    """Results by block position: weighted sums (d,) or rows (k, d); reports; the reasons why another worker should try a block; what the
    cleaning did."""

    sums: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    rows: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    reports: dict[int, tuple[ClientReport, ...]] = field(default_factory=dict[int, tuple[ClientReport, ...]])
    retry: dict[int, str] = field(default_factory=dict[int, str])
    cleaning: dict[int, CleaningCounts] = field(default_factory=dict[int, CleaningCounts])


class Work(NamedTuple):
    """What honest software trains on: batches, after the cleaning if there is one; what it did to unaltered images and to those that an
    attacker altered; and with `cleaning.shrunk` the batches before it."""

    batches: CohortBatches
    clean: CleaningCounts | None = None
    poisoned: CleaningCounts | None = None
    uncleaned: CohortBatches | None = None

    @property
    def weights(self) -> list[float]:
        """The weights of the updates; 0 for a client whose images were all dropped."""
        return weights_of(self.uncleaned or self.batches)


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
            value, work = _compute(inputs, clients, batches)
        except BaseException as error:  # whatever a client raises becomes the reason in the round's record
            if is_interrupt(error):
                raise
            if not last_attempt:
                results.retry[position] = reason_of(error)
                continue
            reasons = failing_clients(inputs, clients)
            healthy = [client for client in clients if client not in reasons]
            value, work = _compute(inputs, healthy)
        if isinstance(value, BlockSum):
            results.sums[position] = value.total
            weights, lengths = value.weights, value.norms
        else:
            weights, lengths = value[1], torch.linalg.vector_norm(value[0], dim=-1).tolist()
            results.rows[position] = value[0] if all(weights) else value[0][torch.tensor(weights, device=value[0].device) > 0]
        healthy = [client for client in clients if client not in reasons]
        failures = [ClientReport(client, 0.0, float("nan"), reason) for client, reason in reasons.items()]
        results.reports[position] = (*map(report_of, healthy, weights, lengths), *failures)
        if work and work.clean:
            results.cleaning[position] = work.clean
    return results


def report_of(client: int, weight: float, norm: float) -> ClientReport:
    """A client's report. One whose images were all dropped sends no update."""
    return ClientReport(client, weight, norm) if weight else ClientReport(client, 0.0, float("nan"), NOTHING_LEFT)


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


def work_of(inputs: RoundInputs, clients: list[int], batches: CohortBatches, drawn: CohortBatches | None = None) -> Work:
    """What the honest software of clients trains on if these are their batches.

    With a purifier it is what was stored of the clients' own shares; only images that an attacker altered are purified now.
    Args: drawn, the batches as the clients drew them, if an attacker may have altered some images.
    """
    config, settings = inputs.config, inputs.config.client
    if config.cleaning.name == "none":
        return Work(batches)
    cleaner = Cleaner(config, inputs.federation, inputs.model, inputs.theta, inputs.round, inputs.fitted)
    clean, poisoned = CleaningCounts(), CleaningCounts()
    if cleaning_of(config.cleaning.name).stored:
        federation = purified(cleaner, clients)
        result = federation.cohort(clients, inputs.round, settings.local_steps, settings.batch_size, settings.weight)
        altered = torch.zeros_like(batches.weights, dtype=torch.bool) if drawn is None else altered_places(batches, drawn)
        clean = cleaner.difference(batches, result, ~altered)
        if bool(altered.any()):
            now, _, poisoned = cleaner(clients, batches, drawn)
            result = result._replace(inputs=torch.where(altered[..., None, None, None], now.inputs, result.inputs))
    else:
        result, clean, poisoned = cleaner(clients, batches, drawn)
    return Work(result, clean, poisoned, batches if config.cleaning.shrunk else None)


def client_updates(inputs: RoundInputs, work: Work) -> Tensor:
    """Each client's update (k, d). With `cleaning.shrunk` it is that of its batch before the cleaning, times
    `mean |update after the cleaning| / mean |update before it|` over the clients that are computed together."""
    rows = block_updates(inputs.model, inputs.theta, work.batches, inputs.config.client)
    if work.uncleaned is None:
        return rows
    plain = block_updates(inputs.model, inputs.theta, work.uncleaned, inputs.config.client)
    left = torch.tensor(weights_of(work.batches), device=rows.device) > 0
    wanted = norms(rows[left]).mean() if bool(left.any()) else rows.new_zeros(())
    return plain * (wanted / norms(plain).mean().clamp(min=torch.finfo(plain.dtype).tiny))


def _compute(
    inputs: RoundInputs, clients: list[int], batches: CohortBatches | None = None
) -> tuple[BlockSum | tuple[Tensor, list[float]], Work | None]:
    """One block: its weighted sum, or its rows and weights if the rule needs every update. `batches` None: they are drawn here."""
    if not clients:
        zero = torch.zeros_like(inputs.theta)
        return ((zero[:0].reshape(0, len(zero)), []) if inputs.stacked else BlockSum(zero, [], [])), None
    raise_if_faulty(inputs.config.fault, clients)
    work = work_of(inputs, clients, batches or _batches(inputs, clients))
    if inputs.stacked or work.uncleaned:
        rows = client_updates(inputs, work)
        value, tensor = (rows, work.weights) if inputs.stacked else weighted_sum(rows, work.weights, inputs.before), rows
    else:
        value = block_sum(inputs.model, inputs.theta, work.batches, inputs.config.client, inputs.before)
        tensor = value.total
    if has_nan_client(inputs.config.fault, clients):
        tensor.fill_(float("nan"))
    if not all_finite(tensor):
        raise NotFiniteError("an update is not finite")
    return value, work


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
