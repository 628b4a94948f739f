"""`attack.surface = "images"`: what an attack on updates becomes if it may only move pixels of the members' images.

Source: Pang et al. 2021, Algorithm 1 (one client, a stream of batches), here for any number of members and any attack on updates. Where we
differ: the members do not know the batch of the trigger round in advance. So the objective sees the gradient of trigger images that the
coalition makes of its own S_T, and in the trigger round the images of that round are moved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from clients.accumulative.trigger import trigger_vector
from clients.action import Action
from clients.images.enforcement import ball, supplied_places
from clients.images.pgd import Examples, ascend, cosine_pull, product_gradient
from clients.knowledge import Knowledge
from clients.pixels import PixelScale
from fl_sim.data.batches import Batch
from fl_sim.wire.messages import AttackState

TRIGGER_IMAGES = "images.trigger"  # their name in the state

Act = Callable[[Knowledge, AttackState], Action]


def moved_images(act: Act, knowledge: Knowledge, state: AttackState) -> Action:
    """The action of an attack on updates, with images in their place: those of the members, moved so that the weighted mean of the members'
    updates comes near to the one that the attack would send. Images stay as they are where the attack is honest, or proposes images itself.

    Raises ValueError if the data are no images.
    """
    scale = _scale(knowledge)
    masks_off = knowledge.settings.model_copy(update={"masks": 0.0})
    shown = replace(knowledge, settings=masks_off)
    arrays: dict[str, Tensor] = {}
    if knowledge.settings.name == "accumulative":
        images = trigger_images(knowledge, state.arrays.get(TRIGGER_IMAGES))
        arrays = {TRIGGER_IMAGES: images.inputs}
        shown = replace(shown, expected_trigger=expected_trigger(knowledge, images))
    action = act(shown, AttackState({key: value for key, value in state.arrays.items() if key != TRIGGER_IMAGES}, state.scalars))
    action = action._replace(state=AttackState({**action.state.arrays, **arrays}, action.state.scalars))
    if action.images is not None:
        return action
    if torch.equal(action.updates, knowledge.updates):
        return action._replace(images=knowledge.batches.inputs)
    wanted = knowledge.weights @ action.updates / knowledge.weights.sum()
    fired = action.metrics.get("fired", float(knowledge.phase == "trigger"))
    residual = knowledge.settings.pgd_aim == "residual" and not fired
    return action._replace(images=toward(knowledge, scale, wanted, residual=residual))


def toward(knowledge: Knowledge, scale: PixelScale, wanted: Tensor, *, residual: bool) -> Tensor:
    """The members' images (m, steps, b, C, H, W) after `attack.pgd-steps` steps toward a wanted mean (d,) of their updates.

    With the recovered offset "wanted" is for all images of the members, so the gradient of those that they do not supply is taken off: that
    of a client with some of its images supplied is then the same attack as that of as many clients with one image. Without it the mean of
    the supplied images alone is to be the wanted one. v is what is left for the supplied images.
    Inner product: they ascend `<g(x), v>`, so g may become longer than v. Residual: they ascend `<g(x), v - g>` with g of the step before,
    which descends `|v - g(x)|^2 / 2`. Cosines: they ascend the sum of the cosines of the parameter tensors of g and v.
    With several local steps the images of each are moved as if it began at theta.
    """
    batches, settings = knowledge.batches, knowledge.settings
    supplied = supplied_places(batches, settings.image_fraction)
    shares = (knowledge.weights / knowledge.weights.sum())[:, None, None] * batches.weights
    if settings.recovered_offset:
        wanted = wanted - _gradient_at(knowledge, ~supplied & (batches.weights > 0), shares)
    else:
        shares = shares / shares[supplied].sum()
    examples = Examples(batches.inputs[supplied], batches.labels[supplied], shares[supplied])
    if not len(examples.labels):
        return batches.inputs
    moved = _move(knowledge, scale, examples, examples.images, _aim(knowledge, wanted, residual=residual))
    images = batches.inputs.clone()
    images[supplied] = moved
    return images


def _aim(knowledge: Knowledge, wanted: Tensor, *, residual: bool) -> Callable[[Tensor], Tensor]:
    """What the steps take the inner product with, from the gradient g (d,) of the step before."""
    if knowledge.settings.pgd_aim == "cosines":
        sizes = [shape.numel() for shape in knowledge.model.layout.values()]
        return lambda gradient: cosine_pull(gradient, wanted, sizes)
    return (lambda gradient: wanted - gradient) if residual else (lambda _: wanted)


def _gradient_at(knowledge: Knowledge, places: Tensor, weights: Tensor) -> Tensor:
    """`grad_theta sum_j w_j l(x_j)` (d,) of the members' examples at some places (m, steps, b). Args: weights, of the shape of places."""
    if not bool(places.any()):
        return torch.zeros_like(knowledge.theta)
    return knowledge.model.gradient(knowledge.theta, knowledge.batches.inputs[places], knowledge.batches.labels[places], weights[places])


def trigger_images(knowledge: Knowledge, earlier: Tensor | None) -> Batch:
    """P(S_T): the images of S_T (t, C, H, W) moved toward the trigger vector P_t by the inner product.

    `attack.trigger-images`: fixed, in the first round and then no more; refreshed, again in every round, from where they are.
    `attack.ball`: original, around the images of S_T; moving, around the earlier images, so that epsilon is not kept over the rounds
    (as in the released code of Pang et al. 2021).

    Args: earlier, of the round before; None in the first.
    """
    original, labels = knowledge.trigger_batch
    settings = knowledge.settings
    if earlier is not None and settings.trigger_images == "fixed":
        return Batch(earlier, labels)
    start = original if earlier is None else earlier
    examples = Examples(start, labels, torch.full(labels.shape, 1.0 / len(labels), dtype=original.dtype, device=original.device))
    aim = _aim(knowledge, trigger_vector(knowledge, None), residual=False)
    center = start if settings.ball == "moving" else original
    return Batch(_move(knowledge, _scale(knowledge), examples, center, aim), labels)


def expected_trigger(knowledge: Knowledge, images: Batch) -> Tensor:
    """The combined update (d,) that the coalition expects of a trigger: the gradient of the images that its members supply is that of the
    trigger images, the others' is what it is in this round."""
    gradient, batches = knowledge.model.gradient(knowledge.theta, *images), knowledge.batches
    supplied = supplied_places(batches, knowledge.settings.image_fraction)
    parts = (batches.weights * supplied).sum(dim=(1, 2))  # (m,) of each member's update; with s local steps the sum over them is s
    kept = ~supplied & (batches.weights > 0)
    rows = [
        _gradient_at(knowledge, kept & (torch.arange(len(kept), device=kept.device) == row)[:, None, None], batches.weights)
        for row in range(len(kept))
    ]
    return knowledge.combined(parts[:, None] * gradient + torch.stack(rows))


def _move(knowledge: Knowledge, scale: PixelScale, examples: Examples, center: Tensor, aim: Callable[[Tensor], Tensor]) -> Tensor:
    """Images (e, C, H, W) after all steps; they stay within epsilon of the center."""
    settings = knowledge.settings
    size = (settings.pgd_step or 2.0 * settings.epsilon / settings.pgd_steps) * scale.unit

    def gradient(images: Tensor) -> Tensor:
        return product_gradient(knowledge.model, knowledge.theta, examples._replace(images=images), aim, settings.pgd_difference)

    return ascend(gradient, examples.images, ball(center, scale, settings.epsilon), size, settings.pgd_steps)


def _scale(knowledge: Knowledge) -> PixelScale:
    if knowledge.pixel_scale is None:
        raise ValueError("expected a data set of images with attack.surface = 'images', got features")
    return knowledge.pixel_scale
