"""A population of a million clients: shares are drawn when they are needed, and nothing has the size of the population."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.data.federation import load_federation
from fl_sim.data.population.resampled import ResampledShares, resampled
from fl_sim.data.sampling import first_different, malicious_clients, sample_clients
from fl_sim.rng.streams import stream
from tests.support.runs import fingerprint, run

Configure = Callable[..., Config]
LABELS = np.repeat(np.arange(5), 40)
MILLION = 1_000_000


def shares(alpha: float = 0.0, examples: int = 20, clients: int = MILLION) -> ResampledShares:
    return resampled(LABELS, clients, np.random.default_rng(1), examples=examples, alpha=alpha)


def test_a_share_comes_from_the_clients_own_stream() -> None:
    population = shares()
    for client, share in zip([0, 7, MILLION - 1], population.of([0, 7, MILLION - 1]), strict=True):
        drawn = stream(population.seed, "share", client, 0).choice(len(LABELS), 20, replace=False)
        assert np.array_equal(share, drawn)
        assert np.array_equal(share, population[client])
        assert len(set(share.tolist())) == 20
    assert len(population) == MILLION
    assert np.array_equal(population.among(1000 + np.arange(200))[7], 1000 + population[7])
    with pytest.raises(IndexError):
        population[MILLION]


def test_the_shares_are_uniform_and_with_alpha_they_are_skewed() -> None:
    """Each example is in a share with probability 20 / 200; the largest class of a share grows from 1/5 to 1 as alpha falls."""
    counts = np.bincount(np.concatenate(shares().of(range(4000))), minlength=200)
    assert abs(counts - 400).max() < 5 * np.sqrt(400)
    largest = [
        np.mean([np.bincount(LABELS[share]).max() / len(share) for share in shares(alpha=alpha).of(range(300))])
        for alpha in (1e4, 1.0, 1e-3)
    ]
    assert largest[0] < 0.45 < largest[1] < 0.9 < largest[2]


def test_the_first_different_numbers_are_a_uniform_sample_and_nested() -> None:
    for population, count in ((10, 10), (MILLION, 1000)):
        some, more = (first_different(stream(1, "x"), population, size) for size in (count // 2, count))
        assert len(set(more.tolist())) == count
        assert np.array_equal(more[: count // 2], some)
    hits = np.bincount(np.concatenate([first_different(stream(seed, "x"), 20, 5) for seed in range(2000)]), minlength=20)
    assert abs(hits - 500).max() < 5 * np.sqrt(500 * 0.75)


@pytest.mark.parametrize("ratio", [-1.0, 0.0, 0.3])
def test_a_sample_of_a_million(configure: Configure, ratio: float) -> None:
    config = configure(
        data__partition="resampled", data__num_clients=MILLION, server__clients_per_round=1000, attack__poison_ratio=ratio,
        attack__malicious_fraction=0.2,
    )  # fmt: skip
    malicious = malicious_clients(config)
    tracemalloc.start()
    sample = sample_clients(config, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sample == sorted(set(sample))
    assert len(sample) == 1000
    assert 0 <= sample[0] < sample[-1] < MILLION
    members = sum(client in malicious for client in sample)
    assert members == 300 if ratio == 0.3 else members == 0 if ratio == 0.0 else 120 < members < 280
    if ratio != 0.3:
        assert peak < 1e6


def test_honest_clients_of_an_exact_sample_are_uniform(configure: Configure) -> None:
    config = configure(data__partition="resampled", data__num_clients=20, server__clients_per_round=10, attack__poison_ratio=0.3)
    malicious = malicious_clients(config)
    hits = np.bincount(np.concatenate([sample_clients(config, round_) for round_ in range(1, 1001)]), minlength=20)
    for client in range(20):
        expected = 1000 * (3 / len(malicious) if client in malicious else 7 / (20 - len(malicious)))
        assert abs(hits[client] - expected) < 5 * np.sqrt(1000 * 0.25)


def test_a_run_on_a_population_larger_than_the_data(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Twice the same bytes, and the burn-in trains on all that the shares are drawn from."""
    config = configure(
        data__partition="resampled", data__partition_options='{"examples": 12, "alpha": 0.5}', data__num_clients=100_000, twin=False,
        server__clients_per_round=8, attack__poison_ratio=0.25, control=False, schedule__accumulate_rounds=1, schedule__recovery_rounds=1,
    )  # fmt: skip
    federation = load_federation(config)
    assert len(federation.splits.trained_before) == len(federation.dataset.train.labels) - config.attack.set_size
    results = [fingerprint(run(config, tmp_path_factory.mktemp("run"))[1]) for _ in range(2)]
    assert results[0] == results[1]
    assert all(line["clients"] == 8 and line["poison_ratio"] in (0.0, 0.25) for line in results[0][1])


@pytest.mark.parametrize("options", ['{"examples": 0}', '{"examples": 100000}', '{"examples": 2.5}', '{"alpha": -1.0}'])
def test_options_that_cannot_be(configure: Configure, options: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=r"expected data\.partition-options '(examples|alpha)' to be"):
        load_federation(configure(data__partition="resampled", data__partition_options=options))
