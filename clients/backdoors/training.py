"""How members train on poisoned batches, and the boosters of their updates: projection, Neurotoxin's mask, model replacement."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.action import Action
from clients.knowledge import Knowledge
from fl_sim.data.batches import CohortBatches
from fl_sim.training.clipping import Clip, clip
from fl_sim.training.local import block_updates
from fl_sim.wire.messages import AttackState


def trained(knowledge: Knowledge, batches: CohortBatches, state: AttackState) -> Action:
    """The members' updates (m, d) after training on `batches` as honest clients train, with the boosters of `attack.*`.

    The order is that of the papers: mask and projection in each local step, then the factor. Without mask and projection the code is that
    of honest clients.
    """
    settings = knowledge.settings
    masked, projected = settings.mask_share > 0.0, settings.project_norm > 0.0
    mask = rare_coordinates(knowledge, state) if masked else torch.ones_like(knowledge.theta)
    updates = (
        constrained_updates(knowledge, batches, mask, settings.project_norm or float("inf"))
        if masked or projected
        else block_updates(knowledge.model, knowledge.theta, batches, knowledge.client)
    )
    factor = replacement_factor(knowledge) if settings.boost == 0.0 else settings.boost
    next_state = AttackState({"theta": knowledge.theta}) if masked else state
    return Action(updates if factor == 1.0 else factor * updates, next_state)


def replacement_factor(knowledge: Knowledge) -> float:
    """`gamma = W / sum_malicious w_i * client_lr / server_lr`: with it the weighted mean of the members' models replaces the global model.

    A member's local model is `X_i = theta - client_lr * g_i`. If the honest updates cancel and the server has no momentum, then
    `theta - server_lr * sum_i w_i gamma g_i / W = sum_malicious w_i X_i / sum_malicious w_i`.
    Source: Bagdasaryan et al. 2020, "How To Backdoor Federated Learning", Eq. 3: gamma = n / eta for one attacker of equal weight; m of
    them share it.
    """
    return knowledge.total_weight / float(knowledge.weights.sum()) * knowledge.client.learning_rate / knowledge.server_lr


def constrained_updates(knowledge: Knowledge, batches: CohortBatches, mask: Tensor, radius: float) -> Tensor:
    """Updates (m, d) of members that stay in a set: after each local step the update, the sum of the gradients so far, keeps only the
    coordinates of the mask (d,), and is projected onto the l2 ball of that radius (gradient units).

    Source: Wang et al. 2020, "Attack of the Tails", section 3.2 (PGD: the local model is projected onto the ball of radius delta around
    the global one; delta = client_lr * radius); Zhang et al. 2022, "Neurotoxin", Algorithm 1 (the mask).
    """
    rows: list[Tensor] = []
    for row, size in enumerate(batches.sizes):
        update = torch.zeros_like(knowledge.theta)
        for step in range(batches.labels.shape[1]):
            local = knowledge.theta - knowledge.client.learning_rate * update
            gradient = knowledge.model.gradient(local, batches.inputs[row, step, :size], batches.labels[row, step, :size])
            update = clip(update + mask * gradient, Clip("l2", radius))[0]
        rows.append(update)
    return torch.stack(rows)


def rare_coordinates(knowledge: Knowledge, state: AttackState) -> Tensor:
    """1 (d,) where honest clients hardly change the model, 0 in the `attack.mask-share` of coordinates that the last global update changed
    most.

    The last global update is how the model moved since the coalition last saw it; at first, `honest_t` stands for it. Source: Zhang et al.
    2022, "Neurotoxin: Durable Backdoors in Federated Learning", Algorithm 1, over all parameters at once.
    """
    earlier = state.arrays.get("theta")
    move = knowledge.honest_mean if earlier is None else earlier - knowledge.theta
    mask = torch.ones_like(move)
    mask[move.abs().topk(int(knowledge.settings.mask_share * len(move))).indices] = 0.0
    return mask
