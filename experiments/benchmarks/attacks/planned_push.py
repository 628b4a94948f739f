"""`planned`: a push that honest training undoes least, in the form that `dgc-2` lets through.

Ours (docs/results/dgc2.md). The coalition plays `steps` rounds of clipped honest training on its own examples twice, with
and without a small push against one class. What lies between the two models is what is left of the push, about the inverse Hessian times
its gradient. This difference is the direction for the next `refresh` rounds. Each member sends it with the cosine `share` at the bound, and
the rest of its update cancels in the next round.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fl_sim import Action, AttackState, Knowledge

RATE, PUSH = 0.3, 0.014  # of the coalition's own training: server_lr / (1 - momentum) of the preset, and the length of the push
EXAMPLES = 80  # of its own, that stand for the honest clients of a round
WIDTH = 2.0  # of the sigmoid that stands for accuracy


def planned(
    knowledge: Knowledge, state: AttackState, attacked: int = 6, share: float = 0.226, refresh: int = 20, steps: int = 40
) -> Action:
    """Updates (m, d) of the members. Needs a server that clips each update, whose bound is published (`attack.knowledge`)."""
    bound, rounds = published_bound("planned", knowledge), int(state.scalars.get("rounds", 0.0))
    direction = plan(knowledge, attacked, bound, steps) if rounds % refresh == 0 else state.arrays["direction"]
    turn = (1.0 if knowledge.round % 2 else -1.0) * (1.0 - share**2) ** 0.5
    updates = torch.stack([bound * (share * direction + turn * rest_of(member, direction)) for member in knowledge.members])
    return Action(updates, AttackState({"direction": direction}, {"rounds": rounds + 1.0}))


def published_bound(attack: str, knowledge: Knowledge) -> float:
    """The bound of the server's clip of each update. Raises ValueError without one, in the name of the attack."""
    if knowledge.bound is None:
        raise ValueError(f"{attack} needs a strategy that clips each update: its members send updates as long as the bound")
    return knowledge.bound.bound


def rest_of(member: int, direction: Tensor) -> Tensor:
    """A member's own unit vector (d,), orthogonal to the direction, the same in every round."""
    drawn = torch.randn(len(direction), generator=torch.Generator().manual_seed(7919 * member + 13)).to(direction)
    return F.normalize(drawn - (drawn @ direction) * direction, dim=0)


def plan(knowledge: Knowledge, attacked: int, bound: float, steps: int, push_length: float = PUSH) -> Tensor:
    """The direction (d,), a unit vector, of what `steps` rounds of honest training leave of a push of this length in each of them."""
    inputs, labels = knowledge.validation.inputs, knowledge.validation.labels
    generator = torch.Generator().manual_seed(knowledge.own_seed)
    pushed, alone = knowledge.theta.clone(), knowledge.theta.clone()
    for _ in range(steps):
        drawn = torch.randint(len(labels), (EXAMPLES,), generator=generator).to(labels.device)
        push = F.normalize(_against(knowledge, pushed, inputs[labels == attacked], labels[labels == attacked]), dim=0)
        pushed = pushed - RATE * (_honest(knowledge, pushed, inputs[drawn], labels[drawn], bound) + push_length * push)
        alone = alone - RATE * _honest(knowledge, alone, inputs[drawn], labels[drawn], bound)
    return F.normalize(alone - pushed, dim=0)  # the server subtracts it


def _honest(knowledge: Knowledge, theta: Tensor, inputs: Tensor, labels: Tensor, bound: float) -> Tensor:
    """The mean (d,) of the clipped gradients of single examples."""
    gradients = knowledge.model.gradients(theta, inputs.unsqueeze(1), labels.unsqueeze(1), torch.ones(len(labels), 1).to(theta))
    return (gradients * (bound / gradients.norm(dim=1, keepdim=True)).clamp(max=1.0)).mean(dim=0)


def _against(knowledge: Knowledge, theta: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    """The gradient (d,) of the mean of `sigmoid((z_y - max_{j != y} z_j) / width)`, nearly the accuracy."""
    leaf = theta.detach().requires_grad_()
    with torch.enable_grad():
        logits = knowledge.model.logits(leaf, inputs)
        own = labels.unsqueeze(1)
        lead = logits.gather(1, own).squeeze(1) - logits.scatter(1, own, float("-inf")).amax(dim=1)
        (gradient,) = torch.autograd.grad(torch.sigmoid(lead / WIDTH).mean(), leaf)
    return gradient
