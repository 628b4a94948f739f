"""The tables of attacks and of objectives. A new attack is a function `(knowledge, state) -> Action` and a line here."""

from __future__ import annotations

from collections.abc import Callable

from clients.accumulative.attack import accumulative
from clients.accumulative.trigger_only import trigger_only
from clients.action import Action
from clients.backdoors.attacks import badnets, blended, dba, edge_case, label_flip_pair
from clients.baselines.byzfl_attacks import (
    a_little_is_enough,
    gaussian,
    infinity,
    inner_product_manipulation,
    mimic,
    optimal_a_little_is_enough,
    optimal_inner_product_manipulation,
    sign_flip,
)
from clients.baselines.fang import fang_krum, fang_trim
from clients.baselines.free_rider import free_rider, random_weights
from clients.baselines.label_flip import label_flip
from clients.baselines.min_max import min_max, min_sum
from clients.baselines.mpaf import mpaf
from clients.baselines.poisonedfl import poisonedfl
from clients.images.moles import moles
from clients.knowledge import Knowledge
from fl_sim.registry import Registry
from fl_sim.wire.messages import AttackState

Attack = Callable[..., Action]  # (knowledge, state, **attack.options)


def none(knowledge: Knowledge, state: AttackState) -> Action:
    """Nobody is malicious."""
    return Action(knowledge.updates)


ATTACKS: dict[str, Attack] = {
    "none": none,
    "accumulative": accumulative,
    "trigger-only": trigger_only,
    "label-flip": label_flip,
    "gaussian": gaussian,
    "sign-flip": sign_flip,  # byzfl
    "ipm": inner_product_manipulation,  # byzfl
    "alie": a_little_is_enough,  # byzfl
    "mimic": mimic,  # byzfl
    "min-max": min_max,
    "min-sum": min_sum,
    "moles": moles,
    "badnets": badnets,
    "blended": blended,
    "dba": dba,
    "edge-case": edge_case,
    "label-flip-pair": label_flip_pair,
    "fang-krum": fang_krum,
    "fang-trim": fang_trim,
    "optimal-alie": optimal_a_little_is_enough,  # byzfl
    "optimal-ipm": optimal_inner_product_manipulation,  # byzfl
    "inf": infinity,  # byzfl
    "mpaf": mpaf,
    "poisonedfl": poisonedfl,
    "free-rider": free_rider,
    "random-weights": random_weights,
}

attacks: Registry[Attack] = Registry(
    "attack",
    "attack.name",
    ATTACKS,
    "fl_sim.attacks",
    arguments=2,
    extras=dict.fromkeys(("sign-flip", "ipm", "alie", "mimic", "optimal-alie", "optimal-ipm", "inf"), "byzfl"),
    least_members=dict.fromkeys(("alie", "min-max", "min-sum", "mimic", "fang-trim"), 2),  # a single member has no spread
)
