"""The summary of a run, from its tracks."""

from __future__ import annotations

import statistics
from typing import Any

from experiments.run.track import Track
from fl_sim.config.keys import Config
from fl_sim.config.resolve import config_hash


def summarise(
    config: Config, burn_in_accuracy: float, attacked: Track, twin: Track | None, control: Track | None, seconds: dict[str, float]
) -> dict[str, Any]:
    """The keys of DESIGN section 7. Accuracies in percent, differences in points; null where nothing was measured.

    `worst_loss_in_phase`: from the accuracy before round 1 to the worst in the phase, on the same examples. Without an attack,
    `before_trigger` and `after_trigger` are the accuracies around the round for which it was planned.
    """
    before, after = attacked.before_trigger, attacked.after_trigger
    phase = [round_ for round_, name in attacked.phases.items() if name == "accumulate"]
    in_phase = [attacked.evaluated[round_] for round_ in phase if round_ in attacked.evaluated]
    ratio = config.attack.poison_ratio if config.attack.poison_ratio >= 0.0 else config.attack.malicious_fraction
    summary: dict[str, Any] = {
        "accuracy": {"burn_in": burn_in_accuracy, "before_trigger": before, "after_trigger": after, "final": attacked.final},
        "drop": _minus(before, after),
        "stealth_gap": _stealth_gap(attacked, twin, phase),
        "gain": _minus(control.after_trigger if control else None, after),
        "worst_accuracy_in_phase": min(in_phase, default=None),
        "worst_loss_in_phase": _minus(attacked.start, min(in_phase, default=None)),
        "trigger_round": attacked.fired[0] if attacked.fired else None,
        "triggers": list(attacked.fired),
        "after_last_trigger": attacked.after_last_trigger,
        "alarms": list(attacked.alarms),
        "monitor": _monitor(config, attacked),
        "refused": {"attacked": attacked.refused, "twin": twin.refused if twin else None},
        "drifted": {"attacked": attacked.drifted, "twin": twin.drifted if twin else None},
        "client_failures": attacked.failures,
        "retries": attacked.retries,
        "clean_twin": {"final": twin.final, "at_trigger": twin.after_trigger} if twin else None,
        "control": {
            "before_trigger": control.before_trigger,
            "after_trigger": control.after_trigger,
            "trigger_round": control.fired[0] if control.fired else None,
        }
        if control
        else None,
        "poison_ratio": {
            "configured": 0.0 if config.attack.name == "none" else ratio,
            "realised_mean": sum(attacked.ratios) / len(attacked.ratios) if attacked.ratios else 0.0,
        },
        "rounds": attacked.rounds,
        "seconds": {**seconds, **_seconds_a_round(attacked, twin)},
        "config_hash": config_hash(config),
        "status": "complete",
    }
    return summary


def _monitor(config: Config, track: Track) -> dict[str, Any]:
    """When the monitor fired and when the damage was done: the first evaluated round (rounds with an alarm always are) with test
    accuracy `monitor.drop` points below its best so far, after whatever the monitor did about it.

    `in_time`: true if the alarm came before the damage, or a rollback left none; false if it came with it or later; null if there was no
    alarm, or nothing to be alarmed about.
    """
    best, damage = track.start, None
    for round_, accuracy in track.evaluated.items():
        best = max(best, accuracy)
        if accuracy <= best - config.monitor.drop:
            damage = round_
            break
    alarm = track.alarms[0] if track.alarms else None
    in_time = None if alarm is None else alarm < damage if damage else True if track.rollbacks else None
    return {"first_alarm": alarm, "first_damage": damage, "in_time": in_time, "rollbacks": track.rollbacks}


def _seconds_a_round(attacked: Track, twin: Track | None) -> dict[str, float | None]:
    """Medians, without evaluation: rounds in the accumulative phase and what the strategy's own part of them takes, and honest
    rounds (the twin's, or those of recovery)."""
    phase = [round_ for round_, name in attacked.phases.items() if name == "accumulate"]
    honest = list(twin.trained.values()) if twin else [attacked.trained[r] for r, phase in attacked.phases.items() if phase == "recover"]
    return {
        "attacked_round": statistics.median(attacked.trained[round_] for round_ in phase) if phase else None,
        "aggregation": statistics.median(attacked.aggregated[round_] for round_ in phase) if phase else None,
        "honest_round": statistics.median(honest) if honest else None,
    }


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _stealth_gap(attacked: Track, twin: Track | None, phase: list[int]) -> float | None:
    """The largest gap between the twin's and the attacked accuracy in the phase, over the rounds in which both were evaluated."""
    if twin is None:
        return None
    both = [round_ for round_ in phase if round_ in attacked.evaluated and round_ in twin.evaluated]
    return max((twin.evaluated[round_] - attacked.evaluated[round_] for round_ in both), default=None)
