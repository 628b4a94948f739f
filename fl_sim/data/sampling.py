"""Which clients are malicious, and which are sampled in a round."""

from __future__ import annotations

from functools import lru_cache

from fl_sim.config.keys import Config
from fl_sim.rng.streams import stream


def malicious_clients(config: Config) -> frozenset[int]:
    """The coalition's client ids, fixed by the seed; a larger coalition contains every smaller one.

    `attack.malicious-fraction` of the N clients, rounded, but at least one if the fraction is positive; with `attack.poison-ratio` that
    share instead, and at least as many as a round needs. Empty without an attack.
    """
    attack, clients = config.attack, config.data.num_clients
    if attack.name == "none":
        return frozenset()
    share = attack.poison_ratio if attack.poison_ratio >= 0.0 else attack.malicious_fraction
    return _coalition(config.seed, clients, max(round(share * clients), exact_malicious(config) or 0, int(share > 0.0)))


@lru_cache(maxsize=64)
def _coalition(seed: int, clients: int, size: int) -> frozenset[int]:
    return frozenset(int(client) for client in stream(seed, "malicious").permutation(clients)[:size])


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
    if m is None or not malicious:
        return sorted(int(client) for client in generator.permutation(clients)[:n])
    order = [int(client) for client in generator.permutation(clients)]
    members = [client for client in order if client in malicious][:m]
    honest = [client for client in order if client not in malicious][: n - m]
    return sorted(members + honest)
