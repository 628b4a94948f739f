"""The phases of a run, a pure function of the round and of the rounds in which a trigger was due and was had or given up."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from fl_sim.config.keys import Attack, Config
from fl_sim.data.sampling import malicious_clients, sample_clients

Phase = Literal["accumulate", "trigger", "between", "pause", "recover", "end"]


def phase_of(config: Config, round_: int, spent: tuple[int, ...], *, attacked: bool) -> Phase:
    """The phase of `round_` (from 1), given the rounds before it in which a trigger fired or was given up.

    accumulate: rounds 1..T (none with `attack.name = "trigger-only"`), in which the coalition may fire early. trigger: a trigger is due,
    until it fires or is given up (`given_up`). between: before the next of several triggers. pause: one of these outside the window of the
    attack (`acts_in`), in which the coalition behaves honestly, as it does in recover. Triggers that have not fired when the window closes
    never fire. Without malicious clients (`attacked` false) the triggers count as fired on time.
    """
    schedule, last = config.schedule, accumulate_rounds(config)
    if not attacked:
        return "end" if round_ > planned_rounds(config) else "accumulate" if round_ <= last else "recover"
    if _is_over(config.attack, round_) and len(spent) < schedule.triggers:
        return "pause" if round_ <= last else "recover" if round_ <= planned_rounds(config) else "end"
    phase = _scheduled(config, round_, spent)
    return phase if phase in ("recover", "end") or acts_in(config.attack, round_) else "pause"


def acts_in(attack: Attack, round_: int) -> bool:
    """Whether the window of the attack has a round: `from-round`, `from-round + every`, and so on up to `to-round` (0: without end)."""
    since = round_ - attack.from_round
    return since >= 0 and since % attack.every == 0 and not _is_over(attack, round_)


def _is_over(attack: Attack, round_: int) -> bool:
    return 0 < attack.to_round < round_


def _scheduled(config: Config, round_: int, spent: tuple[int, ...]) -> Phase:
    """The phase of a round with a coalition, without regard to the window of the attack."""
    schedule, last = config.schedule, accumulate_rounds(config)
    if schedule.triggers == 0:
        return "accumulate" if round_ <= last else "recover" if round_ <= last + schedule.recovery_rounds else "end"
    if len(spent) < schedule.triggers:
        if round_ >= due_round(config, spent):
            return "trigger"
        return "between" if spent else "accumulate"
    return "recover" if round_ <= spent[-1] + schedule.recovery_rounds else "end"


def due_round(config: Config, spent: tuple[int, ...]) -> int:
    """The round for which the next trigger is planned."""
    return spent[-1] + config.schedule.trigger_every if spent else accumulate_rounds(config) + 1


def given_up(config: Config, round_: int, spent: tuple[int, ...], malicious: Collection[int]) -> str:
    """Why a trigger that is due does not wait after a round in which no malicious client was sampled; empty if it waits.

    It waits if a later round can sample one, at most `schedule.trigger-wait` rounds after it was due.
    """
    due = due_round(config, spent)
    last = due + config.schedule.trigger_wait
    open_rounds = [later for later in range(round_ + 1, last + 1) if acts_in(config.attack, later)]
    if any(not set(malicious).isdisjoint(sample_clients(config, later)) for later in open_rounds):
        return ""
    rounds = f"round {round_}" if round_ == due else f"rounds {due} to {round_}"
    return f"no malicious client was sampled in {rounds}, and none is until round {last} (schedule.trigger-wait)"


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


def has_honest_trigger(config: Config) -> bool:
    """Whether the run has the honest-trigger track: every attack has it that has a phase and a trigger."""
    return config.control_honest and is_attacked(config) and accumulate_rounds(config) > 0 and config.schedule.triggers > 0


def expected_rounds(config: Config) -> int:
    """The number of rounds of all tracks if the first trigger fires at the end of the phase, or as soon as a malicious client is sampled
    then, and the others on time: for a progress bar."""
    tracks = 1 + (config.twin and is_attacked(config)) + has_control(config) + has_honest_trigger(config)
    return tracks * (planned_rounds(config) + _first_wait(config))


def _first_wait(config: Config) -> int:
    """The rounds that the first trigger waits for a malicious client; 0 if none is sampled within `schedule.trigger-wait`."""
    malicious, due = malicious_clients(config), due_round(config, ())
    if not malicious or not config.schedule.triggers or config.clients_per_round == config.data.num_clients:
        return 0
    waits = range(config.schedule.trigger_wait + 1)
    return next((wait for wait in waits if not malicious.isdisjoint(sample_clients(config, due + wait))), 0)
