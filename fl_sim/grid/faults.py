"""Injected faults (`fault.*`): clients that raise or return NaN, replies that are wrong or late, and a worker that dies during a round."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fl_sim.config.checks import client_ids
from fl_sim.config.keys import Fault
from fl_sim.wire.messages import ClientReport, Order, Reply

SLOW = 3600.0  # seconds


class ClientFaultError(RuntimeError):
    """A client that `fault.raises` lets fail."""


def raise_if_faulty(fault: Fault, clients: list[int]) -> None:
    """Raise `ClientFaultError` if one of the clients is in `fault.raises`."""
    faulty = client_ids(fault.raises) & set(clients) if fault.raises else frozenset[int]()
    if faulty:
        raise ClientFaultError(f"client {min(faulty)} raised (fault.raises)")


def has_nan_client(fault: Fault, clients: list[int]) -> bool:
    """Whether one of the clients is in `fault.nan`."""
    return bool(fault.nan) and not client_ids(fault.nan).isdisjoint(clients)


def kill_worker(fault: Fault, round_: int, attempt: int, positions: list[int]) -> None:
    """End this process if it is the worker of block 0, in the round of `fault.kill-round` (-1: every round), at the first attempt."""
    if fault.kill_round in (round_, -1) and attempt == 0 and 0 in positions:
        os._exit(1)


def with_fault(fault: Fault, order: Order, reply: Reply) -> Reply:
    """The reply to an order, with the fault of `fault.reply` if it holds a client of `fault.clients`."""
    if fault.reply == "none" or (fault.attempts == "first" and order.attempt):
        return reply
    all_reports = [report for reports in reply.reports.values() for report in reports]
    all_reports += reply.coalition.reports if reply.coalition else ()
    faulty = client_ids(fault.clients) & {report.client for report in all_reports}
    if not faulty:
        return reply
    if fault.reply == "slow":
        time.sleep(SLOW)
    return REPLIES[fault.reply](reply, min(faulty)) if fault.reply in REPLIES else reply


def _tensors(change: Callable[[Tensor], Tensor]) -> Callable[[Reply, int], Reply]:
    """A fault that changes every tensor of the reply."""

    def spoil(reply: Reply, client: int) -> Reply:
        part = reply.coalition
        coalition = replace(part, updates=change(part.updates)) if part else None
        nodes, rows = ({key: change(value) for key, value in tensors.items()} for tensors in (reply.nodes, reply.rows))
        return replace(reply, nodes=nodes, rows=rows, coalition=coalition)

    return spoil


def _reports(change: Callable[[ClientReport], tuple[ClientReport, ...]]) -> Callable[[Reply, int], Reply]:
    """A fault that changes the client's report, or how often it is there."""

    def spoil(reply: Reply, client: int) -> Reply:
        def of(reports: tuple[ClientReport, ...]) -> tuple[ClientReport, ...]:
            return tuple(result for report in reports for result in (change(report) if report.client == client else (report,)))

        coalition = replace(reply.coalition, reports=of(reply.coalition.reports)) if reply.coalition else None
        return replace(reply, reports={position: of(reports) for position, reports in reply.reports.items()}, coalition=coalition)

    return spoil


REPLIES: Mapping[str, Callable[[Reply, int], Reply]] = {
    "shape": _tensors(lambda value: torch.cat([value, value[..., :1]], dim=-1)),
    "dtype": _tensors(lambda value: value.double()),
    "nan": _tensors(lambda value: value * float("nan")),
    "inf": _tensors(lambda value: value + float("inf")),
    "missing": _reports(lambda report: ()),
    "duplicate": _reports(lambda report: (report, report)),
    "negative-weight": _reports(lambda report: (report._replace(weight=-1.0),)),
    "huge-weight": _reports(lambda report: (report._replace(weight=1e30),)),
    "nan-weight": _reports(lambda report: (report._replace(weight=float("nan")),)),
}
