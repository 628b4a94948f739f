"""One track of a run, round by round: the attacked run, its clean twin or its control."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clients.cleaning.fitted import Fitted
from experiments.records.cleaning import cleaning_figures
from experiments.run.attack_success import ACTING
from experiments.run.evaluator import Evaluator, Score
from experiments.run.filtering import filter_rates
from experiments.run.history import Line, TrackHistory, TrackName
from experiments.run.monitor import Monitor
from experiments.run.phases import accumulate_rounds, given_up, phase_of
from fl_sim.config.keys import Config
from fl_sim.data.federation import Federation
from fl_sim.data.sampling import malicious_clients, sample_clients
from fl_sim.grid.grid import ClientGrid, RoundOutcome, RoundResult, play_round
from fl_sim.grid.server_strategy import ServerStrategy
from fl_sim.grid.transports import Transport
from fl_sim.model.burn_in import StartModel
from fl_sim.outside_code import OutsideCodeError
from fl_sim.wire.messages import AttackState
from fl_sim.wire.object_state import State, UnsavableError
from strategies.catalogue import build_strategy
from strategies.dgc.thresholds import Calibration
from strategies.dgc2.levels import Levels

ALIKE = 0.99  # of the test examples of which a model says the same class, if it has learnt nothing


@dataclass(frozen=True)
class RunInputs:
    """What the tracks of a run share. max_messages: the most orders per wave (0: one per worker); seconds: of the burn-in and of the
    calibration; cleaning: what it was fitted to."""

    config: Config
    transport: Transport
    federation: Federation
    start: StartModel
    evaluator: Evaluator
    calibration: Calibration | Levels | None
    max_messages: int
    seconds: dict[str, float]
    cleaning: Fitted = field(default_factory=lambda: Fitted({}))

    def new_strategy(self) -> ServerStrategy:
        """The strategy at the start of a track."""
        return build_strategy(
            self.config,
            self.start.theta.cpu(),
            lambda round_: sample_clients(self.config, round_),
            model=self.evaluator.model,
            federation=self.federation,
            calibration=self.calibration,
        )


class Position(NamedTuple):
    """The state of a track after a round: of the strategy, of the attack, of the monitor, and the strategy's state for a rollback (None if
    the monitor does not roll back)."""

    track: TrackName
    round: int
    strategy: State | None
    attack: AttackState
    monitor: tuple[Any, ...]  # `MonitorState`
    rollback: State | None


class TrackRun:
    """Plays a track.

    In a twin the coalition is honest. A twin has as many rounds as its `reference`, the attacked track, and measures the accuracies "at the
    trigger" in the same round. In a control the coalition does everything except accumulate; in the
    honest-trigger track everything except send the trigger, which still counts as fired. With a `position`, and the `earlier` lines up
    to it, the track continues as if it had not been interrupted.
    """

    def __init__(
        self,
        inputs: RunInputs,
        name: TrackName,
        reference: TrackHistory | None = None,
        position: Position | None = None,
        earlier: TrackHistory | None = None,
    ) -> None:
        config, self._inputs, self._reference = inputs.config, inputs, reference
        self.name: TrackName = name
        self._malicious = malicious_clients(config) if name != "twin" else frozenset[int]()
        self._strategy = inputs.new_strategy()
        self._grid = ClientGrid(
            inputs.transport,
            config,
            inputs.start.buffers,
            malicious=self._malicious,
            accumulate=name != "control",
            max_messages=inputs.max_messages,
        )
        self._grid.cleaning = inputs.cleaning.digest
        self._grid.honest_trigger = name == "honest-trigger"
        self._monitor = Monitor(config.monitor, *self._probe(inputs.start.theta))
        self._by_class = config.evaluate.by_class
        self._round, self._fired, self._spent = (earlier.rounds, earlier.fired, earlier.spent) if earlier else (0, (), ())
        self._load_checked = False  # whether it was checked that a new strategy can load the saved state of this one
        try:
            self._rollback = self._strategy.save() if config.monitor.action == "rollback" else None
        except UnsavableError as error:
            raise RuntimeError(f"monitor.action = 'rollback' cannot bring back {config.strategy.name}: {error}") from None
        if position:
            self._grid.attack_state, self._rollback = position.attack, position.rollback
            self._monitor.resume(position.monitor)
            assert position.strategy is not None
            self._strategy.load(position.strategy)

    @property
    def theta(self) -> Tensor:
        """The global model (d,) now."""
        return self._strategy.theta

    def position(self) -> Position:
        """The state of the track. Raises UnsavableError."""
        state = self._strategy.save()
        if not self._load_checked:
            self._inputs.new_strategy().load(state)
            self._load_checked = True
        return Position(self.name, self._round, state, self._grid.attack_state, tuple(self._monitor.state), self._rollback)

    def play(self) -> Iterator[Line]:
        """Play the rounds; yields the line of each."""
        last = self._reference is not None and self._round >= self._reference.rounds
        while not last:
            phase = self._phase(self._round + 1)
            if phase == "end":
                return
            line, last = self._one_round(phase)
            yield line

    def _phase(self, round_: int) -> str:
        """The phase of a round; "end" after the last."""
        if self._reference and round_ > self._reference.rounds:
            return "end"
        phase = phase_of(self._inputs.config, round_, self._spent, attacked=bool(self._malicious))
        return "recover" if self._reference and phase == "end" else phase

    def _one_round(self, phase: str) -> tuple[Line, bool]:
        """Play the next round. Returns its line, and whether it is the last."""
        self._round += 1
        before = self._strategy.theta
        try:
            result = play_round(self._strategy, self._grid, self._round, phase)
        except OutsideCodeError as error:
            raise OutsideCodeError(f"round {self._round} of the {self.name} track: {error}") from error
        except RuntimeError as error:
            raise RuntimeError(f"round {self._round} of the {self.name} track: {error}") from error
        stayed = _why_it_stayed(result) if torch.equal(before, self._strategy.theta) else ""
        clock = time.perf_counter()
        fired = bool(result.outcome.metrics.get("fired"))
        missed = "" if fired or phase != "trigger" else self._missed_trigger(result.outcome)
        self._fired += (self._round,) if fired else ()
        self._spent += (self._round,) if fired or missed else ()
        theta = self._inputs.evaluator.on_device(self._strategy.theta)
        alarm, rolled_back = self._watch(theta)
        if rolled_back:
            theta = self._inputs.evaluator.on_device(self._strategy.theta)
        last = (alarm and self._inputs.config.monitor.action == "stop") or self._phase(self._round + 1) == "end"
        line: dict[str, Any] = {"track": self.name, "round": self._round, "phase": "trigger" if fired else phase}
        if self._round == 1:
            line["start"] = self._start()
        if missed:
            line["missed_trigger"] = missed
        if alarm:
            line["alarm"] = True
            line |= {"alarm_class": self._monitor.alarm_class} if self._monitor.alarm_class is not None else {}
        if rolled_back:
            line["rolled_back"] = True
        ends = phase in ACTING and self._phase(self._round + 1) not in ACTING  # the coalition's acting
        line |= self._accuracies(theta, before, fired=fired, alarm=alarm, last=last, ends=ends)
        line |= _figures(result.outcome, result.metrics)
        if skipped := result.skipped or stayed:
            line["skipped"] = skipped
        if result.left_out is not None:
            line["left_out"] = list(result.left_out)
            if result.outcome.metrics.get("acted"):
                line["filtering"] = filter_rates(result.left_out, result.outcome.combined, self._malicious)
        if result.outcome.cleaning:
            line["cleaning"] = cleaning_figures(self._round, self._inputs.cleaning.tensors, *result.outcome.cleaning)
        before_round_1 = self._inputs.seconds if self._round == 1 and self.name == "attacked" else {}
        line["seconds"] = before_round_1 | _seconds(result, time.perf_counter() - clock)
        return line, last

    def _missed_trigger(self, outcome: RoundOutcome) -> str:
        """Why the trigger that was due in this round is given up; empty if it waits for a malicious client to be sampled."""
        members = [report for report in outcome.reports if report.client in self._malicious]
        if not members:
            return given_up(self._inputs.config, self._round, self._spent, self._malicious)
        if all(report.failure for report in members):
            return "every malicious client failed: " + "; ".join(sorted({report.failure for report in members}))
        return outcome.idle or "the attack did not fire"

    def _watch(self, theta: Tensor) -> tuple[bool, bool]:
        """Let the monitor check the model theta (d,). Returns whether there is an alarm, and whether the model was rolled back."""
        monitor = self._monitor
        alarm = monitor.active and monitor.alarm(self._round, *self._probe(theta))
        if alarm and self._rollback:
            self._strategy.load(self._rollback)
            monitor.forget()
            return True, True
        if self._rollback and not monitor.low:
            self._rollback = self._strategy.save()
        return alarm, False

    def _probe(self, theta: Tensor) -> tuple[float, Sequence[float | None]]:
        """The accuracy on the probe, and with `monitor.class-drop` that of each class."""
        score = self._inputs.evaluator.probe(theta)
        return score.accuracy, score.by_class if self._inputs.config.monitor.class_drop else ()

    def _start(self) -> dict[str, Any]:
        """The accuracies before round 1."""
        evaluator, theta = self._inputs.evaluator, self._inputs.start.theta
        part, whole = evaluator.part(theta), evaluator.whole(theta)
        said = whole.confusion.sum(dim=0)
        if self._inputs.config.schedule.burn_in_epochs and int(said.max()) >= ALIKE * int(said.sum()):
            print(
                f"fl-sim: seed {self._inputs.config.seed}: after the burn-in the model says class {int(said.argmax())} of every example "
                f"({whole.accuracy:.1f} % are right): it has learnt nothing (schedule.burn-in-learning-rate, schedule.burn-in-epochs)",
                flush=True,
            )
        by_class = {"by_class": part.by_class, "whole_confusion": whole.confusion.tolist()} if self._by_class else {}
        success = evaluator.success.part(evaluator.model, theta) | evaluator.success.whole(evaluator.model, theta)
        return {"accuracy": part.accuracy, "whole_accuracy": whole.accuracy, **by_class, **success}

    def _accuracies(self, theta: Tensor, before: Tensor, *, fired: bool, alarm: bool, last: bool, ends: bool) -> dict[str, Any]:
        """The accuracies of a round that made theta (d,) from `before`: on `evaluate.examples` if due, after an alarm and around the
        trigger; on the whole test set around the trigger, where the acting `ends` and at the end. The attack success rate with the first,
        and on the whole test set where the acting ends and at the end."""
        evaluator, line, part = self._inputs.evaluator, dict[str, Any](), None
        is_compared = fired or self._round == self._compared_round()
        if self._round % self._inputs.config.evaluate.every == 0 or is_compared or alarm:
            part = evaluator.part(theta)
            line |= {"accuracy": part.accuracy, "loss": part.loss} | ({"by_class": part.by_class} if self._by_class else {})
            line |= evaluator.success.part(evaluator.model, theta)
        if last or ends:
            line |= evaluator.success.whole(evaluator.model, theta)
        ends = ends and bool(self._malicious)
        if is_compared or last or ends:
            whole = part if part and not evaluator.partial else evaluator.whole(theta)
            if is_compared and (self._fired in ((), (self._round,))):
                line |= self._whole("before_trigger", evaluator.whole(before))
            line |= self._whole("after_trigger", whole) if is_compared else {}
            line |= self._whole("end_of_attack", whole) if ends else {}
            line |= self._whole("whole_accuracy", whole) if last else {}
        if last:
            line |= evaluator.smoothed(theta)
        return line

    def _whole(self, name: str, score: Score) -> dict[str, Any]:
        """An accuracy on the whole test set, with its confusion matrix: `after_trigger`, `after_trigger_confusion`."""
        place = name.removesuffix("_accuracy") + "_confusion"
        return {name: score.accuracy} | ({place: score.confusion.tolist()} if self._by_class else {})

    def _compared_round(self) -> int | None:
        """The round whose accuracies are compared with another track's trigger round; without an attack, the round after the phase."""
        if self._reference and self._reference.fired:
            return self._reference.fired[0]
        return None if self._malicious or self._reference else accumulate_rounds(self._inputs.config) + 1


def _why_it_stayed(result: RoundResult) -> str:
    """Why a strategy left the model exactly as it was; empty for a refusal of DGC, which is counted as one."""
    if result.metrics.get("refused"):
        return ""
    if not result.metrics.get("applied_norm"):
        return "the combined update is zero"
    return "the server's step is too short to change a float32 weight"


def _figures(outcome: RoundOutcome, metrics: dict[str, float]) -> dict[str, Any]:
    """The figures of the rule, the attack and the grid in a round."""
    line: dict[str, Any] = {"poison_ratio": outcome.poison_ratio, "clients": len(outcome.combined), "strategy": metrics}
    line["honest_norm"] = outcome.honest_norm
    if outcome.metrics:
        line["attack"] = dict(outcome.metrics)
    if outcome.idle:
        line["idle"] = outcome.idle
    failures = {str(report.client): report.failure for report in outcome.reports if report.failure}
    if failures:
        line["failures"] = failures
    if outcome.retried:
        line["retried"] = dict(outcome.retried)
    return line


def _seconds(result: RoundResult, evaluation: float) -> dict[str, float]:
    """The seconds of a round without evaluation, and in them those of the slowest worker and of the strategy's aggregation; the seconds of
    the evaluation; and the number of waves."""
    seconds = {"train": result.seconds, "compute": result.outcome.seconds, "aggregate": result.aggregation, "evaluate": evaluation}
    if result.outcome.cleaning:
        seconds["cleaning"] = sum(counts.seconds for counts in result.outcome.cleaning)
    return {name: round(value, 6) for name, value in seconds.items()} | {"waves": result.outcome.waves}
