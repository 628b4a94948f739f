"""Backdoors and the label flip of a pair of classes. Each is an attack with the success test that measures it."""

from __future__ import annotations

import torch
from torch import Tensor

from clients.action import Action
from clients.backdoors.patterns import bars, blended_with, noise, parts_of, square, stamped
from clients.backdoors.poisoning import poisoned, unchanged
from clients.backdoors.training import trained
from clients.knowledge import Knowledge
from clients.success import SuccessView, measured_by
from fl_sim.data.batches import Batch, CohortBatches
from fl_sim.rng.streams import stream
from fl_sim.wire.messages import AttackState


def _shape(inputs: Tensor) -> tuple[int, int, int]:
    channels, height, width = inputs.shape[-3:]
    return channels, height, width


def _all_to_target(view: SuccessView, inputs: Tensor) -> Batch:
    """Success is the target class, for every image."""
    return Batch(inputs, torch.full((len(inputs),), view.to_class, device=inputs.device))


def badnets_success(view: SuccessView, size: int = 0, place: str = "bottom-right", value: float = 1.0) -> Batch:
    """Test images with the square."""
    inputs = view.victims().inputs
    return _all_to_target(view, stamped(inputs, square(_shape(inputs), size, place), view.pixels, value))


@measured_by(badnets_success)
def badnets(knowledge: Knowledge, state: AttackState, size: int = 0, place: str = "bottom-right", value: float = 1.0) -> Action:
    """Training on images with a square of equal pixels, labelled as the target class.

    Source: Gu et al. 2017, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain".
    """
    mask = square(_shape(knowledge.batches.inputs), size, place)
    batches = poisoned(knowledge, lambda images, rows: stamped(images, mask, knowledge.pixels, value))
    return _sent(knowledge, batches, state)


def blended_success(view: SuccessView, blend: float = 0.2, pattern_seed: int = 0) -> Batch:
    """Test images blended with the pattern."""
    inputs = view.victims().inputs
    return _all_to_target(view, blended_with(inputs, noise(_shape(inputs), view.pixels, pattern_seed), _share(blend)))


@measured_by(blended_success)
def blended(knowledge: Knowledge, state: AttackState, blend: float = 0.2, pattern_seed: int = 0) -> Action:
    """Training on images mixed with a fixed image of noise, `(1 - blend) * x + blend * pattern`.

    Source: Chen et al. 2017, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", blended injection.
    """
    pattern = noise(_shape(knowledge.batches.inputs), knowledge.pixels, pattern_seed)
    return _sent(knowledge, poisoned(knowledge, lambda images, rows: blended_with(images, pattern, _share(blend))), state)


def dba_success(view: SuccessView, size: int = 0, gap: int = -1, place: str = "top-left", value: float = 1.0) -> Batch:
    """Test images with the whole pattern, which no member alone has trained on."""
    inputs = view.victims().inputs
    return _all_to_target(view, stamped(inputs, bars(_shape(inputs), size, gap, place).any(dim=0), view.pixels, value))


@measured_by(dba_success)
def dba(knowledge: Knowledge, state: AttackState, size: int = 0, gap: int = -1, place: str = "top-left", value: float = 1.0) -> Action:
    """Each member trains on its own part of the pattern, by its rank in the coalition.

    Source: Xie et al. 2020, "DBA: Distributed Backdoor Attacks against Federated Learning".
    """
    parts, ranks = (
        bars(_shape(knowledge.batches.inputs), size, gap, place),
        {client: rank for rank, client in enumerate(knowledge.coalition)},
    )
    hands = [parts_of(ranks[client], len(ranks)) for client in knowledge.members]
    masks = torch.stack([parts[hand].any(dim=0) for hand in hands])
    batches = poisoned(knowledge, lambda images, rows: stamped(images, masks[rows.cpu()], knowledge.pixels, value))
    return _sent(knowledge, batches, state)


def edge_case_success(view: SuccessView) -> Batch:
    """Images of the other source that no member has trained on."""
    return _all_to_target(view, view.edge_images().to(view.test.inputs))


@measured_by(edge_case_success)
def edge_case(knowledge: Knowledge, state: AttackState) -> Action:
    """Training on images of another source (`attack.edge-data`) in place of a share of the own ones, labelled as the target class.

    Source: Wang et al. 2020, "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning"; with a class of the same data set the
    semantic backdoor of Bagdasaryan et al. 2020, "How To Backdoor Federated Learning".
    """
    source = knowledge.edge_images()

    def replaced(images: Tensor, rows: Tensor) -> Tensor:
        drawn = stream(knowledge.own_seed, "edge-case").integers(len(source), size=len(images))
        return source[torch.from_numpy(drawn).to(source.device)].to(images)

    return _sent(knowledge, poisoned(knowledge, replaced, any_class=True), state)


def pair_success(view: SuccessView) -> Batch:
    """Test images of the source class as they are."""
    return _all_to_target(view, view.victims().inputs)


@measured_by(pair_success)
def label_flip_pair(knowledge: Knowledge, state: AttackState) -> Action:
    """Training on images of `attack.class` labelled as `attack.to-class`.

    Source: Tolpegin et al. 2020, "Data Poisoning Attacks Against Federated Learning Systems", section 3; Biggio et al. 2012, "Poisoning
    Attacks against Support Vector Machines".
    """
    return _sent(knowledge, poisoned(knowledge, unchanged), state)


def _sent(knowledge: Knowledge, batches: CohortBatches, state: AttackState) -> Action:
    """What the members send after training on `batches`; their honest updates, with the reason, if none of them could poison anything."""
    own = knowledge.batches
    if torch.equal(batches.labels, own.labels) and torch.equal(batches.inputs, own.inputs):
        return Action(knowledge.updates, state, {}, "no member has an example to poison in its batch")
    return trained(knowledge, batches, state)


def _share(blend: float) -> float:
    if not 0.0 <= blend <= 1.0:
        raise ValueError(f"expected attack.options blend from 0 to 1, got {blend}")
    return blend
