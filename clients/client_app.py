"""The worker: it answers an order with the updates of many virtual clients, the coalition's included. For Flower it is a ClientApp."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from clients.cleaning.fitted import fitted
from clients.coalition import coalition_turn
from clients.honest import BlockResults, RoundInputs, compute_blocks
from fl_sim.config.keys import Config
from fl_sim.config.resolve import from_json, start_digest
from fl_sim.data.federation import load_federation
from fl_sim.data.outside import DataError
from fl_sim.device import device_of
from fl_sim.grid.faults import kill_worker, with_fault
from fl_sim.grid.transports import from_content, to_content
from fl_sim.model.architectures import models
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from fl_sim.outside_code import OutsideCodeError, error_report, settings_kept
from fl_sim.wire.messages import ClientReport, CoalitionOrder, CoalitionReply, Order, Reply, rows_sum
from fl_sim.wire.reduction import reduce_tree, root

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One order in, one reply out (`fl_sim.wire.messages`), as Flower's messages."""
    return Message(to_content(answer(from_content(message.content))), reply_to=message)


def answer(order: Order) -> Reply:
    """The reply to an order: tree nodes or rows of its blocks, and the coalition's part. Tensors of both are on the CPU."""
    start = time.perf_counter()
    config = from_json(order.config)
    if not order.weighted:
        config = config.model_copy(update={"client": config.client.model_copy(update={"weight": "equal"})})
    order = order.on(device_of(config))
    if torch.get_num_threads() != config.client.threads:
        torch.set_num_threads(config.client.threads)
    with settings_kept():  # a model from outside may change them in any call
        return _answer(config, order, start)


def _answer(config: Config, order: Order, start: float) -> Reply:
    kill_worker(config.fault, order.round, order.attempt, [position for position, _ in order.blocks])
    federation = load_federation(config)
    if order.data and order.data != (here := federation.dataset.fingerprint):
        raise DataError(
            f"expected the server's data (fingerprint {order.data[:16]}), got other data under data.root = {config.data.root!r} "
            f"on {platform.node()} (fingerprint {here[:16]}): it differs between machines, or has changed since the run began"
        )
    content = models.content(config.model.name), start_digest(config), federation.dataset.fingerprint
    inputs = RoundInputs(
        config=config,
        federation=federation,
        model=_model(order.config, content, order.buffers.numpy(force=True).tobytes()),
        theta=order.theta,
        round=order.round,
        before=order.before,
        stacked=order.stacked,
        fitted=_fitted(order.config, content, order.cleaning),
    )
    results = compute_blocks(inputs, order.blocks, last_attempt=order.attempt > 0)
    coalition = None
    if order.coalition:
        coalition = _turn(inputs, order, order.coalition, results)
    nodes = reduce_tree({(0, position): total for position, total in results.sums.items()}, order.num_blocks)
    reply = Reply(nodes, results.rows, results.reports, results.retry, coalition, time.perf_counter() - start, results.cleaning)
    return with_fault(config.fault, order, reply.on(torch.device("cpu")))


def _turn(inputs: RoundInputs, order: Order, coalition: CoalitionOrder, results: BlockResults) -> CoalitionReply:
    """The coalition's part of the reply. If the attack raises, its members count as failed; the honest clients are not affected. With
    `attack.on-error = "stop"` the reply also has the traceback, and the server ends the run."""
    try:
        return coalition_turn(inputs, _with_honest(inputs, order, coalition, results))
    except OutsideCodeError as error:
        report = str(error)
    except Exception as error:  # one of our attacks, or what it uses of ByzFL
        report = error_report(error)
    reason = report.partition("\n")[0]
    reports = tuple(ClientReport(client, 0.0, float("nan"), reason) for client in coalition.members)
    zeros = torch.zeros(0 if inputs.stacked else 1, len(inputs.theta), device=inputs.theta.device)
    stops = inputs.config.attack.on_error == "stop"
    return CoalitionReply(zeros, reports, coalition.state, {}, error=report if stops else "")


def _with_honest(inputs: RoundInputs, order: Order, coalition: CoalitionOrder, results: BlockResults) -> CoalitionOrder:
    """The order with the honest sum, in a single wave of an omniscient coalition: the honest blocks that this worker has not computed for
    the order are recomputed from the shared seeds. The same bytes as a second wave would bring. With `attack.knowledge = "updates"` also
    with every single honest update, before the clip per client; the sum is the same as for an omniscient coalition."""
    if not coalition.witness:
        return coalition
    other_blocks = tuple(block for block in coalition.witness if block[0] not in results.reports)
    other_results = compute_blocks(inputs, other_blocks, last_attempt=True)
    sums = results.sums | other_results.sums
    rows = results.rows | other_results.rows
    reports = results.reports | other_results.reports
    sums |= {position: rows_sum(stack, reports[position]) for position, stack in rows.items()}
    total = reduce_tree({(0, position): value for position, value in sums.items()}, order.num_blocks)[root(order.num_blocks)]
    weight = sum(report.weight for position in sorted(reports) for report in reports[position])
    coalition = replace(coalition, honest_sum=total, honest_weight=weight)
    if inputs.config.attack.knowledge != "updates":
        return coalition
    if not inputs.stacked:
        single = compute_blocks(replace(inputs, stacked=True), coalition.witness, last_attempt=True)
        rows, reports = single.rows, single.reports
    weights = tuple(report.weight for position in sorted(rows) for report in reports[position] if not report.failure)
    stack = [rows[position] for position in sorted(rows)]
    updates = torch.cat(stack) if stack else torch.zeros(0, len(inputs.theta), device=inputs.theta.device)
    return replace(coalition, honest_updates=updates, update_weights=weights)


@lru_cache(maxsize=16)
def _fitted(config_json: str, content: tuple[str, ...], expected: str) -> Mapping[str, Tensor]:
    """What the cleaning of a configuration was fitted to (a process-wide cache, as of the model). Raises DataError if the server's is
    another: on another kind of machine the numbers of a fit may differ."""
    config = from_json(config_json)
    tensors, digest, _ = fitted(config, load_federation(config))
    if expected and digest != expected:
        raise DataError(
            f"expected the server's fit of cleaning.name = {config.cleaning.name!r} ({expected}), got another ({digest}) on "
            f"{platform.node()}: let data.cache-dir be a folder that all machines share"
        )
    return tensors


@lru_cache(maxsize=16)
def _model(config_json: str, content: tuple[str, ...], buffers: bytes) -> FlatModel:
    """The model of a configuration (a process-wide cache by configuration, content of what it points at, and batch statistics)."""
    config = from_json(config_json)
    module = new_module(config, load_federation(config))
    statistics = torch.frombuffer(bytearray(buffers), dtype=torch.float32) if buffers else None
    return FlatModel(module, statistics, bfloat16=config.client.precision == "bfloat16")
