"""Checks of keys against each other. Each problem names the keys that it is about."""

from __future__ import annotations

import math

from fl_sim.config.image_checks import image_checks
from fl_sim.config.keys import Config

# Attacks whose trigger is in the images: no key of the trigger vector matters to them.
BACKDOORS = ("badnets", "blended", "dba", "edge-case", "label-flip-pair")
# Attacks that try the server's rule on the honest updates themselves.
LINE_SEARCHES = ("optimal-alie", "optimal-ipm")

Problem = tuple[tuple[str, ...], str]


def cross_checks(config: Config) -> list[Problem]:
    """Every contradiction between keys, as (keys, sentence). Loads nothing."""
    return [*_sampling(config), *_attack(config), *_window(config), *image_checks(config), *_faults(config), *_workers(config)]


def _sampling(config: Config) -> list[Problem]:
    per_round, clients = config.server.clients_per_round, config.data.num_clients
    if per_round > clients:
        return [
            (
                ("server.clients-per-round", "data.num-clients"),
                f"expected server.clients-per-round <= data.num-clients = {clients}, got {per_round}",
            )
        ]
    return []


def _attack(config: Config) -> list[Problem]:
    problems: list[Problem] = []
    ratio, n = config.attack.poison_ratio, config.clients_per_round
    keys = ("attack.poison-ratio", "server.clients-per-round", "data.num-clients")
    if -1.0 < ratio < 0.0:
        problems.append((keys, f"expected attack.poison-ratio to be -1 (off) or from 0 to 1, got {ratio}"))
    elif ratio >= 0.0 and abs(ratio * n - round(ratio * n)) > 1e-6:
        problems.append(
            (
                keys,
                f"expected attack.poison-ratio to be a whole number of the {n} sampled clients, got {ratio} ({ratio * n:g} clients); "
                f"the nearest is {round(ratio * n) / n:g}",
            )
        )
    if config.attack.name != "none" and config.attack.data == "own-set" and config.attack.set_size < 2:
        problems.append(
            (
                ("attack.set-size", "attack.data"),
                f"expected attack.set-size >= 2 with attack.data = 'own-set', got {config.attack.set_size}",
            )
        )
    if config.attack.name == "none" and config.attack.poison_ratio > 0.0:
        problems.append(
            (
                ("attack.name", "attack.poison-ratio"),
                f"expected attack.poison-ratio to be 0 or -1 with attack.name = 'none', got {config.attack.poison_ratio}",
            )
        )
    target = config.attack.to_class if config.attack.to_class >= 0 or config.attack.name not in BACKDOORS else 0
    if config.attack.name != "none" and config.attack.class_ == target >= 0:
        keys = ("attack.class", "attack.to-class")
        meaning = " (-1: class 0)" if config.attack.to_class < 0 else ""
        text = f"expected attack.class and attack.to-class{meaning} to be different classes, got {target} for both"
        problems.append((keys, text))
    to_norm_bound = config.attack.trigger == "reversed" and config.attack.trigger_refresh == "latest" and not config.attack.trigger_scale
    if math.isinf(config.attack.norm_bound) and to_norm_bound and config.attack.name not in BACKDOORS:
        problems.append(
            (
                ("attack.norm-bound", "attack.trigger-scale", "attack.trigger-refresh"),
                "expected attack.trigger-scale > 0 with attack.norm-bound = inf (else the trigger gets length norm-bound), got 0",
            )
        )
    if config.attack.name in LINE_SEARCHES and config.attack.knowledge != "updates":
        text = f"expected attack.knowledge = 'updates' with attack.name = {config.attack.name!r}, got {config.attack.knowledge!r}"
        problems.append((("attack.knowledge", "attack.name"), text))
    rounds = config.schedule.accumulate_rounds
    if config.attack.name == "accumulative" and config.attack.fire == "rehearsed" and 0 < rounds < config.attack.fire_from:
        problems.append(
            (
                ("attack.fire-from", "schedule.accumulate-rounds"),
                f"expected attack.fire-from <= schedule.accumulate-rounds = {rounds} with attack.fire = 'rehearsed', "
                f"got {config.attack.fire_from}: lower attack.fire-from, or set attack.fire = 'schedule'",
            )
        )
    if config.attack.provoke and config.attack.knowledge == "coalition":
        text = "expected attack.knowledge = 'rule' or 'omniscient' with attack.provoke (it acts on the published clip), got 'coalition'"
        problems.append((("attack.knowledge", "attack.provoke"), text))
    if config.attack.delivery != "plain" and config.attack.name != "none":
        keys = ("attack.delivery", "attack.knowledge", "attack.surface")
        if config.attack.knowledge == "coalition" and config.attack.delivery == "rehearse":
            wanted = "expected attack.knowledge = 'rule', 'omniscient' or 'updates' with attack.delivery = 'rehearse'"
            text = f"{wanted} (it tries the rule), got 'coalition'"
            problems.append((keys, text))
        if config.attack.surface == "images":
            problems.append((keys, f"expected attack.surface = 'updates' with attack.delivery = {config.attack.delivery!r}, got 'images'"))
    return problems


def _workers(config: Config) -> list[Problem]:
    share = config.ray.gpus_per_worker
    if share == 0.0 or 1e-4 <= share <= 1.0 or share.is_integer():
        return []
    key = "ray.gpus-per-worker"
    return [((key,), f"expected {key} to be 0, a share from 0.0001 to 1, or a whole number of GPUs, got {share:g}")]


def _window(config: Config) -> list[Problem]:
    attack, triggers = config.attack, config.schedule.triggers
    if attack.name == "none":
        return []
    problems: list[Problem] = []
    last = 0 if attack.name == "trigger-only" else config.schedule.accumulate_rounds
    latest = max(last + (1 if triggers else 0), 1)
    if attack.from_round > latest and attack.name != "trigger-only":
        keys = ("attack.from-round", "schedule.accumulate-rounds", "schedule.triggers")
        problems.append(
            (keys, f"expected attack.from-round <= {latest}, the last round of the phase and its trigger, got {attack.from_round}")
        )
    if 0 < attack.to_round < attack.from_round:
        keys = ("attack.to-round", "attack.from-round")
        text = f"expected attack.to-round to be 0 or >= attack.from-round = {attack.from_round}, got {attack.to_round}"
        problems.append((keys, text))
    elif attack.name == "accumulative" and attack.fire == "schedule" and triggers and 0 < attack.to_round <= last:
        keys = ("attack.to-round", "attack.fire", "schedule.triggers", "schedule.accumulate-rounds")
        text = "the round of the trigger (or schedule.triggers = 0 for an attack without one)"
        problems.append((keys, f"expected attack.to-round to be 0 or >= {last + 1}, {text}, got {attack.to_round}"))
    return problems


def _faults(config: Config) -> list[Problem]:
    problems: list[Problem] = []
    for key, text in (("fault.raises", config.fault.raises), ("fault.nan", config.fault.nan), ("fault.clients", config.fault.clients)):
        try:
            ids = client_ids(text)
        except ValueError:
            problems.append(((key,), f"expected {key} to be client ids such as '3,7', got {text!r}"))
            continue
        beyond = [i for i in ids if i >= config.data.num_clients]
        if beyond:
            problems.append(((key, "data.num-clients"), f"expected {key} to hold client ids below data.num-clients, got {beyond[0]}"))
    if config.fault.reply == "slow" and not (config.client.timeout and config.grid.transport in ("auto", "ray")):
        keys = ("fault.reply", "client.timeout", "grid.transport")
        values = f"{config.client.timeout} and {config.grid.transport!r}"
        problems.append((keys, f"expected client.timeout > 0 and grid.transport = 'ray' with fault.reply = 'slow', got {values}"))
    if config.fault.reply != "none" and not config.fault.clients.strip():
        problems.append((("fault.reply", "fault.clients"), f"expected fault.clients with fault.reply = {config.fault.reply!r}, got none"))
    if config.fault.kill_round and config.grid.transport not in ("auto", "ray"):
        keys = ("fault.kill-round", "grid.transport")
        problems.append((keys, f"expected grid.transport = 'ray' with fault.kill-round, got {config.grid.transport!r}"))
    return problems


def client_ids(text: str) -> frozenset[int]:
    """`"3,7"` to `{3, 7}`. Raises ValueError for anything but non-negative integers."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise ValueError(text)
    return frozenset(int(part) for part in parts)
