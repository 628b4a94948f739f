"""Min-Max and Min-Sum: as far from the mean as the honest updates are from each other.

Source: Shejwalkar and Houmansadr 2021, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
Learning", section IV-D, the attacks without knowledge of the server's rule. Where we differ: they search gamma with halved steps; we
solve the condition, which is quadratic in gamma.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.action import Action
from clients.knowledge import Knowledge
from fl_sim.wire.messages import AttackState


def min_max(knowledge: Knowledge, state: AttackState) -> Action:
    """`mean(g) + gamma * p` with the largest gamma such that `max_i |A - g_i| <= max_ij |g_i - g_j|`."""
    rows = knowledge.honest_rows()
    p, offsets = perturbation(rows, knowledge.settings.perturbation), rows.mean(dim=0) - rows
    widest = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square().max()
    gamma = _root(p.square().sum(), offsets @ p, offsets.square().sum(dim=1) - widest).min()
    return Action((rows.mean(dim=0) + gamma * p).expand_as(knowledge.updates).clone())


def min_sum(knowledge: Knowledge, state: AttackState) -> Action:
    """`mean(g) + gamma * p` with the largest gamma such that `sum_i |A - g_i|^2 <= max_i sum_j |g_i - g_j|^2`."""
    rows = knowledge.honest_rows()
    p, offsets = perturbation(rows, knowledge.settings.perturbation), rows.mean(dim=0) - rows
    widest = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square().sum(dim=1).max()
    gamma = _root(len(rows) * p.square().sum(), (offsets @ p).sum(), offsets.square().sum() - widest)
    return Action((rows.mean(dim=0) + gamma * p).expand_as(knowledge.updates).clone())


def perturbation(rows: Tensor, kind: str) -> Tensor:
    """The direction p (d,) away from the mean of rows (m, d): `-std` per coordinate, `-mean/|mean|` (unit), or `-sign(mean)`."""
    mean = rows.mean(dim=0)
    if kind == "std":
        return -rows.std(dim=0, correction=0)
    return -F.normalize(mean, dim=0) if kind == "unit" else -mean.sign()


def _root(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The larger root of `a x^2 + 2 b x + c` with c <= 0, the largest x for which it is not positive. 0 where a is 0."""
    return ((b.square() - a * c).clamp(min=0.0).sqrt() - b).div(a).nan_to_num(0.0, 0.0, 0.0).clamp(min=0.0)
