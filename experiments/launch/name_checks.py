"""Checks of the things that keys name: their options, and the members of the coalition that an attack needs."""

from __future__ import annotations

from clients.catalogue import attacks
from fl_sim.config.keys import Config
from fl_sim.config.options import OPTIONS_OF, parse_options
from fl_sim.config.resolve import to_flat
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
    if not problems and (text := rehearsal_problem(config)):
        problems.append(text)
    least = attacks.least_members.get(name, 1)
    if 0 < (members := len(malicious_clients(config))) < least:
        problems.append(
            f"expected at least {least} malicious clients (attack.malicious-fraction, attack.poison-ratio) with attack.name = {name!r}, "
            f"which compares its members' own honest updates, got {members}"
        )
    return problems
