"""The table of attacks. A new attack is a function `(knowledge, state) -> Action` in a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Callable

from clients.accumulative import accumulative
from clients.action import Action
from clients.generic import a_little_is_enough, gaussian, inner_product_manipulation, mimic, sign_flip
from clients.knowledge import Knowledge
from clients.label_flip import label_flip
from clients.min_max import min_max, min_sum
from clients.trigger_only import trigger_only
from fl_sim.messages import AttackState

Attack = Callable[[Knowledge, AttackState], Action]

ATTACKS: dict[str, Attack] = {
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
}

FROM_BYZFL = frozenset({"sign-flip", "ipm", "alie", "mimic"})
NEEDS_TWO = frozenset({"alie", "min-max", "min-sum", "mimic"})  # a spread of one, or a copy of oneself, is the honest update
