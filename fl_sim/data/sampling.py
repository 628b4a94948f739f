"""Which clients are malicious, and which are sampled in a round."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fl_sim.config.keys import Config
from fl_sim.rng.streams import stream

Integers = NDArray[np.int64]


def malicious_clients(config: Config) -> frozenset[int]:
    """The coalition's client ids, fixed by the seed; a larger coalition contains every smaller one.

    `attack.malicious-fraction` of the N clients, rounded, but at least one if the fraction is positive; with `attack.poison-ratio` that
    share instead, and at least as many as a round needs. Empty without an attack.
    """
    attack, clients = config.attack, config.data.num_clients
    if attack.name == "none":
        return frozenset()
    share = attack.poison_ratio if attack.poison_ratio >= 0.0 else attack.malicious_fraction
    size = max(round(share * clients), exact_malicious(config) or 0, int(share > 0.0))
    return _coalition(config.seed, clients, size, resampled=config.data.partition == "resampled")


@lru_cache(maxsize=64)
def _coalition(seed: int, clients: int, size: int, *, resampled: bool) -> frozenset[int]:
    generator = stream(seed, "malicious")
    chosen = first_different(generator, clients, size) if resampled else generator.permutation(clients)[:size]
    return frozenset(chosen.tolist())


@lru_cache(maxsize=64)
def in_order(coalition: frozenset[int]) -> tuple[int, ...]:
    """The client ids of a coalition, ascending."""
    return tuple(sorted(coalition))


def first_different(generator: np.random.Generator, population: int, count: int) -> Integers:
    """The first `count` different numbers of a sequence of uniform draws below `population`: a sample without replacement in random order.
    A longer one begins with a shorter one. Its time and memory depend on `count` alone, if that is at most half of the population."""
    drawn = np.zeros(0, dtype=np.int64)
    while True:
        values, first = np.unique(drawn, return_index=True)
        if len(values) >= count:
            return drawn[np.sort(first)[:count]]
        drawn = np.concatenate([drawn, generator.integers(population, size=count - len(values) + 16)])


def exact_malicious(config: Config) -> int | None:
    """m, if `attack.poison-ratio` fixes it, else None."""
    ratio = config.attack.poison_ratio
    return None if ratio < 0.0 else round(ratio * config.clients_per_round)


def most_malicious(config: Config) -> int:
    """The most malicious clients that a round can have."""
    m = exact_malicious(config)
    return min(len(malicious_clients(config)), config.clients_per_round) if m is None or config.attack.name == "none" else m


def sample_clients(config: Config, round_: int) -> list[int]:
    """The n client ids of a round, ascending, from stream `(seed, "sample", round)`.

    Uniform without replacement; with `attack.poison-ratio` exactly m of them from the coalition.
    """
    clients, n = config.data.num_clients, config.clients_per_round
    malicious, m = malicious_clients(config), exact_malicious(config)
    if n == clients:
        return list(range(clients))
    generator = stream(config.seed, "sample", round_)
    if config.data.partition == "resampled":
        return _sample_of_many(generator, clients, n, in_order(malicious) if m is not None else (), m or 0)
    if m is None or not malicious:
        return sorted(int(client) for client in generator.permutation(clients)[:n])
    order = [int(client) for client in generator.permutation(clients)]
    members = [client for client in order if client in malicious][:m]
    honest = [client for client in order if client not in malicious][: n - m]
    return sorted(members + honest)


def _sample_of_many(generator: np.random.Generator, clients: int, n: int, coalition: Sequence[int], m: int) -> list[int]:
    """n client ids, ascending, of which m are of the coalition (ids, ascending; empty: any): without a list of all clients."""
    if not coalition:
        return sorted(first_different(generator, clients, n).tolist())
    members = np.array(coalition)
    chosen = members[first_different(generator, len(members), m)] if m else members[:0]
    ranks = first_different(generator, clients - len(members), n - m)  # among the others
    others = ranks + np.searchsorted(members - np.arange(len(members)), ranks, side="right")
    return sorted([*chosen.tolist(), *others.tolist()])
