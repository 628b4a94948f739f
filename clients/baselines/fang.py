"""The attacks of Fang et al. on Krum and on the trimmed mean or median, with full and with partial knowledge.

Source: Fang et al. 2020, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", sections 3.2 and 3.3. They move a local
model against the direction s in which the global model would change; an update points the other way, so here it is `-sign(honest_t)`.
Full knowledge is `attack.knowledge = "updates"`; at every other level the members' own updates are the sample, as in their partial one.
Where we differ: in gradient units, like the released code; the search for lambda ends at 1e-5 of its bound (theirs at 1e-5 in
units of the model); all members send the same update to Krum (theirs differ by 1e-5 / d).
"""

from __future__ import annotations

import torch
from torch import Tensor

from clients.action import Action
from clients.knowledge import Knowledge
from fl_sim.rng.streams import torch_stream
from fl_sim.wire.messages import AttackState

SMALLEST = 1e-5  # lambda over its bound: below it the search has failed
LARGEST_RATIO = 2.0  # b of the attack on the trimmed mean


def fang_krum(knowledge: Knowledge, state: AttackState) -> Action:
    """`A = -lambda * sign(honest_t)` with the largest lambda, halved from its upper bound, with which Krum selects A (Theorem 1).

    Full: among all honest updates and m copies of A. Partial: among the members' own updates and j copies, the smallest j from 1 on with
    which it does. If there is no such lambda the members are honest. Metrics: `lambda`.
    """
    rows, direction, m = knowledge.honest_rows(), -knowledge.honest_mean.sign(), len(knowledge.members)
    for copies in [m] if knowledge.shown else range(1, m + 1):
        strength = krum_strength(rows.double(), direction.double(), copies)
        if strength:
            vector = (strength * direction).to(knowledge.updates)
            return Action(vector.expand_as(knowledge.updates).clone(), state, {"lambda": strength})
    return Action(knowledge.updates, state, {"lambda": 0.0}, reason="Krum selects no update of the attack")


def krum_strength(rows: Tensor, direction: Tensor, copies: int) -> float:
    """The first of `bound, bound / 2, bound / 4, ...` with which Krum selects `lambda * direction` (d,) among `copies` of it and the rows
    (h, d), for which `copies` is also the number of malicious updates; 0 if none above 1e-5 of the bound.

    `bound = min_i sum of the h - 2 smallest |g_i - g_l| / ((h - copies - 1) sqrt(d)) + max_i |g_i| / sqrt(d)` (Theorem 1).
    """
    between = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = between.sort(dim=1).values[:, 1 : max(len(rows) - 2, 1) + 1].sum(dim=1).min()  # the first is the row itself
    root = rows.shape[1] ** 0.5
    strength = bound = float(nearest / (max(len(rows) - copies - 1, 1) * root) + rows.norm(dim=1).max() / root)
    while strength > SMALLEST * bound:
        if krum_selects(between.square(), (strength * direction - rows).square().sum(dim=1), copies):
            return strength
        strength /= 2.0
    return 0.0


def krum_selects(between: Tensor, away: Tensor, copies: int) -> bool:
    """Whether Krum selects one of `copies` of a vector among them and h rows. Its score is the sum of the n - f - 2 smallest squared
    distances to the others, with n = h + copies and f = copies.

    Args: between (h, h) and away (h,), squared distances of the rows from each other and from the vector.
    Source: Blanchard et al. 2017, section 3.
    """
    neighbours = max(len(away) - 2, 1)
    own = torch.cat([away.new_zeros(copies - 1), away]).sort().values[:neighbours].sum()
    others = torch.cat([between, away.unsqueeze(1).expand(-1, copies)], dim=1).sort(dim=1).values[:, 1 : neighbours + 1].sum(dim=1)
    return bool(own <= others.min())


def fang_trim(knowledge: Knowledge, state: AttackState) -> Action:
    """Each coordinate just beyond the honest ones, on the side against `honest_t`, with a draw u from [0, 1) per member and coordinate.

    Full, b = 1 + u: where `honest_t > 0` the smallest honest value, divided by b if positive, else times b; where `honest_t < 0` the
    largest one, times b if positive, else divided by b. Partial: `mean(g) - sign(honest_t) * (3 + u) * std(g)` of the members' own updates.
    Where we differ: smallest and largest are those of the honest clients, as in the paper (the released code: of all clients).
    """
    rows, sign = knowledge.honest_rows(), knowledge.honest_mean.sign()
    generator = torch_stream(knowledge.own_seed, "fang-trim")
    u = torch.rand(knowledge.updates.shape, generator=generator, dtype=knowledge.updates.dtype).to(knowledge.updates)
    if not knowledge.shown:
        return Action(rows.mean(dim=0) - sign * (3.0 + u) * rows.std(dim=0, correction=0), state)
    edge = torch.where(sign > 0, rows.amin(dim=0), rows.amax(dim=0)) * sign.abs()
    ratio = 1.0 + (LARGEST_RATIO - 1.0) * u
    return Action(torch.where(sign * edge > 0, edge / ratio, edge * ratio), state)
