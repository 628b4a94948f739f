"""The phases of a run, a pure function of the round and of the rounds in which a trigger fired."""

from __future__ import annotations

from typing import Literal

from fl_sim.config.keys import Config
from fl_sim.data.sampling import malicious_clients

Phase = Literal["accumulate", "trigger", "between", "recover", "end"]

PATIENCE = 1000  # most rounds that a due trigger waits for a sampled malicious client; then the run ends


def phase_of(config: Config, round_: int, fired: tuple[int, ...], *, attacked: bool) -> Phase:
    """The phase of `round_` (from 1), given the rounds in which a trigger fired before it.

    accumulate: rounds 1..T (none with `attack.name = "trigger-only"`), in which the coalition may fire early. trigger: a trigger is due,
    until a malicious client is sampled. between: before the next of several triggers. recover: the coalition behaves honestly. Without
    malicious clients (`attacked` false) the triggers count as fired on time.
    """
    schedule, last = config.schedule, accumulate_rounds(config)
    if not attacked:
        return "end" if round_ > planned_rounds(config) else "accumulate" if round_ <= last else "recover"
    if schedule.triggers == 0:
        return "accumulate" if round_ <= last else "recover" if round_ <= last + schedule.recovery_rounds else "end"
    if not fired:
        return "accumulate" if round_ <= last else "trigger" if round_ <= last + PATIENCE else "end"
    if len(fired) < schedule.triggers:
        due = fired[-1] + schedule.trigger_every
        return "between" if round_ < due else "trigger" if round_ < due + PATIENCE else "end"
    return "recover" if round_ <= fired[-1] + schedule.recovery_rounds else "end"


def accumulate_rounds(config: Config) -> int:
    """T, the longest accumulative phase."""
    return 0 if config.attack.name == "trigger-only" else config.schedule.accumulate_rounds


def planned_rounds(config: Config) -> int:
    """The number of rounds if the trigger fires at the end of the phase."""
    schedule = config.schedule
    triggers = 1 + (schedule.triggers - 1) * schedule.trigger_every if schedule.triggers else 0
    return accumulate_rounds(config) + triggers + schedule.recovery_rounds


def is_attacked(config: Config) -> bool:
    """Whether there is a coalition."""
    return bool(malicious_clients(config))


def has_control(config: Config) -> bool:
    """Whether the run has a control: only the accumulative attack has one."""
    return config.control and is_attacked(config) and config.attack.name == "accumulative"


def expected_rounds(config: Config) -> int:
    """The number of rounds of all tracks if triggers fire on time, for a progress bar."""
    return (1 + (config.twin and is_attacked(config)) + has_control(config)) * planned_rounds(config)
