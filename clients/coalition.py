"""The coalition's turn in a round: gather what it may know, ask the attack, enforce the budget."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from clients.accumulative.offset import within_budget
from clients.action import Action
from clients.catalogue import attacks
from clients.honest import RoundInputs, failing_clients
from clients.knowledge import HonestSum, Knowledge, KnownRule, weighted_mean
from fl_sim.config.keys import Config
from fl_sim.config.options import parse_options
from fl_sim.data.batches import Batch, CohortBatches
from fl_sim.data.sampling import malicious_clients
from fl_sim.rng.streams import stream
from fl_sim.training.local import block_updates, weighted_sum, weights_of
from fl_sim.wire.messages import AttackState, ClientReport, CoalitionOrder, CoalitionReply, PublicRule


def coalition_turn(inputs: RoundInputs, order: CoalitionOrder) -> CoalitionReply:
    """The malicious updates of a round, combined as the server's rule asks (reduced (1, d), or stacked (m, d))."""
    settings, members, lost = inputs.config.client, list(order.members), dict[int, str]()
    if inputs.config.fault.raises or inputs.config.fault.nan:
        lost = failing_clients(inputs, members)
        members = [client for client in members if client not in lost]
    failed = tuple(ClientReport(client, 0.0, float("nan"), reason) for client, reason in lost.items())
    if not members:
        nothing = torch.zeros(0 if inputs.stacked else 1, len(inputs.theta), device=inputs.theta.device)
        return CoalitionReply(nothing, failed, order.state, {})
    batches = inputs.federation.cohort(members, inputs.round, settings.local_steps, settings.batch_size, settings.weight)
    knowledge = gather(inputs, replace(order, members=tuple(members)), batches)
    action = checked_action(knowledge, order.state, inputs.config)
    sent, shift = within_budget(knowledge, action.updates)
    finite = torch.isfinite(sent).all(dim=1)
    if not bool(finite.all()):
        sent = sent[finite]
    weights = weights_of(batches)
    kept = [client for client, good in zip(members, finite.tolist(), strict=True) if good]
    kept_weights = [weight for weight, good in zip(weights, finite.tolist(), strict=True) if good]
    summed = weighted_sum(sent, kept_weights, inputs.before)
    reports = [ClientReport(client, w, norm) for client, w, norm in zip(kept, kept_weights, summed.norms, strict=True)]
    reports += [ClientReport(client, 0.0, float("nan"), "an update is not finite") for client in members if client not in kept]
    longest = float(torch.linalg.vector_norm(sent, dim=1).max()) if kept else 0.0
    metrics = {"fired": float(order.phase == "trigger"), **action.metrics, "shift_norm": shift, "malicious_norm": longest}
    if not kept:
        metrics["fired"] = 0.0
    updates = sent if inputs.stacked else summed.total.unsqueeze(0)
    return CoalitionReply(updates, (*reports, *failed), action.state if kept else order.state, metrics)


def checked_action(knowledge: Knowledge, state: AttackState, config: Config) -> Action:
    """What the attack of `attack.name` does in a round. Raises TypeError or ValueError for what is no action."""
    name = config.attack.name
    action = attacks.find(name)(knowledge, state, **parse_options(config.attack.options))
    if not isinstance(action, Action):  # pyright: ignore[reportUnnecessaryIsInstance] - it may be anybody's function
        raise TypeError(f"expected {name} to return a fl_sim.Action, got {type(action).__name__}")
    expected, sent = tuple(knowledge.updates.shape), action.updates
    if not isinstance(sent, Tensor) or tuple(sent.shape) != expected:  # pyright: ignore[reportUnnecessaryIsInstance]
        got = tuple(sent.shape) if isinstance(sent, Tensor) else type(sent).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"expected {name} to return updates of shape {expected}, one row per sampled member, got {got}")
    return action._replace(updates=sent.detach().to(knowledge.updates))


def gather(inputs: RoundInputs, order: CoalitionOrder, batches: CohortBatches) -> Knowledge:
    """The Knowledge of `attack.knowledge`, given what the members would train on."""
    config, attack = inputs.config, inputs.config.attack
    validation, trigger_batch = own_batches(inputs)
    draw = stream(config.seed, "validation-draw", inputs.round).permutation(len(validation.labels))[: attack.batch_size]
    return Knowledge(
        round=inputs.round,
        phase=order.phase,
        accumulate=order.accumulate,
        may_fire=config.schedule.triggers > 0,
        total_rounds=config.schedule.accumulate_rounds,
        model=inputs.model,
        num_classes=inputs.federation.dataset.num_classes,
        theta=inputs.theta,
        members=order.members,
        batches=batches,
        client=config.client,
        updates=block_updates(inputs.model, inputs.theta, batches, config.client),
        weights=torch.tensor(weights_of(batches), device=inputs.theta.device),
        num_sampled=order.num_sampled,
        server_lr=order.rule.step_size,
        validation=validation,
        drawn=torch.from_numpy(np.sort(draw)).to(validation.labels.device),
        trigger_batch=trigger_batch,
        settings=attack,
        own_seed=int(stream(config.seed, "coalition", inputs.round).integers(2**31)),
        rule=None if attack.knowledge == "coalition" else known_rule(config, order.rule),
        seen=HonestSum(order.honest_sum, order.honest_weight) if order.honest_sum is not None else None,
    )


def known_rule(config: Config, rule: PublicRule) -> KnownRule:
    """What a coalition that knows the rule knows of it: what the strategy publishes for this round."""
    if not rule.combine:
        return KnownRule(rule.name, rule.before, rule.after, None if rule.combine is None else weighted_mean)
    module, _, name = rule.combine.partition(":")

    def combine(updates: Tensor, weights: Tensor) -> Tensor:
        return getattr(importlib.import_module(module), name)(config)(updates, weights)

    return KnownRule(rule.name, rule.before, rule.after, combine)


def own_batches(inputs: RoundInputs) -> tuple[Batch, Batch]:
    """S_val and S_T: the coalition's own examples, S_T the first `attack.batch-size` of them but at most half.

    With `attack.data = "members"` they are the members' shares, first come first.
    """
    federation, attack = inputs.federation, inputs.config.attack
    own = federation.splits.own_set if attack.data == "own-set" else members_examples(inputs)
    split = min(attack.batch_size, len(own) // 2) if len(own) > 1 else 0
    trigger = own[:split] if split else own
    return federation.batch(federation.dataset.train, own[split:]), federation.batch(federation.dataset.train, trigger)


def members_examples(inputs: RoundInputs) -> np.ndarray:
    """Indices of all the coalition's members' examples, in client order."""
    shares = [inputs.federation.splits.shares[client] for client in sorted(malicious_clients(inputs.config))]
    return np.concatenate(shares)
