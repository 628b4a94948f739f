"""Injected faults (`fault.*`): clients that raise or return NaN, replies that are wrong or late, and a worker that dies in mid-round."""

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
    """A client failed on purpose."""


def raise_if_faulty(fault: Fault, clients: list[int]) -> None:
    """Raise `ClientFaultError` if one of the clients is to raise."""
    broken = client_ids(fault.raises) & set(clients) if fault.raises else frozenset[int]()
    if broken:
        raise ClientFaultError(f"client {min(broken)} raised (fault.raises)")


def has_nan_client(fault: Fault, clients: list[int]) -> bool:
    """Whether one of the clients is to return NaN."""
    return bool(fault.nan) and not client_ids(fault.nan).isdisjoint(clients)


def kill_worker(fault: Fault, round_: int, attempt: int, positions: list[int]) -> None:
    """End this process if it is the worker of block 0 in the round of `fault.kill-round` (-1: in every round), at the first attempt."""
    if fault.kill_round in (round_, -1) and attempt == 0 and 0 in positions:
        os._exit(1)


def spoiled(fault: Fault, order: Order, reply: Reply) -> Reply:
    """The reply to an order, made wrong as `fault.reply` says if a client of `fault.clients` is in it."""
    if fault.reply == "none" or (fault.attempts == "first" and order.attempt):
        return reply
    sent = [report for reports in reply.reports.values() for report in reports]
    sent += reply.coalition.reports if reply.coalition else ()
    wrong = client_ids(fault.clients) & {report.client for report in sent}
    if not wrong:
        return reply
    if fault.reply == "slow":
        time.sleep(SLOW)
    return REPLIES[fault.reply](reply, min(wrong)) if fault.reply in REPLIES else reply


def _tensors(change: Callable[[Tensor], Tensor]) -> Callable[[Reply, int], Reply]:
    """Every tensor of the reply changed."""

    def spoil(reply: Reply, client: int) -> Reply:
        part = reply.coalition
        coalition = replace(part, updates=change(part.updates)) if part else None
        nodes, rows = ({key: change(value) for key, value in held.items()} for held in (reply.nodes, reply.rows))
        return replace(reply, nodes=nodes, rows=rows, coalition=coalition)

    return spoil


def _reports(change: Callable[[ClientReport], tuple[ClientReport, ...]]) -> Callable[[Reply, int], Reply]:
    """The client's report changed."""

    def spoil(reply: Reply, client: int) -> Reply:
        def of(reports: tuple[ClientReport, ...]) -> tuple[ClientReport, ...]:
            return tuple(made for report in reports for made in (change(report) if report.client == client else (report,)))

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
