"""The server's checks of a worker's reply before it is combined: the reply may be damaged, or come from a different program."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from torch import Tensor

from fl_sim.training.finite import all_finite
from fl_sim.wire.messages import ClientReport, Order, Reply
from fl_sim.wire.reduction import Node


def reply_problem(order: Order, reply: Reply, largest_weight: float) -> str:
    """Why a reply does not answer its order; empty if it does.

    Checked: every client of the order is reported exactly once, or its block is on the retry list; every weight is in
    (0, largest_weight]; every sum and every update has d finite numbers of the model's type; there is an update for every client that is
    not reported as failed.
    """
    if not math.isfinite(reply.seconds):
        return f"expected seconds to be a number, got {reply.seconds}"
    blocks = {position: clients for position, clients in order.blocks if position not in reply.retry}
    if stray := set(reply.retry) - {position for position, _ in order.blocks}:
        return f"expected blocks of the order on the retry list, got {sorted(stray)}"
    if set(reply.reports) != set(blocks):
        return f"expected reports of the blocks {sorted(blocks)}, got {sorted(reply.reports)}"
    for position, clients in blocks.items():
        if problem := _reports_problem(clients, reply.reports[position], largest_weight):
            return problem
    if order.stacked:
        counts = {position: _count_updates(reply.reports[position]) for position in blocks}
        problem = _same_keys("updates", set(reply.rows), set(blocks)) or _first(
            _tensor_problem(rows, (counts[position], len(order.theta)), order.theta) for position, rows in reply.rows.items()
        )
    else:
        counts_by_block = Counter(position for node in reply.nodes for position in _positions(node, order.num_blocks))
        problem = _same_keys("sums", counts_by_block, Counter(list(blocks))) or _first(
            _tensor_problem(total, (len(order.theta),), order.theta) for total in reply.nodes.values()
        )
    return problem or _coalition_problem(order, reply, largest_weight)


def _coalition_problem(order: Order, reply: Reply, largest_weight: float) -> str:
    if not order.coalition or not reply.coalition:
        return "expected the coalition's part" if order.coalition else "expected no coalition's part" if reply.coalition else ""
    part = reply.coalition
    count = _count_updates(part.reports) if order.stacked else 1
    if not order.stacked and not _count_updates(part.reports):
        count = len(part.updates)  # every member failed: one sum of zeros, or none
    return _reports_problem(order.coalition.members, part.reports, largest_weight) or _tensor_problem(
        part.updates, (count, len(order.theta)), order.theta
    )


def _reports_problem(clients: Sequence[int], reports: Sequence[ClientReport], largest_weight: float) -> str:
    counts = Counter(report.client for report in reports)
    if missing := sorted(set(clients) - set(counts)):
        return f"client {missing[0]} is missing"
    if strangers := sorted(set(counts) - set(clients)):
        return f"client {strangers[0]} was not asked"
    if twice := sorted(client for client, count in counts.items() if count > 1):
        return f"client {twice[0]} is reported twice"
    for report in reports:
        if not report.failure and not 0.0 < report.weight <= largest_weight:  # also refuses NaN
            return f"client {report.client}: expected a weight in (0, {largest_weight:g}], got {report.weight:g}"
        if not report.failure and (report.norm < 0.0 or math.isinf(report.norm)):
            return f"client {report.client}: expected a norm >= 0, got {report.norm:g}"
    return ""


def _tensor_problem(value: Tensor, shape: tuple[int, ...], theta: Tensor) -> str:
    if tuple(value.shape) != shape:
        return f"expected an update to have shape {shape}, got {tuple(value.shape)}"
    if value.dtype != theta.dtype:
        return f"expected an update in {theta.dtype}, got {value.dtype}"
    return "" if all_finite(value) else "an update is not finite"


def _same_keys(what: str, actual: object, expected: object) -> str:
    return "" if actual == expected else f"expected {what} of each block that was asked, once"


def _positions(node: Node, num_blocks: int) -> range:
    """The blocks that a node of the reduction tree covers."""
    level, index = node
    return range(index << level, min((index + 1) << level, num_blocks))


def _count_updates(reports: Sequence[ClientReport]) -> int:
    return sum(not report.failure for report in reports)


def _first(problems: Iterable[str]) -> str:
    return next(filter(None, problems), "")
