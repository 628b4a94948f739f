"""`boosted`: updates that `dgc-2` takes for help in one round, and that cancel in the next, when they count less.

Ours, found by somebody who was to break the defence (docs/results/dgc2.md). It multiplies an update whose cosine c with
the gradient G of its shortfall is positive by `1 + lambda c`. The coalition estimates G on its own examples and sends
`c G + sqrt(1 - c^2) h` at the bound in one round, and the negative of it, which counts once, in the next: what a client sent adds up to
nothing, what was applied adds up along h, the direction of `planned` without its part along G.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.benchmarks.attacks.planned_push import plan, published_bound
from fl_sim import Action, AttackState, Knowledge

FORGET = 100.0  # rounds over which the coalition's own references of the confidences follow, as the server's
REFRESH, STEPS = 20, 40  # rounds until the direction is planned anew; rounds that the plan looks ahead


def boosted(
    knowledge: Knowledge,
    state: AttackState,
    attacked: int = 6,
    cosine: float = 0.4,
    cancel: float = 1.8,
    share: float = 0.0,
    stagger: bool = False,
) -> Action:
    """Updates (m, d) of the members. Needs a server that clips each update, whose bound is published (`attack.knowledge`).

    cosine: c. cancel: by how many c^2 more of -G every second update holds, so that G is not helped. share: of a slow push besides.
    stagger: half of the members begin with the negative.
    """
    bound, rounds = published_bound("boosted", knowledge), int(state.scalars.get("rounds", 0.0))
    rest = (1.0 - cosine**2) ** 0.5
    confidences = _confidences(knowledge)
    first = state.arrays.get("first", confidences)
    reference = state.arrays.get("reference", confidences)
    reference = torch.maximum(reference + (confidences - reference) / FORGET, first)
    if rounds % REFRESH == 0:
        length = bound * len(knowledge.members) / knowledge.num_sampled * (share + 2.0 * cosine * rest)
        direction = plan(knowledge, attacked, bound, STEPS, length)
    else:
        direction = state.arrays["direction"]
    deficits = (reference - confidences).clamp(min=0.0)
    if not deficits.any():
        deficits[attacked] = 1.0
    help_ = F.normalize(_shortfall_gradient(knowledge, deficits), dim=0)
    h = F.normalize(direction - (direction @ help_) * help_, dim=0)
    taken = cosine * help_ + rest * h
    back = (2.0 * share - rest) * h - (cosine + cancel * cosine**2) * help_
    turns = [(rounds + (number if stagger else 0)) % 2 for number in range(len(knowledge.members))]
    updates = torch.stack([back if turn else taken for turn in turns])
    updates = bound * updates / updates.norm(dim=1, keepdim=True).clamp(min=1.0)
    return Action(updates, AttackState({"direction": direction, "first": first, "reference": reference}, {"rounds": rounds + 1.0}))


def _confidences(knowledge: Knowledge) -> Tensor:
    """The mean probability of the true class (c,), in percent, of each class of the coalition's own examples."""
    inputs, labels = knowledge.validation.inputs, knowledge.validation.labels
    with torch.no_grad():
        probabilities = knowledge.model.logits(knowledge.theta, inputs).softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    return torch.stack([100.0 * probabilities[labels == number].mean() for number in range(knowledge.num_classes)])


def _shortfall_gradient(knowledge: Knowledge, deficits: Tensor) -> Tensor:
    """The server's G (d,), on the coalition's examples."""
    inputs, labels = knowledge.validation.inputs, knowledge.validation.labels
    weights = (deficits / torch.bincount(labels, minlength=knowledge.num_classes).clamp(min=1))[labels]
    leaf = knowledge.theta.detach().requires_grad_()
    with torch.enable_grad():
        probabilities = knowledge.model.logits(leaf, inputs).softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
        (gradient,) = torch.autograd.grad(-(weights * probabilities).sum(), leaf)
    return gradient
