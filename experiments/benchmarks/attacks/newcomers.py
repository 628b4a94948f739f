"""`newcomers`: clients that come rarely push with all they have, because `dgc-2` knows nothing of them yet.

Ours, found by somebody who was to break the defence (docs/results/dgc2.md). Persistence compares a client with what it
sent before: who sends the same update twice is still below the least cut of 2. Where many clients are sampled rarely, most of a coalition's
members are in their first rounds. Each sends the largest push along the direction of `planned` with which its own persistence stays below
the cut; the rest of its update cancels what its earlier rests left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.benchmarks.attacks.planned_push import plan, published_bound, rest_of
from fl_sim import Action, AttackState, Knowledge

REFRESH, STEPS = 20, 40  # rounds until the direction is planned anew; rounds that the plan looks ahead
PUSH = 0.05  # length of the push in the plan


def newcomers(knowledge: Knowledge, state: AttackState, attacked: int = 6, cut: float = 1.98, beta: float = 0.95) -> Action:
    """Updates (m, d) of the members. Needs a server that clips each update, whose bound is published (`attack.knowledge`).

    cut: the persistence that a member may reach. beta: the server's `strategy.persistence-memory`.
    """
    bound, rounds = published_bound("newcomers", knowledge), int(state.scalars.get("rounds", 0.0))
    direction = plan(knowledge, attacked, bound, STEPS, PUSH) if rounds % REFRESH == 0 else state.arrays["direction"]
    known = state.arrays.get("accounts", torch.zeros(0, 3))
    accounts = torch.zeros(max(len(known), max(knowledge.members) + 1), 3)  # by client id: pushed along h, along its rest, and Q
    accounts[: len(known)] = known
    updates: list[Tensor] = []
    for member in knowledge.members:
        pushed, rested, squares = accounts[member].tolist()
        push, rest = strongest_push(beta * pushed, beta * rested, beta**2 * squares, cut)
        accounts[member] = torch.tensor([beta * pushed + push, beta * rested + rest, beta**2 * squares + 1.0])
        updates.append(bound * (push * direction + rest * rest_of(member, direction)))
    return Action(torch.stack(updates), AttackState({"direction": direction, "accounts": accounts}, {"rounds": rounds + 1.0}))


def strongest_push(pushed: float, rested: float, squares: float, cut: float) -> tuple[float, float]:
    """The largest x of 401 from 1 to -1, and the rest y, `x^2 + y^2 = 1` and y against `rested`, with
    `(pushed + x)^2 + (rested + y)^2 <= cut (squares + 1)`; the last of them if there is none."""
    x = torch.linspace(1.0, -1.0, 401)
    y = (1.0 - x.square()).clamp(min=0.0).sqrt() * (-1.0 if rested > 0.0 else 1.0)
    fits = (pushed + x).square() + (rested + y).square() <= cut * (squares + 1.0)
    chosen = int(fits.int().argmax()) if fits.any() else len(x) - 1
    return float(x[chosen]), float(y[chosen])
