"""Attacks that move pixels: the gradient on pixels, what the caller enforces, and that the update is a true gradient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clients.accumulative.attack import accumulative
from clients.accumulative.trigger import trigger_vector
from clients.accumulative.trigger_only import trigger_only
from clients.coalition import coalition_turn
from clients.honest import RoundInputs
from clients.images.enforcement import ball, enforce, supplied_places
from clients.images.pgd import Examples, cosine_pull, product_gradient
from clients.images.surface import TRIGGER_IMAGES, expected_trigger, moved_images, toward, trigger_images
from clients.knowledge import HonestSum, Knowledge
from clients.pixels import PixelScale, pixel_scale
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.data.batches import CohortBatches
from fl_sim.data.datasets import normalised
from fl_sim.data.federation import load_federation
from fl_sim.grid.transports import InlineTransport
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from fl_sim.model.vectors import flat_parameters
from fl_sim.training.local import block_updates
from fl_sim.wire.messages import AttackState, CoalitionOrder
from tests.support.runs import fingerprint, lines, run, theta
from tests.support.small_knowledge import knowledge_of
from tests.support.workers import Workers, encoded_answer

Configure = Callable[..., Config]
SCALE = PixelScale(torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), -4.0), torch.full((1, 1, 1), 4.0))  # pixels 0 to 4: nothing is clipped
HONEST = {"attack__name": "none", "attack__malicious_fraction": 0.0}


def known(m: int = 3, **settings: Any) -> Knowledge:
    """Members whose updates are those of their batches."""
    k = dataclasses.replace(knowledge_of(m, **{"surface": "images", "epsilon": 0.5, **settings}), pixel_scale=SCALE)
    inputs = k.batches.inputs.clamp(-3.9, 3.9)
    k = dataclasses.replace(k, batches=k.batches._replace(inputs=inputs))
    return dataclasses.replace(k, updates=block_updates(k.model, k.theta, k.batches, k.client))


def mean_of(k: Knowledge, images: Tensor) -> Tensor:
    """The weighted mean of the members' updates if these are their images."""
    updates = block_updates(k.model, k.theta, k.batches._replace(inputs=images), k.client)
    return k.weights @ updates / k.weights.sum()


@pytest.mark.parametrize("difference", [0.0, 1e-5])
@pytest.mark.parametrize("residual", [False, True])
def test_the_gradient_on_pixels_is_a_central_difference_of_the_product(difference: float, residual: bool) -> None:
    """Of `<g(x), v>`, pixel by pixel, in float64; v, with the residual too, is a constant."""
    k = known()
    v = torch.randn(len(k.theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images, labels = k.validation_draw
    weights = torch.linspace(0.1, 1.0, len(labels), dtype=torch.float64)
    constant = v - k.model.gradient(k.theta, images, labels, weights) if residual else v
    aim = (lambda g: v - g) if residual else (lambda _: v)
    result = product_gradient(k.model, k.theta, Examples(images, labels, weights), aim, difference)
    step = 1e-5
    for place in [(0, 0, 0, 0), (3, 0, 1, 2), (9, 0, 0, 1), (5, 0, 1, 1)]:
        products: list[float] = []
        for sign in (1.0, -1.0):
            moved = images.clone()
            moved[place] += sign * step
            products.append(float(k.model.gradient(k.theta, moved, labels, weights) @ constant))
        expected = (products[0] - products[1]) / (2 * step)
        assert float(result[place]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_cosines_are_those_of_each_parameter_tensor() -> None:
    """The gradient on pixels is a central difference of the sum of cosines."""
    k = known()
    v = torch.randn(len(k.theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sizes = [shape.numel() for shape in k.model.layout.values()]
    images, labels = k.validation_draw
    weights = torch.full((len(labels),), 0.1, dtype=torch.float64)
    result = product_gradient(k.model, k.theta, Examples(images, labels, weights), lambda g: cosine_pull(g, v, sizes), 0.0)

    def cosines(moved: Tensor) -> float:
        parts = zip(k.model.gradient(k.theta, moved, labels, weights).split(sizes), v.split(sizes), strict=True)
        return sum(float(g @ w / (g.norm() * w.norm())) for g, w in parts)

    for place in [(0, 0, 0, 0), (3, 0, 1, 2), (9, 0, 0, 1)]:
        step = torch.zeros_like(images)
        step[place] = 1e-5
        expected = (cosines(images + step) - cosines(images - step)) / 2e-5
        assert float(result[place]) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert not cosine_pull(torch.zeros(3), torch.ones(3), [3]).any()


def test_residual_steps_come_nearer_and_inner_products_grow() -> None:
    k = known(pgd_steps=40, pgd_step=0.01)
    wanted = 0.5 * mean_of(k, k.batches.inputs) + 0.1 * F.normalize(trigger_vector(k, None), dim=0)
    near = mean_of(k, toward(k, SCALE, wanted, residual=True))
    far = mean_of(k, toward(k, SCALE, wanted, residual=False))
    start = mean_of(k, k.batches.inputs)
    assert float((near - wanted).norm()) < 0.7 * float((start - wanted).norm())
    assert float(far @ wanted) > float(near @ wanted)
    assert float(far @ wanted) > float(start @ wanted)


def test_images_stay_within_epsilon_and_are_as_far_as_that() -> None:
    k = known(epsilon=0.25)
    moved = toward(k, SCALE, trigger_vector(k, None), residual=False)
    shift = (moved - k.batches.inputs).abs() / 2.0
    assert float(shift.max()) == pytest.approx(0.25)
    figures = enforce(k.batches, moved, SCALE, 0.25, 1.0).figures
    assert figures == {
        "images": float((shift > 0).flatten(3).any(dim=3).sum()),
        "image_shift": pytest.approx(0.25),
        "images_corrected": 0.0,
    }


@pytest.mark.parametrize("phase", ["accumulate", "trigger"])
@pytest.mark.parametrize("aim", ["residual", "inner-product"])
@pytest.mark.parametrize("offset", [True, False])
def test_clients_of_one_image_are_one_client_of_as_many_images(phase: str, aim: str, offset: bool) -> None:
    """Six clients with an image each, two of them poisoned, and one client with six images, of which the attacker supplies two: the same
    images, the same sum of gradients."""
    settings: dict[str, Any] = {"objective": "inner", "rho": 2.0, "pgd_aim": aim, "recovered_offset": offset, "norm_bound": 1.0}
    base = known(**settings)
    images, labels = base.validation_draw.inputs[:6].clamp(-3.9, 3.9), base.validation_draw.labels[:6]
    one = torch.ones(2, 1, 1, dtype=torch.float64)
    honest = 4.0 * base.model.gradient(base.theta, images[2:], labels[2:])
    batches = CohortBatches(images[:2, None, None], labels[:2, None, None], one, [1, 1])
    many = dataclasses.replace(
        base, members=(0, 1), num_sampled=6, batches=batches, weights=one.flatten(), seen=HonestSum(honest, 4.0), phase=phase
    )
    many = dataclasses.replace(many, updates=block_updates(many.model, many.theta, batches, many.client))
    batches = CohortBatches(images[None, None], labels[None, None], torch.full((1, 1, 6), 1 / 6, dtype=torch.float64), [6])
    single = dataclasses.replace(
        base, members=(0,), num_sampled=1, batches=batches, weights=torch.tensor([6.0], dtype=torch.float64), phase=phase,
        seen=HonestSum(torch.zeros_like(honest), 0.0), settings=base.settings.model_copy(update={"image_fraction": 2 / 6}),
    )  # fmt: skip
    single = dataclasses.replace(single, updates=block_updates(single.model, single.theta, batches, single.client))
    torch.testing.assert_close(many.honest_mean, single.honest_mean)
    first, second = (moved_images(accumulative, k, AttackState()) for k in (many, single))
    assert first.images is not None
    assert second.images is not None
    torch.testing.assert_close(first.images[:, 0, 0], second.images[0, 0, :2])
    torch.testing.assert_close(second.images[0, 0, 2:], images[2:], rtol=0.0, atol=0.0)
    assert not torch.equal(first.images[:, 0, 0], images[:2])
    updates = [block_updates(k.model, k.theta, k.batches._replace(inputs=a.images), k.client) for k, a in ((many, first), (single, second))]
    torch.testing.assert_close(many.combined(updates[0]), single.combined(updates[1]))
    torch.testing.assert_close(first.metrics, second.metrics)


def test_the_wanted_update_is_what_the_attack_would_send() -> None:
    k = dataclasses.replace(known(norm_bound=1.0, pgd_steps=3), phase="trigger")
    plain = dataclasses.replace(k, settings=k.settings.model_copy(update={"masks": 0.0}))
    sent = trigger_only(plain, AttackState()).updates
    action = moved_images(
        trigger_only, dataclasses.replace(k, settings=k.settings.model_copy(update={"name": "trigger-only"})), AttackState()
    )
    assert action.images is not None
    assert torch.equal(action.images, toward(k, SCALE, k.weights @ sent / k.weights.sum(), residual=False))


def test_where_the_attack_is_honest_the_images_are_untouched() -> None:
    k = dataclasses.replace(known(), accumulate=False)
    assert moved_images(accumulative, k, AttackState()).images is k.batches.inputs
    assert toward(known(image_fraction=0.0), SCALE, k.theta, residual=True) is not None


def test_trigger_images_are_made_once_or_again_and_in_which_ball() -> None:
    """Fixed ones do not change; refreshed ones gain in the product and stay within epsilon; in a moving ball they leave it."""
    k = known(epsilon=0.05, pgd_steps=2)
    original = k.trigger_batch.inputs.clamp(-3.9, 3.9)
    k = dataclasses.replace(k, trigger_batch=k.trigger_batch._replace(inputs=original))

    def after(rounds: int, **settings: str) -> Tensor:
        changed, images = dataclasses.replace(k, settings=k.settings.model_copy(update=settings)), None
        for _ in range(rounds):
            images = trigger_images(changed, images).inputs
        assert images is not None
        return images

    assert torch.equal(after(1), after(5))
    vector = trigger_vector(k, None)

    def product(images: Tensor) -> float:
        return float(k.model.gradient(k.theta, images, k.trigger_batch.labels) @ vector)

    assert product(after(1)) > product(original)
    refreshed, moving = after(5, trigger_images="refreshed"), after(5, trigger_images="refreshed", ball="moving")
    assert float((refreshed - original).abs().max()) <= 2.0 * 0.05 * (1 + 1e-9)
    assert float((moving - original).abs().max()) > 2.0 * 0.05 * 2
    assert product(moving) > product(refreshed)
    state = moved_images(accumulative, k, AttackState()).state
    assert torch.equal(state.arrays[TRIGGER_IMAGES], after(1))


def test_the_expected_trigger_counts_the_images_that_are_not_supplied() -> None:
    k = known(image_fraction=0.5)
    batch = k.trigger_batch
    gradient = k.model.gradient(k.theta, *batch)
    rows = [
        0.5 * gradient + 0.5 * k.model.gradient(k.theta, k.batches.inputs[row, 0, 2:], k.batches.labels[row, 0, 2:]) for row in range(3)
    ]
    torch.testing.assert_close(expected_trigger(k, batch), k.combined(torch.stack(rows)))


def small_batches() -> CohortBatches:
    """Two clients, one of them with padding, of images in the middle of the pixels."""
    inputs = torch.randn(2, 1, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0)).clamp(-1.0, 1.0)
    weights = torch.tensor([[[0.25] * 4], [[0.5, 0.5, 0.0, 0.0]]])
    return CohortBatches(inputs, torch.zeros(2, 1, 4, dtype=torch.long), weights, [4, 2])


def test_the_attacker_supplies_the_first_of_a_batch_and_no_padding() -> None:
    assert supplied_places(small_batches(), 0.5)[:, 0].tolist() == [[True, True, False, False], [True, False, False, False]]
    assert supplied_places(small_batches(), 1.0)[:, 0].tolist() == [[True] * 4, [True, True, False, False]]
    assert not supplied_places(small_batches(), 0.0).any()


@pytest.mark.parametrize("cheat", ["epsilon", "range", "not a number", "other images", "padding"])
def test_every_kind_of_cheating_with_pixels_is_stopped(cheat: str) -> None:
    batches = small_batches()
    proposed, original = batches.inputs.clone(), batches.inputs
    low, high = ball(original, SCALE, 0.1)
    if cheat == "epsilon":
        proposed[0, 0, 0] += 1.0
        used = enforce(batches, proposed, SCALE, 0.1, 1.0)
        torch.testing.assert_close(used.batches.inputs[0, 0, 0], original[0, 0, 0] + 0.2)
    elif cheat == "range":
        narrow = PixelScale(SCALE.unit, torch.full((1, 1, 1), -1.0), torch.full((1, 1, 1), 1.0))
        proposed[0, 0, 0] += 9.0
        used = enforce(batches, proposed, narrow, 1.0, 1.0)
        assert float(used.batches.inputs.max()) == 1.0
    elif cheat == "not a number":
        proposed[0, 0, 0, 0, 0, 0], proposed[0, 0, 1, 0, 0, 0] = math.nan, math.inf
        used = enforce(batches, proposed, SCALE, 0.1, 1.0)
        assert torch.equal(used.batches.inputs, original)
    elif cheat == "other images":
        proposed[:, 0, 1:] += 0.1
        used = enforce(batches, proposed, SCALE, 0.1, 0.25)
        assert torch.equal(used.batches.inputs, original)
    else:
        proposed[1, 0, 2:] += 0.1
        used = enforce(batches, proposed, SCALE, 0.1, 1.0)
        assert torch.equal(used.batches.inputs, original)
    assert bool(((used.batches.inputs >= low) & (used.batches.inputs <= high)).all()) or cheat == "range"
    assert used.figures["images_corrected"] > 0
    assert torch.equal(used.batches.labels, batches.labels)
    assert torch.equal(used.batches.weights, batches.weights)


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected images of shape \(2, 1, 4, 1, 2, 2\), as Knowledge.batches.inputs, got \(1, 1, 4"):
        enforce(small_batches(), small_batches().inputs[:1], SCALE, 0.1, 1.0)


def test_pixels_are_those_of_the_data_set(configure: Configure) -> None:
    dataset = load_federation(configure()).dataset
    scale = pixel_scale(dataset, torch.device("cpu"))
    assert scale is not None
    pixels = torch.tensor([[[0, 128, 255]]], dtype=torch.uint8)
    torch.testing.assert_close(scale.black + scale.unit * pixels / 255.0, normalised(pixels, dataset))
    assert float(scale.unit) == pytest.approx(255.0 / dataset.std[0])


CHEATS = """
import torch
import fl_sim

def writes(knowledge, state):
    knowledge.batches.labels.fill_(0)
    knowledge.batches.inputs.fill_(9.0)
    return fl_sim.Action(knowledge.updates, images=knowledge.batches.inputs)

def both(knowledge, state):
    return fl_sim.Action(knowledge.updates - 1e6, images=knowledge.batches.inputs + 0.0)

def moves(knowledge, state):
    return fl_sim.Action(knowledge.updates, images=knowledge.batches.inputs + knowledge.pixel_scale.unit)
"""


@pytest.mark.parametrize("surface", ["images", "updates"])
@pytest.mark.parametrize(("name", "moved"), [("writes", True), ("both", False), ("moves", True)])
def test_an_own_attack_can_only_propose_images(configure: Configure, tmp_path: Path, name: str, moved: bool, surface: str) -> None:
    """What is sent are the gradients of images near the members' own, with their own labels, whatever the attack did to its knowledge."""
    path = tmp_path / "cheats.py"
    path.write_text(CHEATS)
    config = configure(attack__name=f"{path}:{name}", attack__surface=surface, attack__epsilon=0.1, attack__knowledge="coalition")
    federation = load_federation(config)
    module = new_module(config, federation)
    inputs = RoundInputs(config, federation, FlatModel(module), flat_parameters(module), 1, None, stacked=True)
    reply = coalition_turn(inputs, CoalitionOrder((3, 5), "accumulate", True, 12, AttackState()))
    drawn = federation.cohort([3, 5], 1, 1, 10)
    scale = pixel_scale(federation.dataset, inputs.theta.device)
    assert scale is not None
    low, high = ball(drawn.inputs, scale, 0.1)
    wild = {"writes": torch.full_like(drawn.inputs, 9.0), "both": drawn.inputs, "moves": drawn.inputs + scale.unit}[name]
    used = drawn._replace(inputs=wild.clamp(low, high))
    assert torch.equal(reply.updates, block_updates(inputs.model, inputs.theta, used, config.client))
    assert (reply.metrics["images"] > 0) == moved
    assert reply.metrics["image_shift"] == pytest.approx(0.1 if moved else 0.0, abs=1e-6)


def test_with_epsilon_0_the_run_is_the_honest_one(configure: Configure, runs_dir: Path) -> None:
    _, honest = run(configure(**HONEST), runs_dir)
    summary, idle = run(configure(attack__surface="images", attack__epsilon=0.0), runs_dir)
    assert summary["trigger_round"] == 4
    torch.testing.assert_close(theta(idle), theta(honest))  # its members are summed apart from the others


@pytest.mark.parametrize(
    "more",
    [{}, {"attack__image_fraction": 0.5, "attack__trigger_images": "refreshed", "attack__ball": "moving", "attack__pgd_aim": "cosines"}],
)
@pytest.mark.slow
def test_a_run_is_the_same_bytes_wherever_it_is_computed(configure: Configure, tmp_path: Path, more: dict[str, Any]) -> None:
    config = configure(attack__surface="images", attack__epsilon=0.2, attack__malicious_fraction=0.3, attack__pgd_steps=3, **more)
    summary, first = run(config, tmp_path / "one")
    assert fingerprint(run(config, tmp_path / "three", Workers(3))[1]) == fingerprint(first)
    assert fingerprint(run(config, tmp_path / "encoded", InlineTransport(encoded_answer))[1]) == fingerprint(first)
    acting = [line["attack"] for line in lines(first) if "attack" in line]
    assert all(figures["images"] > 0 for figures in acting)
    assert {figures["images_corrected"] for figures in acting} == {0.0}
    assert max(figures["image_shift"] for figures in acting) <= 0.2 + 1e-6
    control = [line["attack"]["images"] for line in lines(first, "control") if "attack" in line]
    assert control[:-1] == [0.0] * 3, "the control moves no image before the trigger"
    assert control[-1] > 0
    assert summary["control"]["after_trigger"] is not None


@pytest.mark.parametrize("name", ["trigger-only", "label-flip", "min-max"])
def test_any_attack_on_updates_moves_images(configure: Configure, tmp_path: Path, name: str) -> None:
    config = configure(attack__name=name, attack__surface="images", attack__epsilon=0.2, twin=False)
    assert lines(run(config, tmp_path)[1])[0]["attack"]["images"] == 20.0


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        ({"attack__surface": "pixels"}, "expected attack.surface to be one of 'updates', 'images', got 'pixels'"),
        ({"attack__epsilon": -0.1}, "expected attack.epsilon >= 0.0, got -0.1"),
        ({"attack__epsilon": 1.1}, "expected attack.epsilon <= 1.0, got 1.1"),
        ({"attack__pgd_steps": 0}, "expected attack.pgd-steps >= 1, got 0"),
        ({"attack__pgd_step": -1.0}, "expected attack.pgd-step >= 0.0, got -1.0"),
        ({"attack__pgd_aim": "x"}, "expected attack.pgd-aim to be one of 'residual', 'inner-product', 'cosines', got 'x'"),
        ({"attack__pgd_difference": -1.0}, "expected attack.pgd-difference >= 0.0, got -1.0"),
        ({"attack__ball": "x"}, "expected attack.ball to be one of 'original', 'moving', got 'x'"),
        ({"attack__ball": "moving"}, "expected attack.trigger-images = 'refreshed' with attack.ball = 'moving', got 'fixed'"),
        ({"attack__trigger_images": "x"}, "expected attack.trigger-images to be one of 'fixed', 'refreshed', got 'x'"),
        ({"attack__image_fraction": 1.5}, "expected attack.image-fraction <= 1.0, got 1.5"),
        ({"attack__image_fraction": 0.04}, "expected attack.image-fraction * client.batch-size = 10 to be an image, got 0.04"),
        (
            {"attack__surface": "images", "attack__name": "moles"},
            "expected attack.surface = 'updates' with attack.name = 'moles', which chooses images, got 'images'",
        ),
    ],
)
def test_bad_values_are_refused(configure: Configure, flat: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(**flat)
    assert caught.value.problems == [says]
