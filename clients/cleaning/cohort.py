"""A round's batches of many clients through the cleaning, and what it did to them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from clients.cleaning.catalogue import cleaning_of, cleanings
from clients.cleaning.images import Context, Images
from clients.pixels import PixelScale, pixel_scale
from fl_sim.config.keys import Config
from fl_sim.config.options import parse_options
from fl_sim.data.batches import CohortBatches
from fl_sim.data.federation import Federation
from fl_sim.model.flat_model import FlatModel
from fl_sim.outside_code import OutsideCodeError, error_words, outside_call, with_place
from fl_sim.rng.streams import seeded_global_generators, stream
from fl_sim.wire.messages import CleaningCounts


class Cleaned(NamedTuple):
    """Batches after the cleaning; what it did to unaltered images, and to those that an attacker altered."""

    batches: CohortBatches
    clean: CleaningCounts
    poisoned: CleaningCounts


class Cleaner(NamedTuple):
    """The cleaning of a configuration in a round: what `Context` needs, without the batches."""

    config: Config
    federation: Federation
    model: FlatModel
    theta: Tensor
    round: int
    fitted: Mapping[str, Tensor]

    def __call__(self, clients: Sequence[int], batches: CohortBatches, drawn: CohortBatches | None = None) -> Cleaned:
        """The batches of clients after the cleaning. Dropped images get the weight 0, the others of their batch 1 / (how many are left); a
        client's update then counts as the images that are left.

        Args: drawn, the same batches as the clients drew them, if an attacker may have altered images. Raises OutsideCodeError.
        """
        start, places, steps = time.perf_counter(), batches.weights > 0, batches.labels.shape[1]
        before = _images(batches)
        seeds = [_seed(self.config.seed, client, self.round, step) for client in clients for step in range(steps)]
        after = _apply(self.config, before, self._context(tuple(seeds)))
        result = _placed(batches, places, after)
        altered = torch.zeros_like(after.kept) if drawn is None else altered_places(batches, drawn)[places]
        clean, poisoned = (self._counts(before, after, part) for part in (~altered, altered))
        return Cleaned(result, clean._replace(seconds=time.perf_counter() - start), poisoned)

    def difference(self, before: CohortBatches, after: CohortBatches, where: Tensor) -> CleaningCounts:
        """What was done to the images at some places (k, steps, b) of batches that were cleaned earlier."""
        return self._counts(_images(before), _images(after), where[before.weights > 0])

    def _context(self, seeds: tuple[int, ...]) -> Context:
        here = {name: value.to(self.theta.device) for name, value in self.fitted.items()}
        return Context(self.model, self.theta, self.round, self.config.cleaning, _scale(self), here, seeds)

    def _counts(self, before: Images, after: Images, part: Tensor) -> CleaningCounts:
        """What was done to a part (e,) of the images. A dropped image does not count as changed."""
        if not bool(part.any()):
            return CleaningCounts()
        shift = ((after.inputs - before.inputs).abs() / _scale(self).unit.to(before.inputs)).flatten(1).max(dim=1).values[part & after.kept]
        bins, edges = (), self.fitted.get("edges")
        if after.scores is not None and edges is not None:
            where = torch.bucketize(after.scores[part].double().cpu().nan_to_num(float("inf")), edges.cpu())
            bins = tuple(torch.bincount(where, minlength=len(edges) + 1).tolist())
        total = float(shift.double().sum())
        return CleaningCounts(int(part.sum()), int((shift > 0).sum()), int((~after.kept[part]).sum()), total, bins)


def altered_places(batches: CohortBatches, drawn: CohortBatches) -> Tensor:
    """Where (k, steps, b) the images differ from those that were drawn."""
    return (batches.inputs != drawn.inputs).flatten(3).any(dim=3)


def _scale(cleaner: Cleaner) -> PixelScale:
    scale = pixel_scale(cleaner.federation.dataset, cleaner.theta.device)
    assert scale is not None
    return scale


def _images(batches: CohortBatches) -> Images:
    """The real images of batches, without padding."""
    places = batches.weights > 0
    owners = torch.arange(places.shape[0] * places.shape[1], device=places.device).view(*places.shape[:2], 1).expand(places.shape)[places]
    return Images(batches.inputs[places], batches.labels[places], torch.ones_like(owners, dtype=torch.bool), owners)


def _seed(seed: int, client: int, round_: int, step: int) -> int:
    return int(stream(seed, "cleaning", client, round_, step).integers(2**63))


def _apply(config: Config, batch: Images, context: Context) -> Images:
    """The images after the cleaning: ours takes all of them at once, one from outside each local batch by itself."""
    name, options = config.cleaning.name, parse_options(config.cleaning.options)
    clean = cleaning_of(name).clean
    if not cleanings.outside(name):
        return clean(batch, context, **options)
    parts = [_outside(clean, batch, context, owner, options) for owner in range(len(context.seeds))]
    inputs, labels, kept = zip(*((part.inputs, part.labels, part.kept) for part in parts), strict=True)
    return batch._replace(inputs=torch.cat(inputs), labels=torch.cat(labels), kept=torch.cat(kept))


def _outside(clean: Any, batch: Images, context: Context, owner: int, options: dict[str, Any]) -> Images:
    """One local batch after a cleaning from outside, which gets copies. Raises OutsideCodeError."""
    name, mine = context.settings.name, batch.owners == owner
    one = Images(batch.inputs[mine], batch.labels[mine], batch.kept[mine], torch.zeros_like(batch.owners[mine]))
    alone = Context(
        context.model, context.theta.clone(), context.round, context.settings, context.scale, context.fitted, (context.seeds[owner],)
    )

    def failure(error: BaseException) -> Exception:
        return error if isinstance(error, OutsideCodeError) else OutsideCodeError(f"cleaning.name = {name!r}: {error_words(error, clean)}")

    with seeded_global_generators(context.seeds[owner], "outside"), outside_call(failure):
        given = Images(one.inputs.clone(), one.labels.clone(), one.kept.clone(), one.owners.clone())
        return _checked(with_place(f"cleaning.name = {name!r}", clean), clean(given, alone, **options), one)


def _checked(whose: str, result: Any, before: Images) -> Images:
    """What a cleaning from outside returned, with as many images as it got: a result of fewer images has dropped the last ones."""
    parts = [getattr(result, name, None) for name in ("inputs", "labels")]
    if isinstance(result, tuple) and not all(isinstance(part, Tensor) for part in parts):
        parts = list(result[:2])
    if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
        raise OutsideCodeError(f"expected {whose} to return a batch (inputs, labels), got {type(result).__name__}")
    inputs, labels = (part.detach().to(like) for part, like in zip(cast(list[Tensor], parts), before[:2], strict=True))
    count, most = len(labels) if labels.dim() else 0, len(before.labels)
    if tuple(inputs.shape[1:]) != tuple(before.inputs.shape[1:]) or len(inputs) != count or count > most:
        expected = f"at most {most} images {tuple(before.inputs.shape[1:])} with labels"
        raise OutsideCodeError(f"expected {whose} to return {expected}, got {tuple(inputs.shape)} and {tuple(labels.shape)}")
    kept = getattr(result, "kept", None)
    kept = kept.detach().to(before.kept) if isinstance(kept, Tensor) and kept.shape == (count,) else before.kept[:count]
    fill = slice(count, most)
    return before._replace(
        inputs=torch.cat([inputs, before.inputs[fill]]),
        labels=torch.cat([labels, before.labels[fill]]),
        kept=torch.cat([kept, torch.zeros_like(before.kept[fill])]),
    )


def _placed(batches: CohortBatches, places: Tensor, after: Images) -> CohortBatches:
    """The batches with the images at the places (k, steps, b) that they came from."""
    inputs, labels = batches.inputs.clone(), batches.labels.clone()
    inputs[places], labels[places] = after.inputs, after.labels
    if bool(after.kept.all()):
        return batches._replace(inputs=inputs, labels=labels)
    kept = torch.zeros_like(places)
    kept[places] = after.kept
    counts = kept.sum(dim=2, keepdim=True)
    weights = torch.where(kept, 1.0 / counts.double(), 0.0).to(batches.weights)
    left = counts.sum(dim=(1, 2)).tolist()
    shares = left if batches.shares is None else [share if count else 0 for share, count in zip(batches.shares, left, strict=True)]
    return batches._replace(inputs=inputs, labels=labels, weights=weights, shares=shares, dropped=True)
