"""Names of attacks and strategies, and what they need: the tables are above `fl_sim`, so its config cannot check them."""

from __future__ import annotations

import difflib
from importlib.util import find_spec

from clients.attacks import ATTACKS, FROM_BYZFL, NEEDS_TWO
from fl_sim.config import Config
from fl_sim.sampling import malicious_clients
from strategies.catalogue import strategy_problems


def name_problems(config: Config) -> list[str]:
    """What is wrong with `attack.name`, `strategy.name` and `strategy.options`, and packages that are missing, a sentence a problem."""
    problems = [*_attack_problems(config), *strategy_problems(config)]
    if config.tracking == "tensorboard" and find_spec("tensorboard") is None:
        problems.append("expected the optional package tensorboard with tracking = 'tensorboard': pip install 'fl-sim[tensorboard]'")
    return problems


def _attack_problems(config: Config) -> list[str]:
    name = config.attack.name
    known = ["none", *ATTACKS]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        return [f"expected attack.name to be one of {', '.join(known)}, got {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")]
    problems: list[str] = []
    if name in FROM_BYZFL and find_spec("byzfl") is None:
        problems.append(f"expected the optional package byzfl with attack.name = {name!r}: pip install 'fl-sim[byzfl]'")
    if name in NEEDS_TWO and len(malicious_clients(config)) == 1:
        problems.append(
            f"expected at least 2 malicious clients (attack.malicious-fraction, attack.poison-ratio) with attack.name = {name!r}, "
            "which compares its members' own honest updates, got 1"
        )
    return problems
