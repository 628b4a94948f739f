"""The table of attacks. A new attack is a function `(knowledge, state) -> Action` in a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Callable

from clients.accumulative import Action, accumulative, trigger_only
from clients.knowledge import Knowledge
from fl_sim.messages import AttackState

Attack = Callable[[Knowledge, AttackState], Action]

ATTACKS: dict[str, Attack] = {
    "accumulative": accumulative,
    "trigger-only": trigger_only,
}
