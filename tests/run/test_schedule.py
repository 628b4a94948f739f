"""Phases of a run and who is sampled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from experiments.run.monitor import Monitor
from experiments.run.phases import phase_of, planned_rounds
from fl_sim.config.keys import Config
from fl_sim.config.keys import Monitor as MonitorSettings
from fl_sim.data.sampling import malicious_clients, sample_clients

Configure = Callable[..., Config]


def phases(config: Config, fires_in: list[int], attacked: bool = True) -> str:
    """The run's phases as letters; the attack fires in the rounds `fires_in`, or when the phase is trigger."""
    fired: tuple[int, ...] = ()
    letters = ""
    while (phase := phase_of(config, len(letters) + 1, fired, attacked=attacked)) != "end":
        letters += phase[0]
        if phase == "trigger" or len(letters) in fires_in:
            fired += (len(letters),)
    return letters


def test_phases(configure: Configure) -> None:
    config = configure()
    assert phases(config, []) == "aaatrr"
    assert phases(config, [2]) == "aarr", "a rehearsed trigger ends the phase early"
    assert phases(config, [], attacked=False) == "aaarrr"
    assert len(phases(config, [], attacked=False)) == planned_rounds(config) == 6
    assert phases(configure(attack__name="trigger-only"), []) == "trr"
    assert phases(configure(schedule__triggers=0), []) == "aaarr"
    assert phases(configure(schedule__triggers=0, schedule__accumulate_rounds=0), []) == "rr"
    assert phases(configure(schedule__triggers=3, schedule__trigger_every=2), []) == "aaatbtbtrr"
    assert phases(configure(schedule__triggers=3), [1]) == "attrr"


@pytest.mark.parametrize("ratio", [0.0, 0.2, 1.0])
def test_an_exact_ratio_holds_in_every_round(configure: Configure, ratio: float) -> None:
    config = configure(data__num_clients=40, server__clients_per_round=10, attack__poison_ratio=ratio)
    malicious = malicious_clients(config)
    for round_ in range(1, 20):
        sampled = sample_clients(config, round_)
        assert len(set(sampled)) == 10
        assert sampled == sorted(sampled)
        assert sum(client in malicious for client in sampled) == round(10 * ratio)


def test_a_fraction_is_of_the_population_and_varies_among_the_sampled(configure: Configure) -> None:
    config = configure(data__num_clients=40, server__clients_per_round=10, attack__malicious_fraction=0.25)
    malicious = malicious_clients(config)
    assert len(malicious) == 10
    counts = {sum(client in malicious for client in sample_clients(config, round_)) for round_ in range(1, 30)}
    assert len(counts) > 2
    assert malicious < malicious_clients(configure(data__num_clients=40, attack__malicious_fraction=0.5))


def test_the_monitor_alarms_once_after_patience_rounds_below_its_best() -> None:
    monitor = Monitor(MonitorSettings.model_validate({"drop": 5.0, "patience": 2}), 90.0)
    accuracies = [90.0, 92.0, 87.0, 90.0, 87.0, 86.0, 80.0, 95.0]
    assert [round_ for round_, accuracy in enumerate(accuracies) if monitor.alarm(round_, accuracy)] == [5]
    assert Monitor(MonitorSettings.model_validate({}), 90.0).alarm(1, 50.0), "a fall in the first round counts"
