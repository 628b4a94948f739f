"""The coalition's turn in a round: gather what it may know, ask the attack, enforce the budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clients.attacks import ATTACKS
from clients.honest import Work, failing_clients, updates_of
from clients.knowledge import Knowledge, Omniscient, RuleAware
from clients.offset import within_budget
from fl_sim.clipping import Clip, clip_of
from fl_sim.config import Config
from fl_sim.federation import Batch
from fl_sim.messages import ClientReport, CoalitionOrder, CoalitionReply
from fl_sim.randomness import stream
from fl_sim.sampling import malicious_clients
from fl_sim.training import weighted_sum


def coalition_turn(work: Work, order: CoalitionOrder) -> CoalitionReply:
    """The malicious updates of a round, combined as the server's rule asks (reduced (1, d), or stacked (m, d))."""
    lost = failing_clients(work, list(order.members))
    members = [client for client in order.members if client not in lost]
    failed = tuple(ClientReport(client, 0.0, float("nan"), reason) for client, reason in lost.items())
    if not members:
        nothing = torch.zeros(0 if work.stacked else 1, len(work.theta), device=work.theta.device)
        return CoalitionReply(nothing, failed, order.state, {})
    order = replace(order, members=tuple(members))
    updates, weights = updates_of(work, members)
    knowledge = gather(work, order, updates, weights)
    action = ATTACKS[work.config.attack.name](knowledge, order.state)
    sent, shift = within_budget(knowledge, action.updates)
    finite = torch.isfinite(sent).all(dim=1)
    if not bool(finite.all()):
        sent = sent[finite]
    kept = [client for client, good in zip(order.members, finite.tolist(), strict=True) if good]
    kept_weights = [weight for weight, good in zip(weights, finite.tolist(), strict=True) if good]
    summed = weighted_sum(sent, kept_weights, work.before)
    reports = [ClientReport(client, w, norm) for client, w, norm in zip(kept, kept_weights, summed.norms, strict=True)]
    reports += [ClientReport(c, 0.0, float("nan"), "an update is not finite") for c in order.members if c not in kept]
    state = action.state if kept else order.state
    metrics = {**action.metrics, "shift-norm": shift, "fired": action.metrics["fired"] if kept else 0.0}
    return CoalitionReply(sent if work.stacked else summed.total.unsqueeze(0), (*reports, *failed), state, metrics)


def gather(work: Work, order: CoalitionOrder, updates: Tensor, weights: list[float]) -> Knowledge:
    """The Knowledge of `attack.knowledge`."""
    config = work.config
    validation, trigger_batch = own_batches(work)
    draw = stream(config.seed, "validation-draw", work.round).permutation(len(validation.labels))[: config.attack.batch_size]
    where = torch.from_numpy(np.sort(draw)).to(validation.labels.device)
    knowledge = Knowledge(
        round=work.round,
        phase=order.phase,
        accumulate=order.accumulate,
        may_fire=config.schedule.triggers > 0,
        total_rounds=config.schedule.accumulate_rounds,
        model=work.model,
        theta=work.theta,
        members=order.members,
        updates=updates,
        weights=torch.tensor(weights, device=work.theta.device),
        num_sampled=order.num_sampled,
        server_lr=config.server.learning_rate,
        validation=validation,
        validation_draw=Batch(validation.inputs[where], validation.labels[where]),
        trigger_batch=trigger_batch,
        settings=config.attack,
        own_seed=int(stream(config.seed, "coalition", work.round).integers(2**31)),
    )
    if config.attack.knowledge == "coalition":
        return knowledge
    aware: dict[str, Any] = {**vars(knowledge), "before": rule_clip(config, "clip-before"), "after": rule_clip(config, "clip-after")}
    if order.honest_sum is None:
        return RuleAware(**aware)
    return Omniscient(**aware, seen_sum=order.honest_sum, seen_weight=order.honest_weight)


def rule_clip(config: Config, slot: str) -> Clip | None:
    """What a coalition that knows the rule knows of this slot: its clip if the strategy has one there."""
    return clip_of(config.strategy.norm, config.strategy.bound) if config.strategy.name == slot else None


def own_batches(work: Work) -> tuple[Batch, Batch]:
    """S_val and S_T: the coalition's own examples, S_T the first `attack.batch-size` of them but at most half.

    With `attack.data = "members"` they are the members' shares, first come first.
    """
    federation, attack = work.federation, work.config.attack
    own = federation.splits.own_set if attack.data == "own-set" else members_examples(work)
    split = min(attack.batch_size, len(own) // 2) if len(own) > 1 else 0
    trigger = own[:split] if split else own
    return federation.batch(federation.dataset.train, own[split:]), federation.batch(federation.dataset.train, trigger)


def members_examples(work: Work) -> np.ndarray:
    """Indices of all the coalition's members' examples, in client order."""
    shares = [work.federation.splits.shares[client] for client in sorted(malicious_clients(work.config))]
    return np.concatenate(shares)
