"""The messages between the grid and a worker: orders and replies, as plain records of numbers and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fl_sim.training.clipping import Clip
from fl_sim.wire.reduction import Node

Blocks = tuple[tuple[int, tuple[int, ...]], ...]  # (position in the round, client ids), in order


@dataclass(frozen=True)
class AttackState:
    """What an attack remembers from round to round. Only the attack itself looks into it."""

    arrays: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    scalars: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class PublicRule:
    """What a strategy publishes about itself, for a coalition that knows the rule.

    name: `strategy.name`; before, after: this round's clips of each update and of the combined update; combine: `module:function` that
    makes the combination from the run's configuration (empty: the weighted mean; None: unknown); step_size: how far the model moves for
    a combined update of length 1, without momentum (known to every coalition); weighted: whether the weights of clients count.
    """

    name: str = ""
    before: Clip | None = None
    after: Clip | None = None
    combine: str | None = ""
    step_size: float = 1.0
    weighted: bool = True


@dataclass(frozen=True)
class CoalitionOrder:
    """The coalition's part of a round: its sampled members, its phase, and what it may know."""

    members: tuple[int, ...]
    phase: str
    accumulate: bool
    num_sampled: int
    state: AttackState
    rule: PublicRule = PublicRule()
    honest_sum: Tensor | None = None  # (d,) in a second wave: the honest clients' weighted sum, as the server will combine it
    honest_weight: float = 0.0
    honest_updates: Tensor | None = None  # (h, d) every single honest update, with `attack.knowledge = "updates"`
    update_weights: tuple[float, ...] = ()  # their weights
    honest_trigger: bool = False  # in place of a trigger the members send what they would honestly send
    witness: Blocks = ()  # in a single wave: every honest block, which the worker recomputes from the shared seeds


@dataclass(frozen=True)
class Order:
    """One message to one worker: the model theta (d,), batch-norm buffers (s,), and blocks of clients to compute.

    weighted: whether updates have the weights of `client.weight`, or all the weight 1, because the server's rule ignores weights. data: the
    fingerprint of the server's data set, which the worker's must have (empty: not checked). cleaning: the same for what the cleaning was
    fitted to.
    """

    theta: Tensor
    buffers: Tensor
    config: str
    round: int
    num_blocks: int
    blocks: Blocks
    stacked: bool = False
    before: Clip | None = None
    attempt: int = 0
    coalition: CoalitionOrder | None = None
    weighted: bool = True
    data: str = ""
    cleaning: str = ""

    def on(self, device: torch.device) -> Order:
        """The same order with its tensors on a device; the buffers stay, because a worker puts them into a model once."""
        part = self.coalition
        if part:
            honest_sum = None if part.honest_sum is None else part.honest_sum.to(device)
            part = replace(part, honest_sum=honest_sum, state=_state_on(part.state, device))
        return replace(self, theta=self.theta.to(device), coalition=part)


NOTHING_LEFT = "the cleaning dropped all of its images"  # the failure of a client that sends no update for that reason


class CleaningCounts(NamedTuple):
    """What a cleaning did to images: how many it got, changed and dropped; the sum over the images of their largest change of a pixel, in
    pixels of [0, 1]; how many have a score in each bin (empty if it has no scores); and the seconds that it took."""

    images: int = 0
    changed: int = 0
    dropped: int = 0
    shift: float = 0.0
    bins: tuple[int, ...] = ()
    seconds: float = 0.0

    def plus(self, other: CleaningCounts) -> CleaningCounts:
        """The counts of both."""
        longest = max(len(self.bins), len(other.bins))
        mine, theirs = ((*counts.bins, *(0,) * (longest - len(counts.bins))) for counts in (self, other))
        bins = tuple(a + b for a, b in zip(mine, theirs, strict=True))
        sums = [a + b for a, b in zip((*self[:4], self.seconds), (*other[:4], other.seconds), strict=True)]
        return CleaningCounts(int(sums[0]), int(sums[1]), int(sums[2]), sums[3], bins, sums[4])


class ClientReport(NamedTuple):
    """One client's result: weight and norm of its update; `failure` is empty if the update is in the sum or stack."""

    client: int
    weight: float
    norm: float
    failure: str = ""


@dataclass(frozen=True)
class CoalitionReply:
    """The coalition's updates, combined (1, d) or stacked (m, d), its new state, and figures for the records.

    reason: why the attack did not act in this round, empty if it did or says nothing. error: what it raised, with the traceback, if
    `attack.on-error = "stop"`: the run must end. clean, poisoned: what the cleaning did to the members' own images and to the attacker's.
    """

    updates: Tensor
    reports: tuple[ClientReport, ...]
    state: AttackState
    metrics: Mapping[str, float]
    reason: str = ""
    error: str = ""
    clean: CleaningCounts | None = None
    poisoned: CleaningCounts | None = None


@dataclass(frozen=True)
class Reply:
    """A worker's answer. nodes: partial sums of the reduction tree; rows: stacked updates by block position; reports: by block position;
    retry: blocks that another worker should try, with the reason; seconds: of the worker's computation, without the transport; cleaning:
    what the cleaning did, by block position."""

    nodes: Mapping[Node, Tensor]
    rows: Mapping[int, Tensor]
    reports: Mapping[int, tuple[ClientReport, ...]]
    retry: Mapping[int, str]
    coalition: CoalitionReply | None = None
    seconds: float = 0.0
    cleaning: Mapping[int, CleaningCounts] = field(default_factory=dict[int, CleaningCounts])

    def on(self, device: torch.device) -> Reply:
        """The same reply with its tensors on a device, without a graph behind them."""
        part = self.coalition
        if part:
            part = replace(part, updates=part.updates.detach().to(device), state=_state_on(part.state, device))
        nodes, rows = ({key: value.detach().to(device) for key, value in tensors.items()} for tensors in (self.nodes, self.rows))
        return replace(self, nodes=nodes, rows=rows, coalition=part)


def rows_sum(rows: Tensor, reports: tuple[ClientReport, ...]) -> Tensor:
    """The weighted sum (d,) of a block's rows (k, d). Rows are in the order of the reports without failure."""
    return torch.tensor([report.weight for report in reports if not report.failure], device=rows.device) @ rows


def _state_on(state: AttackState, device: torch.device) -> AttackState:
    return AttackState({name: value.detach().to(device) for name, value in state.arrays.items()}, state.scalars)
