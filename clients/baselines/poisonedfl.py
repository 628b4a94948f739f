"""PoisonedFL: all rounds push in one random direction, as hard as the defence lets them."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

from clients.action import Action
from clients.baselines.observed import last_update, remember
from clients.knowledge import Knowledge
from fl_sim.rng.streams import torch_stream
from fl_sim.wire.messages import AttackState

FACTOR = 8.0  # c_0
PERIOD = 50  # e: rounds between two tests
SHRINK, LEAST = 0.7, 0.5  # beta, and the factor below which c is not shrunk
LEVEL = 0.01  # of the test


def poisonedfl(knowledge: Knowledge, state: AttackState) -> Action:
    """`A = c * |h| * (v * s) / |v|` with `v = |h - A_before * |h| / |A_before||` per coordinate: s (d,) are signs drawn once, h the
    last combined update (`last_update`), A_before what the members sent before. c starts at `attack.tau` (0: 8). Every 50 rounds it becomes
    0.7 c, if that is at least 0.5 and the model's move since the last test agrees with s in too few coordinates for a test at the level
    0.01 (`aligned`).

    In the coalition's first round A is 0. It needs no data and no update of another client. Metrics: `factor`, `aligned`.
    Source: Xie, Fang and Gong 2025, "Model Poisoning Attacks to Federated Learning via Multi-Round Consistency", section 4, and the
    released code. Where we differ: gradient units; the rounds are those in which a member was sampled.
    """
    arrays, scalars = state.arrays, state.scalars
    last = last_update(knowledge, state)
    if last is None:
        signs = torch.randint(2, knowledge.theta.shape, generator=torch_stream(knowledge.own_seed, "poisonedfl")) * 2 - 1
        first = {"signs": signs.to(knowledge.theta), "sent": torch.zeros_like(knowledge.theta)}
        factor = knowledge.settings.tau or FACTOR
        return Action(torch.zeros_like(knowledge.updates), remember(knowledge, first, {"acted": 0.0, "factor": factor}))
    signs, acted, factor = arrays["signs"], scalars["acted"] + 1.0, scalars["factor"]
    tested, metrics = knowledge.theta if acted % PERIOD == 1 else arrays["tested"], dict[str, float]()
    if acted % PERIOD == 0:
        agree = agreeing(knowledge.theta, tested, signs)
        if agree < critical_count(len(signs)) and SHRINK * factor >= LEAST:
            factor *= SHRINK
        metrics["aligned"] = agree / len(signs)
    sent = factor * consistent(last, arrays["sent"], signs)
    now = remember(knowledge, {"signs": signs, "sent": sent, "tested": tested}, {"acted": acted, "factor": factor})
    return Action(sent.expand_as(knowledge.updates).clone(), now, {"factor": factor, **metrics})


def consistent(last: Tensor, before: Tensor, signs: Tensor) -> Tensor:
    """`|h| * (v * s) / |v|` (d,) with `v = |h - before * |h| / |before||`: the length of the last update h, the signs s, and most where h
    is not explained by what was sent before. All are (d,)."""
    length = torch.linalg.vector_norm(last)
    magnitude = (last - before * length / (torch.linalg.vector_norm(before) + 1e-9)).abs()
    return length * magnitude * signs / (torch.linalg.vector_norm(magnitude) + 1e-9)


def agreeing(theta: Tensor, tested: Tensor, signs: Tensor) -> int:
    """In how many coordinates the move `tested - theta` has the sign s; one that has not moved counts by the sign of `-theta`, as in the
    released code. All are (d,)."""
    move = tested - theta
    return int((torch.where(move == 0, -theta, move).sign() == signs).sum())


def critical_count(d: int) -> int:
    """The count that fair coins reach with probability 0.01: `d / 2 + 2.33 * sqrt(d) / 2`, rounded."""
    return round(d / 2 + NormalDist().inv_cdf(1.0 - LEVEL) * d**0.5 / 2)
