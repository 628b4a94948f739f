"""Checks of the keys of attacks that choose or move images, against each other."""

from __future__ import annotations

from fl_sim.config.keys import Config

Problem = tuple[tuple[str, ...], str]


def image_checks(config: Config) -> list[Problem]:
    """Contradictions between keys, as (keys, sentence)."""
    attack, problems = config.attack, list[Problem]()
    if attack.attacked == attack.confounding >= 0:
        keys = ("attack.attacked", "attack.confounding")
        problems.append((keys, f"expected attack.attacked and attack.confounding to be different classes, got {attack.attacked} for both"))
    return problems
