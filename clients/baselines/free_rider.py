"""Members without data that make up an update.

Source: Lin et al. 2019, "Free-riders in Federated Learning: Attacks and Defenses", section III: random weights, delta weights, and
advanced delta weights.
"""

from __future__ import annotations

import torch

from clients.action import Action
from clients.baselines.observed import last_update, remember
from clients.knowledge import Knowledge
from fl_sim.rng.streams import torch_stream
from fl_sim.wire.messages import AttackState


def free_rider(knowledge: Knowledge, state: AttackState) -> Action:
    """Delta weights: the last combined update, `(theta_{t-1} - theta_t) / server_lr`, and noise `N(0, sigma^2 I)` per member that
    hides that the members send the same (advanced delta weights), sigma = `attack.tau` (0: without noise).

    Zero and noise in the coalition's first round. Where we differ: with server momentum, or after rounds without a member, it is the mean
    of several combined updates (`last_update`).
    """
    last = last_update(knowledge, state)
    updates = torch.zeros_like(knowledge.updates) if last is None else last.expand_as(knowledge.updates).clone()
    if knowledge.settings.tau:
        noise = torch.randn(updates.shape, generator=torch_stream(knowledge.own_seed, "free-rider"))
        updates = updates + knowledge.settings.tau * noise.to(updates)
    return Action(updates, remember(knowledge))


def random_weights(knowledge: Knowledge, state: AttackState) -> Action:
    """Every number drawn from `U[-R, R]`, for each member anew, R = `attack.tau` (0: 0.001)."""
    draws = torch.rand(knowledge.updates.shape, generator=torch_stream(knowledge.own_seed, "random-weights")).to(knowledge.updates)
    return Action((2.0 * draws - 1.0) * (knowledge.settings.tau or 1e-3), state)
