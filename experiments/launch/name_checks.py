"""Checks of the things that keys name: their options, and the members of the coalition and the data that an attack needs."""

from __future__ import annotations

from clients.catalogue import attacks
from fl_sim.config.checks import LINE_SEARCHES
from fl_sim.config.keys import Config
from fl_sim.config.options import OPTIONS_OF, parse_options
from fl_sim.config.resolve import to_flat
from fl_sim.data.federation import Federation
from fl_sim.data.sampling import malicious_clients
from fl_sim.registry import registry
from strategies.checks import rehearsal_problem, strategy_problems

OPTIONS = {options: key for key, options in OPTIONS_OF.items() if key != "strategy.name"}  # of strategies: strategy_problems


def name_problems(config: Config) -> list[str]:
    """What is wrong with the things that a configuration names, one sentence per problem."""
    flat, name, problems = to_flat(config), config.attack.name, strategy_problems(config)
    for key, owner in OPTIONS.items():
        if (options := parse_options(str(flat[key]))) and (text := registry(owner).options_problem(str(flat[owner]), options, key)):
            own_objective = owner == "attack.name" and ":" in config.attack.objective
            problems.append(text + "; an objective takes no options: it reads knowledge.settings" * own_objective)
    tries = {"attack.name": name in LINE_SEARCHES, "attack.delivery": config.attack.delivery == "rehearse" and name != "none"}
    for key in (key for key, tried in tries.items() if tried and not problems):
        problems += filter(None, [rehearsal_problem(config, f"{key} = {flat[key]!r}")])
    least = 1 if config.attack.knowledge == "updates" else attacks.least_members.get(name, 1)
    if 0 < (members := len(malicious_clients(config))) < least:
        problems.append(
            f"expected at least {least} malicious clients (attack.malicious-fraction, attack.poison-ratio) with attack.name = {name!r}, "
            f"which compares its members' own honest updates (or attack.knowledge = 'updates'), got {members}"
        )
    return problems


def class_problem(config: Config, federation: Federation) -> str:
    """Why an attack cannot act on a federation's data, as a sentence; empty if it can: a class that is not there, or features where it
    moves pixels."""
    attack, classes = config.attack, federation.dataset.num_classes
    if attack.name == "none":
        return ""
    keys = {
        "attack.class": attack.class_,
        "attack.to-class": attack.to_class,
        "attack.attacked": attack.attacked,
        "attack.confounding": attack.confounding,
    }
    if beyond := [key for key, number in keys.items() if number >= classes]:
        return f"expected {beyond[0]} < {classes}, the number of classes of the data, got {keys[beyond[0]]}"
    if attack.surface == "images" and federation.dataset.train.inputs.is_floating_point():
        return f"expected a data set of images with attack.surface = 'images', got features (data.name = {config.data.name!r})"
    return ""
