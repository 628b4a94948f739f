"""The coalition's turn in a round: gather what it may know, ask the attack, enforce the budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from clients.accumulative.offset import within_budget
from clients.catalogue import ATTACKS
from clients.honest import Work, failing_clients
from clients.knowledge import HonestSum, Knowledge, KnownRule
from fl_sim.config.keys import Config
from fl_sim.data.federation import Batch, CohortBatches
from fl_sim.data.sampling import malicious_clients
from fl_sim.rng.streams import stream
from fl_sim.training.clipping import Clip, clip_of
from fl_sim.training.local import block_updates, weighted_sum, weights_of
from fl_sim.wire.messages import ClientReport, CoalitionOrder, CoalitionReply


def coalition_turn(work: Work, order: CoalitionOrder) -> CoalitionReply:
    """The malicious updates of a round, combined as the server's rule asks (reduced (1, d), or stacked (m, d))."""
    settings, members, lost = work.config.client, list(order.members), dict[int, str]()
    if work.config.fault.raises or work.config.fault.nan:
        lost = failing_clients(work, members)
        members = [client for client in members if client not in lost]
    failed = tuple(ClientReport(client, 0.0, float("nan"), reason) for client, reason in lost.items())
    if not members:
        nothing = torch.zeros(0 if work.stacked else 1, len(work.theta), device=work.theta.device)
        return CoalitionReply(nothing, failed, order.state, {})
    batches = work.federation.cohort(members, work.round, settings.local_steps, settings.batch_size)
    knowledge = gather(work, replace(order, members=tuple(members)), batches)
    action = ATTACKS[work.config.attack.name](knowledge, order.state)
    sent, shift = within_budget(knowledge, action.updates)
    finite = torch.isfinite(sent).all(dim=1)
    if not bool(finite.all()):
        sent = sent[finite]
    weights = weights_of(batches)
    kept = [client for client, good in zip(members, finite.tolist(), strict=True) if good]
    kept_weights = [weight for weight, good in zip(weights, finite.tolist(), strict=True) if good]
    summed = weighted_sum(sent, kept_weights, work.before)
    reports = [ClientReport(client, w, norm) for client, w, norm in zip(kept, kept_weights, summed.norms, strict=True)]
    reports += [ClientReport(client, 0.0, float("nan"), "an update is not finite") for client in members if client not in kept]
    longest = float(torch.linalg.vector_norm(sent, dim=1).max()) if kept else 0.0
    metrics = {"fired": float(order.phase == "trigger"), **action.metrics, "shift-norm": shift, "malicious-norm": longest}
    if not kept:
        metrics["fired"] = 0.0
    updates = sent if work.stacked else summed.total.unsqueeze(0)
    return CoalitionReply(updates, (*reports, *failed), action.state if kept else order.state, metrics)


def gather(work: Work, order: CoalitionOrder, batches: CohortBatches) -> Knowledge:
    """The Knowledge of `attack.knowledge`, given what the members would train on."""
    config, attack = work.config, work.config.attack
    validation, trigger_batch = own_batches(work)
    draw = stream(config.seed, "validation-draw", work.round).permutation(len(validation.labels))[: attack.batch_size]
    return Knowledge(
        round=work.round,
        phase=order.phase,
        accumulate=order.accumulate,
        may_fire=config.schedule.triggers > 0,
        total_rounds=config.schedule.accumulate_rounds,
        model=work.model,
        num_classes=work.federation.dataset.num_classes,
        theta=work.theta,
        members=order.members,
        batches=batches,
        client=config.client,
        updates=block_updates(work.model, work.theta, batches, config.client),
        weights=torch.tensor(weights_of(batches), device=work.theta.device),
        num_sampled=order.num_sampled,
        server_lr=config.step_size,
        validation=validation,
        drawn=torch.from_numpy(np.sort(draw)).to(validation.labels.device),
        trigger_batch=trigger_batch,
        settings=attack,
        own_seed=int(stream(config.seed, "coalition", work.round).integers(2**31)),
        rule=None if attack.knowledge == "coalition" else known_rule(config, work.before),
        seen=HonestSum(order.honest_sum, order.honest_weight) if order.honest_sum is not None else None,
    )


def known_rule(config: Config, before: Clip | None) -> KnownRule:
    """What a coalition that knows the rule knows of it: the clip of each update that the server asks for in this round (DGC's changes),
    and the clip of the combined one.
    """
    strategy = config.strategy
    clips_after = strategy.name == "clip-after" or (strategy.name == "dgc" and strategy.scope == "aggregate")
    after = clip_of(strategy.norm, strategy.bound) if clips_after else None
    return KnownRule(strategy.name, before, after)


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
