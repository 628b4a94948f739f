"""Checks of the keys of attacks that choose or move images, and of cleanings, against each other."""

from __future__ import annotations

from fl_sim.config.keys import Config

Problem = tuple[tuple[str, ...], str]


def image_checks(config: Config) -> list[Problem]:
    """Contradictions between keys, as (keys, sentence)."""
    attack, problems = config.attack, list[Problem]()
    if attack.attacked == attack.confounding >= 0:
        keys = ("attack.attacked", "attack.confounding")
        problems.append((keys, f"expected attack.attacked and attack.confounding to be different classes, got {attack.attacked} for both"))
    if attack.ball == "moving" and attack.trigger_images == "fixed":
        keys = ("attack.ball", "attack.trigger-images")
        problems.append((keys, "expected attack.trigger-images = 'refreshed' with attack.ball = 'moving', got 'fixed'"))
    if attack.surface == "images" and attack.name == "moles":
        keys = ("attack.surface", "attack.name")
        problems.append((keys, "expected attack.surface = 'updates' with attack.name = 'moles', which chooses images, got 'images'"))
    if attack.image_fraction > 0.0 and round(attack.image_fraction * config.client.batch_size) == 0:
        keys = ("attack.image-fraction", "client.batch-size")
        batch = config.client.batch_size
        problems.append((keys, f"expected attack.image-fraction * client.batch-size = {batch} to be an image, got {attack.image_fraction}"))
    return [*problems, *_cleaning(config)]


def _cleaning(config: Config) -> list[Problem]:
    cleaning, epochs, problems = config.cleaning, config.schedule.burn_in_epochs, list[Problem]()
    if cleaning.name == "dsc" and round(cleaning.history * epochs) == epochs:
        keys = ("cleaning.history", "schedule.burn-in-epochs")
        what = f"an earlier model than the burnt-in one with cleaning.name = 'dsc', got {cleaning.history} of {epochs} epochs"
        problems.append((keys, f"expected cleaning.history to give {what}"))
    return problems
