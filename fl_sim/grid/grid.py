"""The ClientGrid: Flower's Grid over virtual clients. It packs a round's messages into one order per worker."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, cast

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fl_sim.config.keys import Config
from fl_sim.config.resolve import to_flat, to_json
from fl_sim.data.federation import data_fingerprint
from fl_sim.device import device_of
from fl_sim.grid.merging import MergedRound, Result
from fl_sim.grid.reply_checks import reply_problem
from fl_sim.grid.server_strategy import ServerStrategy
from fl_sim.grid.transports import Answer, Transport
from fl_sim.outside_code import OutsideCodeError
from fl_sim.training.clipping import Clip
from fl_sim.wire.arrays import from_record, to_record
from fl_sim.wire.messages import (
    NOTHING_LEFT,
    AttackState,
    Blocks,
    CleaningCounts,
    ClientReport,
    CoalitionOrder,
    CoalitionReply,
    Order,
    PublicRule,
    Reply,
)

RESTING = ("", "pause", "recover")  # phases in which the malicious clients behave honestly and travel as honest clients


@dataclass(frozen=True)
class RoundOutcome:
    """What the grid knows of a round: the reports of all sampled clients in id order, the malicious clients, the attack's figures, the norm
    of the honest clients' mean, the waves, what was retried, the seconds of the slowest worker, and why the attack did not act (empty if it
    did)."""

    reports: tuple[ClientReport, ...] = ()
    malicious: frozenset[int] = frozenset()
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    honest_norm: float = 0.0
    waves: int = 0
    retried: Mapping[str, str] = field(default_factory=dict[str, str])
    seconds: float = 0.0
    idle: str = ""
    cleaning: tuple[CleaningCounts, CleaningCounts] | None = None  # of the clients' own images, and of the attacker's

    @cached_property
    def combined(self) -> tuple[int, ...]:
        """The clients whose updates are in the result."""
        return tuple(report.client for report in self.reports if not report.failure)

    @cached_property
    def poison_ratio(self) -> float:
        """The realised share of malicious clients among the updates combined."""
        return sum(client in self.malicious for client in self.combined) / max(len(self.combined), 1)


class ClientGrid(Grid):
    """The workers, as the clients of one track.

    A strategy sends one packed message: "arrays" with the model `theta`, and "config" with `clients` (the sampled ids), `round`, `phase`,
    `stacked`, `clip-norm`, `clip-bound`. It gets one packed reply: the weighted sum of the updates, or their stack, with every client's
    report.

    Args: buffers (s,), batch-norm statistics; malicious, the coalition's ids; accumulate, false in a control; max_messages, the most
    orders per wave (0: one per worker); waves, 1 or 2 for a round of an omniscient coalition (0: whichever is faster with the transport).
    """

    def __init__(
        self,
        transport: Transport,
        config: Config,
        buffers: Tensor,
        *,
        malicious: frozenset[int] = frozenset(),
        accumulate: bool = True,
        max_messages: int = 0,
        waves: int = 0,
    ) -> None:
        self._transport, self._config, self._buffers, self._malicious = transport, config, buffers.cpu(), malicious
        self._json = to_json({**to_flat(config), "output-dir": "", "cells": "", "search": "", "device": device_of(config).type})
        self.cleaning = ""  # digest of what the cleaning was fitted to; empty: not checked
        self.honest_trigger = False  # whether the members are honest in the round of a trigger
        self._accumulate, self._max_messages, self._waves = accumulate, max_messages or transport.num_workers, waves
        self._data = data_fingerprint(config)
        self.attack_state = AttackState()

    def play(self, messages: Iterable[Message], rule: PublicRule) -> tuple[list[Message], RoundOutcome]:
        """The replies to a strategy's messages, and the outcome of the round. `rule`: what the strategy publishes about itself."""
        messages = list(messages)
        if not messages:
            return [], RoundOutcome()
        (message,) = messages
        content, outcome = self._round(self._order(message.content, rule))
        return [Message(content, reply_to=message)], outcome

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.play(messages, PublicRule())[0]

    def _order(self, content: RecordDict, rule: PublicRule) -> Order:
        """The whole round as one order: honest blocks, and the coalition's part if the phase lets it act."""
        settings = content.config_records["config"]
        phase, clients = cast(str, settings["phase"]), sorted(cast(list[int], settings["clients"]))
        members = [] if phase in RESTING else [client for client in clients if client in self._malicious]
        blocks = self._blocks(clients, frozenset(members))
        norm = cast(Any, settings["clip-norm"])
        order = Order(
            theta=from_record(content.array_records["arrays"])["theta"],
            buffers=self._buffers,
            config=self._json,
            round=cast(int, settings["round"]),
            num_blocks=len(blocks),
            blocks=blocks,
            stacked=cast(bool, settings["stacked"]),
            before=Clip(norm, cast(float, settings["clip-bound"])) if norm else None,
            weighted=rule.weighted,
            data=self._data,
            cleaning=self.cleaning,
        )
        if not members:
            return order
        part = CoalitionOrder(tuple(members), phase, self._accumulate, len(clients), self.attack_state, rule)
        return replace(order, coalition=replace(part, honest_trigger=self.honest_trigger))

    def _blocks(self, clients: list[int], apart: frozenset[int]) -> Blocks:
        """The clients, without those `apart`, in blocks: fixed ranges of `client.block` consecutive ids. In a resampled population: of
        consecutive places among the clients of the round."""
        by_place, size = self._config.data.partition == "resampled", self._config.client.block
        blocks: dict[int, list[int]] = {}
        for place, client in enumerate(clients):
            if client not in apart:
                blocks.setdefault((place if by_place else client) // size, []).append(client)
        return tuple((position, tuple(blocks[key])) for position, key in enumerate(sorted(blocks)))

    def _round(self, order: Order) -> tuple[RecordDict, RoundOutcome]:
        """Run the waves of a round and pack the replies."""
        coalition, honest_only = order.coalition, replace(order, coalition=None)
        sees_honest = self._config.attack.knowledge in ("omniscient", "updates")
        one_wave = coalition is None or not sees_honest or self._one_wave()
        parts = self._split(honest_only)
        if coalition and one_wave:
            parts[-1] = replace(parts[-1], coalition=replace(coalition, witness=order.blocks if sees_honest else ()))
        merged = MergedRound(order, self._exchange(parts))
        if coalition and not one_wave:
            merged.add(self._exchange([self._second_wave(order, merged)]))
        if merged.coalition:
            self._raise_attack_error(merged.coalition)
            self.attack_state = merged.coalition.state
        outcome = RoundOutcome(
            reports=merged.reports(),
            malicious=self._malicious,
            metrics=dict(merged.coalition.metrics) if merged.coalition else {},
            honest_norm=merged.honest_norm(),
            waves=1 if one_wave else 2,
            retried=merged.retried,
            seconds=merged.seconds,
            idle=merged.coalition.reason if merged.coalition else "",
            cleaning=merged.cleaning() if self._config.cleaning.name != "none" else None,
        )
        return merged.content(), outcome

    def _raise_attack_error(self, coalition: CoalitionReply) -> None:
        if coalition.error:
            raise OutsideCodeError(f"the attack raised (attack.on-error = 'stop'): {coalition.error}")

    def _one_wave(self) -> bool:
        """Whether a coalition that sees the honest updates gets them in a single wave: if one worker has them all anyway, or if a wave
        takes longer than computing them again. Single updates never travel: the coalition's worker computes them again."""
        if self._config.attack.knowledge == "updates":
            return True
        if self._waves:
            return self._waves == 1
        return min(self._max_messages, self._transport.num_workers) == 1 or self._transport.slow_waves

    def _split(self, order: Order) -> list[Order]:
        """The order in contiguous ranges of its blocks, one per worker; at least one."""
        count = max(1, min(self._max_messages, self._transport.num_workers, len(order.blocks)))
        bounds = [len(order.blocks) * i // count for i in range(count + 1)]
        return [replace(order, blocks=order.blocks[bounds[i] : bounds[i + 1]]) for i in range(count)]

    def _second_wave(self, order: Order, merged: MergedRound) -> Order:
        """The coalition's order with the honest sum in it."""
        assert order.coalition
        total, weight = merged.honest()
        return replace(order, blocks=(), coalition=replace(order.coalition, honest_sum=total, honest_weight=weight))

    def _exchange(self, parts: Sequence[Order]) -> list[Result]:
        """Send orders. If an order fails, or a block because of a client, it is tried once more on another worker: each block and the
        coalition in an order of its own, so that a second failure affects nothing else.

        Raises OutsideCodeError if a worker dies of the coalition's own order too and `attack.on-error = "stop"`.
        """
        results: list[Result] = []
        retries: list[tuple[Order, int | None]] = []
        for part, answer in zip(parts, self._send(parts), strict=True):
            reply, failure = self._usable_reply(part, answer)
            if reply is None:
                whose = ", ".join(
                    [f"{clients[0]} to {clients[-1]}" for _, clients in part.blocks] + ["the coalition"] * bool(part.coalition)
                )
                results.append((replace(part, blocks=(), coalition=None), None, f"{failure}; asked elsewhere: clients {whose}"))
            else:
                results.append((part, reply, ""))
            blocks = [block for block in part.blocks if reply is None or block[0] in reply.retry]
            retries += [(replace(part, blocks=(block,), coalition=None, attempt=1), answer.worker) for block in blocks]
            if reply is None and part.coalition:
                retries.append((replace(part, blocks=(), attempt=1), answer.worker))
        for part, worker in retries:
            answer = self._send([part], avoid=worker)[0]
            reply, failure = self._usable_reply(part, answer)
            if part.coalition and answer.reply is None and answer.worker is None and self._config.attack.on_error == "stop":
                raise OutsideCodeError(
                    f"two workers died while they ran attack.name = {self._config.attack.name!r} (attack.on-error = 'stop'; {failure})"
                )
            results.append((part, reply, failure))
        return results

    def _send(self, parts: Sequence[Order], avoid: int | None = None) -> list[Answer]:
        return self._transport.exchange(parts, avoid=avoid, timeout=self._config.client.timeout or None)

    def _usable_reply(self, order: Order, answer: Answer) -> tuple[Reply | None, str]:
        """The reply of an answer, or None and the reason why there is none that can be used."""
        if answer.reply is None:
            return None, answer.failure
        try:
            problem = reply_problem(order, answer.reply, self._largest_weight())
        except Exception as error:  # a reply may hold anything
            return None, f"the reply cannot be read ({type(error).__name__}: {error})"
        return (None, problem) if problem else (answer.reply, "")

    def _largest_weight(self) -> float:
        client = self._config.client
        return {"batch": float(client.batch_size * client.local_steps), "equal": 1.0}.get(client.weight, float("inf"))

    # The rest of Flower's Grid.

    def get_node_ids(self) -> list[int]:
        """Node ids of the virtual clients: client i is node i + 1 (node 0 is reserved in Flower)."""
        return list(range(1, self._config.data.num_clients + 1))

    def set_run(self, run: Any) -> None:
        raise RuntimeError("a ClientGrid has no Flower run of its own; use the grid that Flower gave to the ServerApp")

    @property
    def run(self) -> Any:
        raise RuntimeError("a ClientGrid has no Flower run of its own; use the grid that Flower gave to the ServerApp")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise RuntimeError("Grid.create_message is deprecated in Flower; use flwr.app.Message")

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        raise RuntimeError("a ClientGrid packs whole rounds; use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise RuntimeError("a ClientGrid packs whole rounds; use send_and_receive")


class RoundResult(NamedTuple):
    """The result of one round: the strategy's figures, the grid's outcome, the seconds of the round, and those of the aggregation in it;
    and why the strategy left the model as it was (empty if it did not)."""

    metrics: dict[str, float]
    outcome: RoundOutcome
    seconds: float
    aggregation: float
    skipped: str = ""
    left_out: tuple[int, ...] | None = None  # the clients that the strategy left out, if it is one that selects


def play_round(strategy: ServerStrategy, grid: ClientGrid, round_: int, phase: str) -> RoundResult:
    """Play a round: the strategy configures it, the clients answer, and the strategy aggregates their replies into the next model. A round
    in which the strategy asks no client is skipped.

    Raises RuntimeError if every client failed.
    """
    start = time.perf_counter()
    messages = list(strategy.configure_train(round_, to_record({"theta": strategy.theta}), ConfigRecord({"phase": phase}), grid))
    replies, outcome = grid.play(messages, strategy.public_rule())
    reply_time = time.perf_counter()
    _, metrics = strategy.aggregate_train(round_, replies) if messages else (None, None)
    end = time.perf_counter()
    if messages and not outcome.combined and any(report.failure != NOTHING_LEFT for report in outcome.reports):
        reasons = sorted({report.failure for report in outcome.reports})
        raise RuntimeError(f"every client failed ({'; '.join(reasons)})")
    figures = {name: float(value) for name, value in (metrics or {}).items() if isinstance(value, (int, float))}
    return RoundResult(figures, outcome, end - start, end - reply_time, strategy.skipped, strategy.left_out)
