"""Names that a configuration may use for an attack, and what they need: the tables are above `fl_sim`, so it cannot check them."""

from __future__ import annotations

import difflib
from importlib.util import find_spec

from clients.attacks import ATTACKS, FROM_BYZFL, NEEDS_TWO
from fl_sim.config import Config
from fl_sim.sampling import malicious_clients


def name_problems(config: Config) -> list[str]:
    """What is wrong with `attack.name`, a sentence a problem."""
    name = config.attack.name
    known = ["none", *ATTACKS]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        return [f"expected attack.name to be one of {', '.join(known)}, got {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")]
    problems: list[str] = []
    if name in FROM_BYZFL and find_spec("byzfl") is None:
        problems.append(f"expected the optional package byzfl with attack.name = {name!r}: pip install 'fl-sim[byzfl]'")
    if name in NEEDS_TWO and len(malicious_clients(config)) < 2:
        problems.append(
            f"expected at least 2 malicious clients (attack.malicious-fraction, attack.poison-ratio) with attack.name = {name!r}, "
            f"which takes the spread of honest updates from its members' own, got {len(malicious_clients(config))}"
        )
    return problems
