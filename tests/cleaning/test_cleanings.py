"""What every cleaning keeps, one from outside too, and what an honest client makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clients.cleaning.catalogue import CLEANINGS
from clients.cleaning.fitted import cleaning_problem
from clients.coalition import coalition_turn
from clients.honest import client_updates, compute_blocks, work_of
from clients.pixels import pixel_scale
from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.outside_code import OutsideCodeError
from fl_sim.training.local import block_sum, block_updates, weights_of
from fl_sim.wire.messages import NOTHING_LEFT, AttackState, CoalitionOrder
from tests.support.small_cleaning import OPTIONS, QUICK, cleaner_of, one_client, round_of

Configure = Callable[..., Config]
RANDOM = ("noise", "ebm", "ddpm")
NAMES = [name for name in CLEANINGS if name != "none"]


def configured(configure: Configure, name: str, **more: object) -> Config:
    return configure(**QUICK, cleaning__name=name, cleaning__options=OPTIONS.get(name, ""), **more)


@pytest.mark.parametrize("name", NAMES)
def test_contract(configure: Configure, name: str) -> None:
    """Shape, labels, pixels of [0, 1], nothing written into, the same twice; and it does something to images full of noise."""
    inputs = round_of(configured(configure, name, cleaning__p0=0.0))
    batches = inputs.federation.cohort([1, 4], 1, 2, 5)
    spoiled = batches._replace(inputs=torch.randn(batches.inputs.shape, generator=torch.Generator().manual_seed(0)).clamp(-0.5, 0.5))
    before = spoiled.inputs.clone()
    first, second = (cleaner_of(inputs)([1, 4], spoiled) for _ in range(2))
    assert torch.equal(spoiled.inputs, before)
    assert torch.equal(first.batches.inputs, second.batches.inputs)
    assert torch.equal(first.batches.labels, batches.labels)
    assert first.batches.inputs.shape == batches.inputs.shape
    scale = pixel_scale(inputs.federation.dataset, inputs.theta.device)
    assert scale is not None
    assert torch.isfinite(first.batches.inputs).all()
    assert ((first.batches.inputs >= scale.black) & (first.batches.inputs <= scale.white)).all()
    assert first.clean.images == 20
    assert first.clean.changed + first.clean.dropped > 0
    sums = first.batches.weights.sum(dim=2)
    assert torch.isin(sums.round(decimals=5), torch.tensor([0.0, 1.0])).all(), "what is left of a batch is its mean"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RANDOM])
def test_n_clients_with_one_image_are_one_client_with_n_images(configure: Configure, name: str) -> None:
    """The weighted mean of their updates, up to rounding; a client whose image is dropped counts nothing."""
    inputs = round_of(configured(configure, name, client__batch_size=1, cleaning__fpr=0.3))
    many = inputs.federation.cohort(list(range(12)), 1, 1, 1)
    one = work_of(inputs, [0], one_client(many))
    each = work_of(inputs, list(range(12)), many)
    weights = torch.tensor(each.weights)
    assert float(weights.sum()) == one.weights[0]
    assert (one.weights[0] < 12) == name.startswith("filter")
    torch.testing.assert_close(weights @ client_updates(inputs, each) / weights.sum(), client_updates(inputs, one)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dsc", "filter-kd", "noise"])
def test_every_way_to_compute_updates_cleans(configure: Configure, name: str) -> None:
    """One by one, by vmap, and as one joint batch; the same up to rounding, and other than without the cleaning."""
    inputs = round_of(configured(configure, name, cleaning__p0=0.01, cleaning__fpr=0.3, client__local_steps=1))
    clients = list(range(4))
    raw = inputs.federation.cohort(clients, 1, 1, 10)
    work = work_of(inputs, clients, raw)
    rows = {
        engine: block_updates(inputs.model, inputs.theta, work.batches, inputs.config.client.model_copy(update={"engine": engine}))
        for engine in ("loop", "vmap")
    }
    torch.testing.assert_close(rows["loop"], rows["vmap"], rtol=1e-4, atol=1e-6)
    joint = block_sum(inputs.model, inputs.theta, work.batches, inputs.config.client, None)
    torch.testing.assert_close(joint.total, torch.tensor(work.weights) @ rows["loop"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(rows["loop"], block_updates(inputs.model, inputs.theta, raw, inputs.config.client), atol=1e-3)


def test_local_steps_with_dropped_images(configure: Configure) -> None:
    """Each step takes the mean over the images that are left of its own batch: against a loop over them."""
    inputs = round_of(configured(configure, "filter-gda", cleaning__fpr=0.4, client__local_steps=3))
    raw = inputs.federation.cohort([2], 1, 3, 10)
    work = work_of(inputs, [2], raw)
    update = torch.zeros_like(inputs.theta)
    kept = work.batches.weights[0] > 0
    assert len({int(count) for count in kept.sum(dim=1)}) > 1
    for step in range(3):
        local = inputs.theta - inputs.config.client.learning_rate * update
        update += inputs.model.gradient(local, raw.inputs[0, step][kept[step]], raw.labels[0, step][kept[step]])
    torch.testing.assert_close(client_updates(inputs, work)[0], update, rtol=1e-4, atol=1e-5)
    assert work.weights == [int(kept.sum())]


def test_a_client_whose_images_are_all_dropped_sends_nothing(configure: Configure) -> None:
    inputs = round_of(configured(configure, "filter-kd"))
    everything = replace(inputs, fitted={**inputs.fitted, "start": torch.tensor(-math.inf)})
    for stacked in (False, True):
        results = compute_blocks(replace(everything, stacked=stacked), ((0, (0, 1)),), last_attempt=False)
        assert [report.failure for report in results.reports[0]] == [NOTHING_LEFT, NOTHING_LEFT]
        value = results.rows[0] if stacked else results.sums[0]
        assert value.numel() == 0 if stacked else not value.any()
        assert results.cleaning[0].dropped == results.cleaning[0].images == 20


def test_shrunk_updates_have_the_length_that_the_cleaning_leaves_and_their_own_direction(configure: Configure) -> None:
    inputs = round_of(configured(configure, "correct-all"))
    shrunk = replace(inputs, config=configured(configure, "correct-all", cleaning__shrunk=True))
    clients = [0, 1, 2, 3]
    raw = inputs.federation.cohort(clients, 1, 1, 10)
    plain = block_updates(inputs.model, inputs.theta, raw, inputs.config.client)
    cleaned, control = (client_updates(i, work_of(i, clients, raw)) for i in (inputs, shrunk))
    factor = float(cleaned.norm(dim=1).mean() / plain.norm(dim=1).mean())
    assert factor < 0.9, "correction makes images easy"
    torch.testing.assert_close(control, factor * plain)
    (total,) = compute_blocks(shrunk, ((0, (0, 1, 2, 3)),), last_attempt=False).sums.values()
    torch.testing.assert_close(total, torch.tensor(weights_of(raw)) @ control)


@pytest.mark.parametrize("name", ["jpeg", "ebm"])
def test_a_poisoned_source_is_behind_honest_software(configure: Configure, name: str) -> None:
    """Members' moved images go through the cleaning: what they send is not the gradient of the images that the attack made."""
    attack = {"attack__surface": "images", "attack__malicious_fraction": 0.5, "attack__epsilon": 0.3}
    config = configured(configure, name, **attack)
    order = CoalitionOrder((0, 1), "trigger", True, 12, AttackState())
    raw, cleaned = (coalition_turn(replace(round_of(c), stacked=True), order) for c in (config, configure(**QUICK, **attack))[::-1])
    assert raw.poisoned is None
    assert cleaned.poisoned is not None
    assert cleaned.poisoned.images == cleaned.poisoned.changed == 20
    assert cleaned.clean is not None
    assert cleaned.clean.images == 0
    assert not torch.allclose(raw.updates, cleaned.updates, atol=1e-2)


def test_moles_go_through_the_cleaning(configure: Configure) -> None:
    config = configured(configure, "filter-kd", attack__name="moles", cleaning__fpr=0.5)
    inputs = replace(round_of(config), stacked=True)
    reply = coalition_turn(inputs, CoalitionOrder((0, 1), "accumulate", True, 12, AttackState()))
    assert reply.poisoned is not None
    assert reply.clean is not None
    assert reply.poisoned.images == reply.metrics["moles"]
    assert reply.poisoned.images + reply.clean.images == 20
    assert sum(report.weight for report in reply.reports) == 20 - reply.poisoned.dropped - reply.clean.dropped < 20


OWN = """
import torch
from fl_sim.data.batches import Batch

def darker(batch, context, by=0.5):
    assert context.theta.shape == context.history.shape and context.round == 1 and context.model.logits(context.theta, batch.inputs).shape[1]
    batch.inputs.zero_()  # ours to write into
    return batch._replace(inputs=batch.inputs - by)

def first_two(batch, context):
    return Batch(batch.inputs[:2], batch.labels[:2])

def shuffled(batch, context):
    return batch.inputs + 0.01 * torch.randn(batch.inputs.shape), batch.labels

def three(batch, context):
    return batch.inputs[:, :, :3], batch.labels

def raises(batch, context):
    raise KeyError("no")

def nothing(batch, context):
    return None
"""


def test_a_cleaning_from_outside(configure: Configure, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)

    def result(name: str, **more: object) -> tuple[torch.Tensor, list[float], torch.Tensor]:
        inputs = round_of(configure(**QUICK, cleaning__name=f"{file}:{name}", **more))
        raw = inputs.federation.cohort([0, 3], 1, 1, 10)
        work = work_of(inputs, [0, 3], raw)
        return work.batches.inputs, work.weights, raw.inputs

    inputs, weights, _ = result("darker", cleaning__options='{"by": 0.25}')
    assert (inputs == -0.25).all()
    assert weights == [10, 10]
    inputs, weights, raw = result("first_two")
    assert weights == [2, 2]
    assert torch.equal(inputs[:, :, :2], raw[:, :, :2])
    assert torch.equal(result("shuffled")[0], result("shuffled")[0]), "global generators are seeded for each call"
    for name, words in (("three", "to return at most 10 images"), ("raises", r"own.py, line 20: KeyError"), ("nothing", "got NoneType")):
        with pytest.raises(OutsideCodeError, match=words):
            result(name)


def test_what_a_cleaning_cannot_be_used_with_is_one_sentence(configure: Configure) -> None:
    few = configure(cleaning__name="filter-lid", data__public_size=5)
    assert cleaning_problem(few, load_federation(few)) == "expected data.public-size >= 20 with cleaning.name = 'filter-lid', got 5"
