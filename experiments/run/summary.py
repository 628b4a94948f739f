"""The summary of a run: a pure function of its configuration and its lines."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from experiments.records.cleaning import cleaning_summary
from experiments.records.identity import run_hash
from experiments.run.attack_success import WHOLE, rates_of
from experiments.run.filtering import mean_rates
from experiments.run.history import Line, TrackHistory, accuracy_by_class, history_of
from fl_sim.config.keys import Config
from fl_sim.data.sampling import malicious_clients
from strategies.catalogue import options_of, told_by_key
from strategies.guarantees import assumed_malicious, tolerated


class Part(BaseModel):
    """A part of a summary. Unknown keys, of later versions, are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Accuracy(Part):
    """Percent, on the whole test set."""

    burn_in: float
    before_trigger: float | None
    after_trigger: float | None
    end_of_attack: float | None = None
    final: float


class AccuracyByClass(Part):
    """Percent of each class, on the whole test set; None for a class without a test example."""

    burn_in: list[float | None]
    before_trigger: list[float | None] | None
    after_trigger: list[float | None] | None
    end_of_attack: list[float | None] | None = None
    final: list[float | None]


class OneClass(Part):
    """A class (0 to c - 1) and its accuracy, percent, before round 1 and at the end."""

    burn_in: float
    final: float
    class_: int = Field(alias="class")

    model_config = ConfigDict(extra="allow", frozen=True, serialize_by_alias=True)


class SuccessRate(Part):
    """Attack success rates, percent, on the whole test set: before round 1, after the last round in which the coalition may have acted, at
    the end."""

    burn_in: float
    end_of_attack: float | None
    final: float


class CleaningShares(Part):
    flagged: float | None
    poisoned_flagged: float | None
    auroc_accumulate: float | None
    auroc_trigger: float | None
    auroc_control: float | None = None


class Filtering(Part):
    """Shares from 0 to 1, means over the rounds in which the coalition acted: of the malicious clients that the strategy left out (also
    called recall), of the honest ones that it left out, and of malicious ones among those left out."""

    true_positive_rate: float | None
    false_positive_rate: float | None
    precision: float | None
    recall: float | None


class Smoothed(Part):
    """CRFL's smoothed test of the last model, percent of `evaluate.examples` test images: most noisy copies name the label; also their lead
    is too large to be chance; and of triggered images, most copies name the target class."""

    accuracy: float
    certain: float
    attack_success_rate: float | None = None


class CleanTwin(Part):
    """Percent; the attack success rate is that of a model that nobody attacked, at its end."""

    final: float
    at_trigger: float | None
    attack_success_rate: float | None = None


class Control(Part):
    """Percent, and the round in which the control fired."""

    before_trigger: float | None
    after_trigger: float | None
    trigger_round: int | None


class HonestTrigger(Part):
    """Percent around the round in which the trigger was due; an honest batch took its place."""

    before_trigger: float | None
    after_trigger: float | None


class MonitorSummary(Part):
    """The rounds of the first alarm and of the first damage (accuracy `monitor.drop` points below its best), and the number of rollbacks.

    first_alarm_class: the class whose accuracy raised the first alarm; None if the accuracy on the whole probe did.

    in_time: true if the alarm came before the damage, or if rollbacks prevented any damage; false if it came in the same round or later;
    None without an alarm, or if there was neither damage nor a rollback.
    """

    first_alarm: int | None
    first_alarm_class: int | None = None
    first_damage: int | None
    in_time: bool | None
    rollbacks: int


class RoundCounts(Part):
    """Numbers of rounds of the attacked track and of its twin."""

    attacked: int
    twin: int | None


class Skipped(Part):
    """Numbers of rounds in which the strategy left the model as it was, and its reason in the first of them (of any track)."""

    attacked: int
    twin: int | None
    reason: str | None


class Clipped(Part):
    """rounds: in which a clip shortened something; under_attack: those of them in which the coalition acted. updates: the share of single
    updates that a clip of each shortened, from 0 to 1, over the rounds that had one; None if none had."""

    rounds: int
    under_attack: int
    updates: float | None


class Tolerance(Part):
    """f: the malicious clients that the rule is made for (the least over the rounds). exceeded: the rounds in which more acted."""

    f: int
    exceeded: int


class CoalitionRounds(Part):
    """How many rounds of the attacked track, before the recovery, the coalition acted in (it sent something other than its honest updates),
    was idle in (it sent these), failed in (none of its sampled members sent anything), or was absent from (no member was sampled)."""

    acted: int
    idle: int
    failed: int
    absent: int


class MaliciousNorm(Part):
    """l2 norms of malicious updates, in gradient units: the median over the rounds in which the coalition acted of the median over its
    members, and the largest of all."""

    median: float
    largest: float


class HonestNorm(Part):
    """The same median of what the members would honestly have sent in those rounds."""

    median: float


class PhaseRounds(Part):
    """Rounds of the accumulative phase of the attacked track: how many were played, and how many evaluated."""

    played: int
    evaluated: int


class PoisonRatio(Part):
    """Shares from 0 to 1."""

    configured: float
    realised_mean: float


class Seconds(Part):
    """Totals of the run (all its sessions), of the burn-in and of all rounds; and medians per round, without evaluation."""

    total: float
    burn_in: float
    rounds: float
    attacked_round: float | None
    aggregation: float | None
    honest_round: float | None


class Summary(Part):
    """The results of a run (docs/records.md). Accuracies in percent, differences in points; None if not measured."""

    accuracy: Accuracy
    accuracy_by_class: AccuracyByClass | None = None
    worst_class: OneClass | None = None
    most_harmed_class: OneClass | None = None
    attack_success_rate: SuccessRate | None = None
    filtering: Filtering | None = None
    cleaning: CleaningShares | None = None
    smoothed: Smoothed | None = None
    drop: float | None
    stealth_gap: float | None
    gain: float | None
    worst_accuracy_in_phase: float | None
    worst_loss_in_phase: float | None
    phase_rounds: PhaseRounds
    trigger_round: int | None
    triggers: list[int]
    missed_triggers: list[int]
    no_trigger: str | None
    coalition: CoalitionRounds | None
    malicious_norm: MaliciousNorm | None
    honest_norm: HonestNorm | None
    after_last_trigger: float | None
    alarms: list[int]
    monitor: MonitorSummary
    judged: int
    refused: RoundCounts
    drifted: RoundCounts
    skipped: Skipped
    clipped: Clipped | None
    tolerance: Tolerance | None
    assumed_malicious: int | None
    client_failures: int
    retries: int
    clean_twin: CleanTwin | None
    control: Control | None
    honest_trigger: HonestTrigger | None = None
    poison_ratio: PoisonRatio
    rounds: int
    seconds: Seconds
    config_hash: str
    status: Literal["complete"] = "complete"


def summarise(config: Config, lines: Iterable[Line]) -> Summary:
    """The summary of a complete run's lines.

    `worst_loss_in_phase`: how far the accuracy was below the one before round 1 at most, in the evaluated rounds of the accumulative phase
    (on the same examples) and right before the trigger (both on the whole test set); 0 if it never was. Without an attack,
    `before_trigger` and `after_trigger` are the accuracies around the round in which a trigger would be due.
    Raises KeyError without a complete attacked track.
    """
    tracks = history_of(lines)
    attacked, twin, control = tracks["attacked"], tracks.get("twin"), tracks.get("control")
    before, after, start = attacked.before_trigger, attacked.after_trigger, attacked.start
    in_phase = [line["accuracy"] for line in attacked.in_phase("accumulate", "pause") if "accuracy" in line]
    ratio = config.attack.poison_ratio if config.attack.poison_ratio >= 0.0 else config.attack.malicious_fraction
    return Summary(
        accuracy=Accuracy(
            burn_in=start["whole_accuracy"],
            before_trigger=before,
            after_trigger=after,
            end_of_attack=attacked.end_of_attack,
            final=attacked.lines[-1]["whole_accuracy"],
        ),
        **_classes(attacked),
        attack_success_rate=SuccessRate.model_validate(rates) if (rates := rates_of(attacked)) else None,
        filtering=Filtering.model_validate(means) if (means := mean_rates(attacked.lines)) else None,
        cleaning=CleaningShares.model_validate(shares)
        if (shares := cleaning_summary(*(track.lines if track else () for track in (attacked, twin, control))))
        else None,
        smoothed=Smoothed.model_validate(votes) if (votes := attacked.lines[-1].get("smoothed")) else None,
        drop=_minus(before, after),
        stealth_gap=_stealth_gap(attacked, twin),
        gain=_minus(control.after_trigger if control else None, after),
        worst_accuracy_in_phase=min(in_phase, default=None),
        worst_loss_in_phase=_worst_loss(attacked, in_phase),
        phase_rounds=PhaseRounds(played=len(attacked.in_phase("accumulate", "pause")), evaluated=len(in_phase)),
        trigger_round=attacked.fired[0] if attacked.fired else None,
        triggers=list(attacked.fired),
        missed_triggers=list(attacked.missed),
        no_trigger=_no_trigger(config, attacked),
        coalition=_coalition(config, attacked),
        malicious_norm=_malicious_norm(attacked),
        honest_norm=_honest_norm(attacked),
        after_last_trigger=attacked.after_last_trigger,
        alarms=[line["round"] for line in attacked.lines if line.get("alarm")],
        monitor=_monitor(config, attacked),
        judged=sum("refused" in line["strategy"] for line in attacked.lines),
        refused=RoundCounts(attacked=attacked.count("strategy", "refused"), twin=twin.count("strategy", "refused") if twin else None),
        drifted=RoundCounts(attacked=attacked.count("strategy", "drifted"), twin=twin.count("strategy", "drifted") if twin else None),
        skipped=_skipped(tracks),
        clipped=_clipped(attacked),
        tolerance=_tolerance(config, attacked),
        assumed_malicious=assumed_malicious(config) if told_by_key(config) else None,
        client_failures=sum(len(line.get("failures", {})) for line in attacked.lines),
        retries=sum(len(line.get("retried", {})) for line in attacked.lines),
        clean_twin=_clean_twin(twin) if twin else None,
        control=_control(control) if control else None,
        honest_trigger=_honest_trigger(tracks.get("honest-trigger")),
        poison_ratio=PoisonRatio(
            configured=0.0 if config.attack.name == "none" else ratio,
            realised_mean=sum(line["poison_ratio"] for line in attacked.lines) / attacked.rounds,
        ),
        rounds=attacked.rounds,
        seconds=_seconds(tracks),
        config_hash=run_hash(config),
    )


def _clean_twin(twin: TrackHistory) -> CleanTwin:
    last = twin.lines[-1]
    return CleanTwin(final=last["whole_accuracy"], at_trigger=twin.after_trigger, attack_success_rate=last.get(WHOLE))


def _control(control: TrackHistory) -> Control:
    return Control(
        before_trigger=control.before_trigger,
        after_trigger=control.after_trigger,
        trigger_round=control.fired[0] if control.fired else None,
    )


def _honest_trigger(track: TrackHistory | None) -> HonestTrigger | None:
    return HonestTrigger(before_trigger=track.before_trigger, after_trigger=track.after_trigger) if track else None


def _classes(track: TrackHistory) -> dict[str, Any]:
    """The figures by class; none without `evaluate.by-class`. Of equal classes the first counts."""
    start, final = track.confusion("start"), track.confusion("final")
    if start is None or final is None:
        return {}
    places = ("before_trigger", "after_trigger", "end_of_attack")
    between = {place: accuracy_by_class(confusion) for place in places if (confusion := track.confusion(place))}
    by_class = AccuracyByClass.model_validate(
        {"burn_in": accuracy_by_class(start), "final": accuracy_by_class(final)} | dict.fromkeys(places) | between
    )
    pairs = enumerate(zip(by_class.burn_in, by_class.final, strict=True))
    ends = [
        OneClass.model_validate({"class": i, "burn_in": one, "final": last})
        for i, (one, last) in pairs
        if one is not None and last is not None
    ]
    return {
        "accuracy_by_class": by_class,
        "worst_class": min(ends, key=lambda end: end.final),
        "most_harmed_class": min(ends, key=lambda end: end.final - end.burn_in),
    }


def _skipped(tracks: dict[str, TrackHistory]) -> Skipped:
    counts = {name: sum("skipped" in line for line in track.lines) for name, track in tracks.items()}
    reasons = [line["skipped"] for track in tracks.values() for line in track.lines if "skipped" in line]
    return Skipped(attacked=counts["attacked"], twin=counts.get("twin"), reason=reasons[0] if reasons else None)


def _clipped(track: TrackHistory) -> Clipped | None:
    """None if no round had a clip. A line has the median norm of the updates if there was a clip of each."""
    lines = [line for line in track.lines if "clipped" in line["strategy"]]
    single = [line for line in lines if "median_norm" in line["strategy"]]
    if not lines:
        return None
    updates = sum(line["clients"] for line in single)
    share = sum(line["strategy"]["clipped"] for line in single) / updates if updates else None
    acted = [line for line in lines if line["strategy"]["clipped"] > 0.0]
    return Clipped(rounds=len(acted), under_attack=sum("attack" in line for line in acted), updates=share)


def _tolerance(config: Config, track: TrackHistory) -> Tolerance | None:
    """None if the rule promises nothing about a number of malicious clients."""
    options = options_of(config)
    promised = [(tolerated(config.strategy.name, options, line["clients"]), line) for line in track.lines]
    acting = [(f, round(line["poison_ratio"] * line["clients"]) if "attack" in line else 0) for f, line in promised if f is not None]
    return Tolerance(f=min(f for f, _ in acting), exceeded=sum(m > f for f, m in acting)) if acting else None


def _worst_loss(track: TrackHistory, in_phase: list[float]) -> float | None:
    start, before = track.start, track.before_trigger
    losses = [start["accuracy"] - accuracy for accuracy in in_phase]
    losses += [start["whole_accuracy"] - before] if before is not None and track.in_phase("accumulate") else []
    return max(0.0, *losses) if losses else None


def _no_trigger(config: Config, track: TrackHistory) -> str | None:
    """Why no trigger fired; None if one did."""
    if track.fired:
        return None
    if config.attack.name == "none":
        return "no attack (attack.name = 'none')"
    if not malicious_clients(config):
        key = "malicious-fraction" if config.attack.poison_ratio < 0.0 else "poison-ratio"
        return f"no client is malicious (attack.{key} = 0)"
    if not config.schedule.triggers:
        return "none is planned (schedule.triggers = 0)"
    if reasons := [f"round {round_}: {reason}" for round_, reason in track.missed.items()]:
        return "; ".join(reasons[:1] + [f"and {len(reasons) - 1} more"] * (len(reasons) > 1))
    if 0 < config.attack.to_round < track.rounds:
        return f"the attack ended with round {config.attack.to_round} (attack.to-round)"
    return f"the run ended in round {track.rounds} (monitor.action = {config.monitor.action!r})"


def _coalition(config: Config, track: TrackHistory) -> CoalitionRounds | None:
    members = {str(client) for client in malicious_clients(config)}
    if not members:
        return None
    counts = Counter(_role(line, members) for line in track.lines if line["phase"] not in ("pause", "recover"))
    return CoalitionRounds(acted=counts["acted"], idle=counts["idle"], failed=counts["failed"], absent=counts["absent"])


def _role(line: Line, members: set[str]) -> str:
    """What the coalition did in a round."""
    if line["poison_ratio"] > 0.0:
        return "acted" if line.get("attack", {}).get("acted") else "idle"
    return "failed" if members & set(line.get("failures", {})) else "absent"


def _acting(track: TrackHistory) -> list[Mapping[str, float]]:
    return [line["attack"] for line in track.lines if line.get("attack", {}).get("acted")]


def _malicious_norm(track: TrackHistory) -> MaliciousNorm | None:
    rounds = _acting(track)
    if not rounds:
        return None
    median = statistics.median(figures["malicious_median"] for figures in rounds)
    return MaliciousNorm(median=median, largest=max(figures["malicious_norm"] for figures in rounds))


def _honest_norm(track: TrackHistory) -> HonestNorm | None:
    rounds = _acting(track)
    return HonestNorm(median=statistics.median(figures["honest_norm"] for figures in rounds)) if rounds else None


def _monitor(config: Config, track: TrackHistory) -> MonitorSummary:
    best, damage = track.start["accuracy"], None
    for round_, accuracy in track.evaluated.items():
        best = max(best, accuracy)
        if accuracy <= best - config.monitor.drop:
            damage = round_
            break
    alarm = next((line["round"] for line in track.lines if line.get("alarm")), None)
    rollbacks = sum(bool(line.get("rolled_back")) for line in track.lines)
    in_time = None if alarm is None else alarm < damage if damage else True if rollbacks else None
    alarm_class = next((line.get("alarm_class") for line in track.lines if line.get("alarm")), None)
    return MonitorSummary(first_alarm=alarm, first_alarm_class=alarm_class, first_damage=damage, in_time=in_time, rollbacks=rollbacks)


def _seconds(tracks: dict[str, TrackHistory]) -> Seconds:
    """Medians without evaluation: of the rounds of the accumulative phase, of the strategy's aggregation in them, and of honest rounds
    (the twin's, or else those of the recovery)."""
    attacked, twin = tracks["attacked"], tracks.get("twin")
    phase = [line["seconds"] for line in attacked.in_phase("accumulate")]
    honest = [line["seconds"]["train"] for line in (twin.lines if twin else attacked.in_phase("recover"))]
    rounds = sum(line["seconds"]["train"] + line["seconds"]["evaluate"] for track in tracks.values() for line in track.lines)
    before = {name: attacked.lines[0]["seconds"][name] for name in ("burn_in", "calibration")}
    return Seconds(
        total=rounds + sum(before.values()),
        burn_in=before["burn_in"],
        rounds=rounds,
        attacked_round=statistics.median(seconds["train"] for seconds in phase) if phase else None,
        aggregation=statistics.median(seconds["aggregate"] for seconds in phase) if phase else None,
        honest_round=statistics.median(honest) if honest else None,
    )


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _stealth_gap(attacked: TrackHistory, twin: TrackHistory | None) -> float | None:
    """The largest gap between the twin's and the attacked accuracy in the phase, over the rounds in which both were evaluated."""
    gaps: list[Any] = [
        twin.evaluated[line["round"]] - line["accuracy"]
        for line in (attacked.in_phase("accumulate", "pause") if twin else [])
        if "accuracy" in line and twin and line["round"] in twin.evaluated
    ]
    return max(gaps, default=None)
