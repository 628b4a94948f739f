"""One track of a run: the attacked run, its clean twin or its control, round by round."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

from flwr.app import ConfigRecord
from torch import Tensor

from experiments.records.folder import RunRecords
from experiments.run.monitor import Monitor
from experiments.run.phases import accumulate_rounds, phase_of
from fl_sim.config.keys import Config
from fl_sim.config.resolve import to_flat, to_json
from fl_sim.data.federation import Federation
from fl_sim.data.sampling import malicious_clients, sample_clients
from fl_sim.grid.grid import ClientGrid, RoundOutcome
from fl_sim.grid.transports import Transport
from fl_sim.model.burn_in import StartModel
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from fl_sim.wire.arrays import to_record
from fl_sim.wire.messages import AttackState
from fl_sim.wire.object_state import State, UnsavableError
from strategies.catalogue import build_strategy
from strategies.dgc.thresholds import Calibration

TrackName = Literal["attacked", "twin", "control"]
Progress = Callable[[str, int, str, float | None], None]  # track, round, phase, accuracy in percent


@dataclass
class Track:
    """What a track measured.

    Accuracies in percent: `evaluated` by round, on `evaluate.examples`; the others on the whole test set. `trained`: seconds of
    each round without evaluation, of which `aggregated` the strategy's own.
    """

    name: TrackName
    evaluated: dict[int, float] = field(default_factory=dict[int, float])
    phases: dict[int, str] = field(default_factory=dict[int, str])
    ratios: list[float] = field(default_factory=list[float])
    start: float = 0.0  # before round 1, on the examples of `evaluated`
    fired: tuple[int, ...] = ()
    before_trigger: float | None = None
    after_trigger: float | None = None
    after_last_trigger: float | None = None
    final: float = 0.0
    alarms: tuple[int, ...] = ()
    rollbacks: int = 0
    refused: int = 0
    drifted: int = 0
    failures: int = 0
    retries: int = 0
    theta: Tensor | None = None
    seconds: float = 0.0
    trained: dict[int, float] = field(default_factory=dict[int, float])
    aggregated: dict[int, float] = field(default_factory=dict[int, float])

    @property
    def rounds(self) -> int:
        return len(self.phases)


class Position(NamedTuple):
    """Where a track stands after a round: what it measured, what the strategy remembers, what the coalition, the monitor, and the state
    to which it would roll back (None: to none)."""

    track: Track
    strategy: State | None
    attack: AttackState
    monitor: tuple[float, int]
    rollback: State | None


class Evaluator:
    """Accuracy (percent) and loss of a model theta (d,) on the test set, on a part of it, and on the server's probe set."""

    def __init__(self, config: Config, federation: Federation, start: StartModel) -> None:
        self.model, self._device = FlatModel(new_module(config, federation), start.buffers), federation.device
        self._test, self._probe = federation.test(), federation.probe()
        count = config.evaluate.examples
        self.partial = bool(count) and count < len(self._test.labels)
        self._part = federation.test(count) if self.partial else self._test
        self.start = self.part(start.theta)[0]

    def part(self, theta: Tensor) -> tuple[float, float]:
        return self.model.score(theta.to(self._device), *self._part)

    def whole(self, theta: Tensor) -> float:
        return self.model.score(theta.to(self._device), *self._test)[0]

    def probe(self, theta: Tensor) -> float:
        return self.model.score(theta.to(self._device), *self._probe)[0]


def client_grid(
    config: Config,
    transport: Transport,
    start: StartModel,
    orders: int,
    *,
    malicious: frozenset[int] = frozenset(),
    accumulate: bool = True,
) -> ClientGrid:
    """The grid of one track: the clients of a configuration over the workers."""
    return ClientGrid(
        transport,
        config=to_json({**to_flat(config), "output-dir": "", "cells": "", "device": start.theta.device.type}),
        num_clients=config.data.num_clients,
        block=config.client.block,
        buffers=start.buffers.cpu(),
        malicious=malicious,
        omniscient=config.attack.knowledge == "omniscient",
        accumulate=accumulate,
        orders=orders,
    )


def run_track(
    name: TrackName,
    config: Config,
    *,
    transport: Transport,
    orders: int,
    start: StartModel,
    evaluator: Evaluator,
    federation: Federation,
    records: RunRecords,
    progress: Progress,
    calibration: Calibration | None = None,
    length: int | None = None,
    reference: Track | None = None,
    position: Position | None = None,
    save: Callable[[Position], object] | None = None,
) -> Track:
    """Run a track to its end, or for `length` rounds; from a position, if one is given, as if it had never stopped.

    Every `checkpoint.every` rounds `save` is told where the track stands. A twin has no acting coalition; it takes the accuracies
    "at the trigger" in the rounds of its `reference`. A control's coalition does everything but accumulate.
    """
    began = time.perf_counter()
    malicious = malicious_clients(config) if name != "twin" else frozenset[int]()
    fresh = partial(
        build_strategy,
        config,
        start.theta.cpu(),
        lambda round_: sample_clients(config, round_),
        model=evaluator.model,
        federation=federation,
        calibration=calibration,
    )
    strategy = fresh()
    grid = client_grid(config, transport, start, orders, malicious=malicious, accumulate=name != "control")
    track, monitor = Track(name, start=evaluator.start), Monitor(config.monitor, evaluator.probe(start.theta))
    planned = None if malicious or reference else accumulate_rounds(config) + 1  # where a run without an attack is compared
    try:
        rollback = strategy.save() if config.monitor.action == "rollback" else None
    except UnsavableError as error:
        raise RuntimeError(f"monitor.action = 'rollback' cannot bring back {config.strategy.name}: {error}") from None
    proven = False  # whether a strategy made anew takes what this one saves
    if position:
        track, grid.attack_state, rollback = position.track, position.attack, position.rollback
        monitor.resume(position.monitor)
        assert position.strategy is not None
        strategy.load(position.strategy)
    began -= track.seconds
    arrays, round_ = to_record({"theta": strategy.theta}), track.rounds
    while True:
        round_ += 1
        phase = phase_of(config, round_, track.fired, attacked=bool(malicious))
        if (phase == "end" and length is None) or (length is not None and round_ > length):
            break
        clock = time.perf_counter()
        before = strategy.theta
        messages = strategy.configure_train(round_, arrays, ConfigRecord({"phase": phase}), grid)
        replies = grid.send_and_receive(messages)
        received = time.perf_counter()
        arrays, metrics = strategy.aggregate_train(round_, replies)
        assert arrays is not None
        assert metrics is not None
        trained = time.perf_counter()
        outcome = grid.outcome
        if not outcome.combined:
            reasons = sorted({report.failure for report in outcome.reports})
            raise RuntimeError(f"round {round_} of the {name} track: every client failed ({'; '.join(reasons)})")
        track.failures += sum(bool(report.failure) for report in outcome.reports)
        track.retries += len(outcome.retried)
        fired = bool(outcome.metrics.get("fired"))
        at_trigger = fired or round_ == (reference.fired[0] if reference and reference.fired else planned)
        line: dict[str, Any] = {"track": name, "round": round_, "phase": "trigger" if fired else phase}
        alarm = monitor.alarm(round_, evaluator.probe(strategy.theta) if monitor.watching else 100.0)
        if alarm:
            line["alarm"] = True
            track.alarms += (round_,)
        if alarm and rollback:
            strategy.load(rollback)
            monitor.forget()
            arrays, line["rolled-back"] = to_record({"theta": strategy.theta}), True
            track.rollbacks += 1
        elif rollback and not monitor.low:
            rollback = strategy.save()
        theta = strategy.theta
        line |= _evaluate(track, evaluator, config, round_, theta, before, fired, at_trigger, alarm)
        line |= _figures(outcome, dict(metrics))
        track.refused += bool(metrics.get("refused"))
        track.drifted += bool(metrics.get("drifted"))
        track.phases[round_] = line["phase"]
        track.ratios.append(outcome.poison_ratio)
        track.trained[round_], track.aggregated[round_] = trained - clock, trained - received
        seconds = {"train": trained - clock, "compute": outcome.seconds, "aggregate": trained - received}
        seconds["evaluate"] = time.perf_counter() - trained
        line["seconds"] = {name: round(value, 6) for name, value in seconds.items()} | {"waves": outcome.waves}
        records.round(line)
        progress(name, round_, line["phase"], track.evaluated.get(round_))
        if alarm and config.monitor.action == "stop":
            break
        if save and config.checkpoint.every and round_ % config.checkpoint.every == 0:
            track.seconds = time.perf_counter() - began
            try:
                state = strategy.save()
                if not proven:
                    fresh().load(state)
                    proven = True
                save(Position(track, state, grid.attack_state, monitor.state, rollback))
            except UnsavableError as error:  # a strategy of the user's may keep anything
                print(f"fl-sim: no checkpoint of {config.strategy.name}: {error}", flush=True)
    track.theta, track.final = strategy.theta, evaluator.whole(strategy.theta)
    track.seconds = time.perf_counter() - began
    return track


def _evaluate(
    track: Track,
    evaluator: Evaluator,
    config: Config,
    round_: int,
    theta: Tensor,
    before: Tensor,
    fired: bool,
    at_trigger: bool,
    alarm: bool,
) -> dict[str, Any]:
    """Evaluate the round's model where due, and after an alarm; around the trigger always, on the whole test set."""
    line: dict[str, Any] = {}
    if round_ % config.evaluate.every == 0 or at_trigger or alarm:
        accuracy, loss = evaluator.part(theta)
        track.evaluated[round_] = accuracy
        line |= {"accuracy": accuracy, "loss": loss}
    if fired:
        track.fired += (round_,)
    if at_trigger:
        after = evaluator.whole(theta) if evaluator.partial else track.evaluated[round_]
        track.after_last_trigger = after
        if track.after_trigger is None:
            track.before_trigger, track.after_trigger = evaluator.whole(before), after
    return line


def _figures(outcome: RoundOutcome, metrics: dict[str, Any]) -> dict[str, Any]:
    """What the rule, the attack and the grid report of a round."""
    line: dict[str, Any] = {"poison_ratio": outcome.poison_ratio, "clients": len(outcome.combined), "strategy": metrics}
    line["honest-norm"] = outcome.honest_norm
    if outcome.metrics:
        line["attack"] = dict(outcome.metrics)
    failures = {str(report.client): report.failure for report in outcome.reports if report.failure}
    if failures:
        line["failures"] = failures
    if outcome.retried:
        line["retried"] = dict(outcome.retried)
    return line
