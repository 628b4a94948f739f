"""Injected faults (`fault.*`): clients that raise or return NaN, and a worker that dies in mid-round."""

from __future__ import annotations

import os

from fl_sim.config import Fault
from fl_sim.config_checks import client_ids


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
    """End this process if it is the worker of block 0 in the round of `fault.kill-round`, at the first attempt."""
    if fault.kill_round and fault.kill_round == round_ and attempt == 0 and 0 in positions:
        os._exit(1)
