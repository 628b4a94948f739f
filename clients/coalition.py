"""The coalition's turn in a round: gather its knowledge, call the attack, enforce the budget."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clients.accumulative.offset import within_budget
from clients.action import Action
from clients.backdoors.edge_images import edge_images
from clients.delivery import alternating, rehearsed
from clients.honest import RoundInputs, Work, client_updates, failing_clients, work_of
from clients.images.enforcement import enforce
from clients.images.surface import moved_images
from clients.knowledge import HonestSum, HonestUpdates, Knowledge, KnownRule, no_share, pixel_range, weighted_mean
from clients.outside_attack import checked_action
from clients.pixels import pixel_scale
from fl_sim.config.keys import Config
from fl_sim.data.batches import Batch, CohortBatches
from fl_sim.data.sampling import in_order, malicious_clients
from fl_sim.model.module import initial_module
from fl_sim.model.vectors import flat_parameters
from fl_sim.rng.streams import stream
from fl_sim.training.local import weighted_sum, weights_of
from fl_sim.wire.messages import NOTHING_LEFT, AttackState, ClientReport, CoalitionOrder, CoalitionReply, PublicRule


def coalition_turn(inputs: RoundInputs, order: CoalitionOrder) -> CoalitionReply:
    """The malicious updates of a round, combined as the server's rule asks (reduced (1, d), or stacked (m, d))."""
    settings, members, reasons = inputs.config.client, list(order.members), dict[int, str]()
    if inputs.config.fault.raises or inputs.config.fault.nan:
        reasons = failing_clients(inputs, members)
        members = [client for client in members if client not in reasons]
    failures = tuple(ClientReport(client, 0.0, float("nan"), reason) for client, reason in reasons.items())
    if not members:
        zeros = torch.zeros(0 if inputs.stacked else 1, len(inputs.theta), device=inputs.theta.device)
        return CoalitionReply(zeros, failures, order.state, {})
    batches = inputs.federation.cohort(members, inputs.round, settings.local_steps, settings.batch_size, settings.weight)
    own = work_of(inputs, members, batches)
    knowledge = gather(inputs, replace(order, members=tuple(members)), batches, client_updates(inputs, own))
    action = act(knowledge, order.state, inputs.config)
    if order.honest_trigger and action.metrics.get("fired", float(order.phase == "trigger")):
        action = action._replace(updates=knowledge.updates, images=None)
    sent = sent_updates(inputs, knowledge, action, own)
    finite, left = torch.isfinite(sent.updates).all(dim=1), torch.tensor(sent.weights, device=inputs.theta.device) > 0
    usable = finite & left
    figures = _figures(knowledge, sent.updates[usable], sent.shift)
    updates_sent = sent.updates if bool(usable.all()) else sent.updates[usable]
    senders = [client for client, good in zip(members, usable.tolist(), strict=True) if good]
    sender_weights = [weight for weight, good in zip(sent.weights, usable.tolist(), strict=True) if good]
    summed = weighted_sum(updates_sent, sender_weights, inputs.before)
    reports = [ClientReport(client, w, norm) for client, w, norm in zip(senders, sender_weights, summed.norms, strict=True)]
    reports += [
        ClientReport(client, 0.0, float("nan"), "an update is not finite" if kept else NOTHING_LEFT)
        for client, good, kept in zip(members, usable.tolist(), left.tolist(), strict=True)
        if not good
    ]
    fires = order.phase == "trigger" and not action.reason
    metrics = {"fired": float(fires), **action.metrics, **sent.figures, **figures}
    if not senders:
        metrics["fired"] = 0.0
    updates = updates_sent if inputs.stacked else summed.total.unsqueeze(0)
    state = action.state if senders else order.state
    reply = CoalitionReply(updates, (*reports, *failures), state, metrics, action.reason)
    return replace(reply, clean=sent.work.clean, poisoned=sent.work.poisoned)


def _figures(knowledge: Knowledge, sent: Tensor, shift: float) -> dict[str, float]:
    """Figures of a round that do not depend on the attack: how long the updates sent (k, d) are, beside what the members would honestly
    send; whether they differ from that; and the shift that the attack wanted."""
    lengths = torch.linalg.vector_norm(sent, dim=1, dtype=torch.float64)  # the square of a long update is beyond float32
    honest = torch.linalg.vector_norm(knowledge.updates, dim=1, dtype=torch.float64)
    of_sent = [lengths.max(), lengths.quantile(0.5)] if len(sent) else [honest.new_zeros(()), honest.new_zeros(())]
    norm, median, honest_norm = torch.stack([*of_sent, honest.quantile(0.5)]).tolist()
    return {
        "acted": float(len(sent) != len(knowledge.updates) or not torch.equal(sent, knowledge.updates)) if len(sent) else 0.0,
        "shift_norm": shift,
        "malicious_norm": norm,
        "malicious_median": median,
        "honest_norm": honest_norm,
    }


def act(knowledge: Knowledge, state: AttackState, config: Config) -> Action:
    """The action of the attack in a round; with `attack.surface = "images"` it proposes images, with `attack.delivery` its updates are
    fitted to the server's rule, or hidden in a part that cancels."""
    if config.attack.surface == "images":
        return moved_images(lambda shown, earlier: checked_action(shown, earlier, config), knowledge, state)
    action = checked_action(knowledge, state, config)
    deliver = {"rehearse": rehearsed, "alternating": alternating}.get(config.attack.delivery)
    return deliver(knowledge, action) if deliver else action


class Sent(NamedTuple):
    """What the members send: updates (m, d) and their weights; how far they move the combined update; figures of the images; and the work
    of honest software behind it (empty if the attack sends vectors)."""

    updates: Tensor
    weights: list[float]
    shift: float
    figures: dict[str, float]
    work: Work


def sent_updates(inputs: RoundInputs, knowledge: Knowledge, action: Action, own: Work) -> Sent:
    """What the members send: updates of an attack within its budget, or those of the batches or images that it proposes, computed by the
    software of honest clients, cleaning included. Images have a budget of their own, in pixels.

    The batches are drawn again, because an attack may have written into those that it was given. Args: own, of the members' own batches.
    """
    attack, settings, members = inputs.config.attack, inputs.config.client, list(knowledge.members)
    if action.images is None and torch.equal(action.updates, knowledge.updates):
        return Sent(*_limited(knowledge, action.updates, own.weights), {}, own)
    cleaned = action.batches if inputs.config.cleaning.name != "none" else None
    if action.images is None and cleaned is None:
        return Sent(*_limited(knowledge, action.updates, weights_of(knowledge.batches)), {}, Work(knowledge.batches))
    drawn = inputs.federation.cohort(members, inputs.round, settings.local_steps, settings.batch_size, settings.weight)
    if action.images is None:
        assert cleaned is not None
        work = work_of(inputs, members, cleaned, drawn)
        return Sent(*_limited(knowledge, client_updates(inputs, work), work.weights), {}, work)
    scale = pixel_scale(inputs.federation.dataset, inputs.theta.device)
    if scale is None:
        raise ValueError("expected a data set of images for an attack that proposes images, got features")
    batches, figures = enforce(drawn, action.images, scale, attack.epsilon, attack.image_fraction)
    work = work_of(inputs, members, batches, drawn)
    updates = client_updates(inputs, work)
    return Sent(updates, work.weights, within_budget(knowledge, updates)[1], figures, work)


def _limited(knowledge: Knowledge, updates: Tensor, weights: list[float]) -> tuple[Tensor, list[float], float]:
    """Updates within the budget, their weights, and how far they move the combined update."""
    limited, shift = within_budget(knowledge, updates)
    return limited, weights, shift


def gather(inputs: RoundInputs, order: CoalitionOrder, batches: CohortBatches, updates: Tensor) -> Knowledge:
    """The Knowledge at the level of `attack.knowledge`. batches: the members' own; updates (m, d): what they would honestly send."""
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
        updates=updates,
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
        shown=None if order.honest_updates is None else HonestUpdates(order.honest_updates, inputs.theta.new_tensor(order.update_weights)),
        pixel_scale=pixel_scale(inputs.federation.dataset, inputs.theta.device),
        share=lambda member: member_share(inputs, member),
        momentum=config.server.momentum,
        coalition=in_order(malicious_clients(config)),
        pixels=pixel_range(inputs.federation.dataset, inputs.theta.device),
        edge_images=lambda: edge_images(config, inputs.federation.dataset, "train", inputs.theta.device),
        random_model=lambda seed: random_model(inputs, seed),
    )


def known_rule(config: Config, rule: PublicRule) -> KnownRule:
    """The rule as the strategy publishes it for this round."""
    if not rule.combine:
        return KnownRule(rule.name, rule.before, rule.after, None if rule.combine is None else weighted_mean)
    module, _, name = rule.combine.partition(":")

    def combine(updates: Tensor, weights: Tensor) -> Tensor:
        return getattr(importlib.import_module(module), name)(config)(updates, weights)

    return KnownRule(rule.name, rule.before, rule.after, combine)


def random_model(inputs: RoundInputs, seed: int) -> Tensor:
    """Parameters (d,) of the configured architecture, drawn anew from a seed."""
    dataset, config = inputs.federation.dataset, inputs.config.model_copy(update={"seed": seed})
    return flat_parameters(initial_module(config, dataset.image_shape, dataset.num_classes)).to(inputs.theta)


def own_batches(inputs: RoundInputs) -> tuple[Batch, Batch]:
    """S_val and S_T, from the coalition's own examples: S_T is the first `attack.batch-size` of them, but at most half; S_val is the rest.

    With `attack.data = "members"` the own examples are all members' shares in the order of their ids.
    """
    federation, attack = inputs.federation, inputs.config.attack
    own = federation.splits.own_set if attack.data == "own-set" else members_examples(inputs)
    split = min(attack.batch_size, len(own) // 2) if len(own) > 1 else 0
    trigger = own[:split] if split else own
    return federation.batch(federation.dataset.train, own[split:]), federation.batch(federation.dataset.train, trigger)


def member_share(inputs: RoundInputs, member: int) -> Batch:
    """All examples of a member of the coalition, in the order of its share. Raises LookupError for any other client."""
    if member not in malicious_clients(inputs.config):
        return no_share(member)
    return inputs.federation.batch(inputs.federation.dataset.train, inputs.federation.splits.shares[member])


def members_examples(inputs: RoundInputs) -> np.ndarray:
    """Indices of all the coalition's members' examples, in client order."""
    return np.concatenate(inputs.federation.splits.of(in_order(malicious_clients(inputs.config))))
