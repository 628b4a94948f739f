"""What the coalition may know: a frozen object with exactly what the level `attack.knowledge` allows (docs/design.md, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from clients.pixels import PixelScale
from fl_sim.config.keys import Attack, Client
from fl_sim.data.batches import Batch, CohortBatches
from fl_sim.data.datasets import Dataset, normalised
from fl_sim.model.flat_model import FlatModel
from fl_sim.rng.streams import torch_stream
from fl_sim.training.clipping import Clip, clip


class KnownRule(NamedTuple):
    """What the server's strategy publishes about itself: its name, its clip per client, its clip after combining, and between the two its
    combination `(updates (n, d), weights (n,)) -> (d,)` (None if unknown)."""

    name: str
    before: Clip | None
    after: Clip | None
    combine: Callable[[Tensor, Tensor], Tensor] | None = None


class PixelRange(NamedTuple):
    """The model's inputs of black and of white pixels, per channel, (C, 1, 1) each: the smallest and the largest value of the data,
    normalised."""

    black: Tensor
    white: Tensor

    def at(self, value: Tensor) -> Tensor:
        """The input of a value from 0 (black) to 1 (white), of the shapes of both broadcast."""
        return self.black + value * (self.white - self.black)


ZERO_TO_ONE = PixelRange(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))


def pixel_range(dataset: Dataset, device: torch.device) -> PixelRange:
    """The range of a data set's pixels or features, from its first 1,000 training examples."""
    some = dataset.train.inputs[:1000]
    ends = torch.stack([some.min(), some.max()]).view(2, 1, 1, 1).expand(2, len(dataset.mean), 1, 1)
    black, white = normalised(ends.to(device), dataset)
    return PixelRange(black, white)


def no_edge_images() -> Tensor:
    """For a coalition without edge-case images."""
    raise ValueError("the coalition has no edge-case images")


def no_random_model(seed: int) -> Tensor:
    """For a coalition that cannot initialise the model."""
    raise ValueError("the coalition cannot initialise the model")


def weighted_mean(updates: Tensor, weights: Tensor) -> Tensor:
    """`sum_i w_i g_i / sum_i w_i` (d,) of updates (n, d)."""
    return (weights @ updates) / weights.sum()


def no_share(client: int) -> Batch:
    """The share of a client that the coalition does not know."""
    raise LookupError(f"client {client} is no member of the coalition, or its share is not known")


class HonestSum(NamedTuple):
    """The honest clients' weighted sum (d,) in this round, as the server will combine it, and their total weight."""

    total: Tensor
    weight: float


class HonestUpdates(NamedTuple):
    """Every single honest update of this round (h, d), in client order and before a clip per client, and their weights (h,)."""

    rows: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Knowledge:
    """What the coalition knows, by level of `attack.knowledge`.

    coalition: the global model, the members' own batches, updates and data, which of them were sampled, and the protocol's public
    parameters (the server's learning rate, the settings of local training, how many clients are sampled per round). rule: also `rule`.
    omniscient: also `seen` (the papers' white box). updates: also `shown`. Unknown fields are None.
    """

    round: int
    phase: str  # accumulate, trigger, or between (two triggers)
    accumulate: bool  # false in a control: everything but the accumulation
    may_fire: bool  # false if the schedule has no trigger
    total_rounds: int  # T, the length of the accumulative phase
    model: FlatModel
    num_classes: int
    theta: Tensor  # (d,)
    members: tuple[int, ...]  # the m sampled members
    batches: CohortBatches  # the members' batches in this round
    client: Client  # the settings of local training
    updates: Tensor  # (m, d) the members' honest updates
    weights: Tensor  # (m,)
    num_sampled: int  # n
    server_lr: float
    validation: Batch  # S_val, all of it
    drawn: Tensor  # (b,) positions in S_val of this round's draw
    trigger_batch: Batch  # S_T
    settings: Attack
    own_seed: int  # of the coalition's own randomness in this round
    rule: KnownRule | None = None
    seen: HonestSum | None = None
    shown: HonestUpdates | None = None
    pixel_scale: PixelScale | None = None  # pixels of [0, 1] in the units of inputs; None for features
    expected_trigger: Tensor | None = None  # (d,) the combined update that a trigger is expected to give, if the attack moves images
    share: Callable[[int], Batch] = no_share  # all examples of a member, by its id; read when it is called
    momentum: float = 0.0  # of the server's optimiser
    coalition: tuple[int, ...] = ()  # all its members, in order, sampled or not
    pixels: PixelRange = ZERO_TO_ONE  # of the data
    edge_images: Callable[[], Tensor] = no_edge_images  # (e, C, H, W), those of `attack.edge-data` to train on
    random_model: Callable[[int], Tensor] = no_random_model  # (d,) newly initialised parameters, by a seed

    @property
    def validation_draw(self) -> Batch:
        """This round's draw of S_val."""
        return Batch(self.validation.inputs[self.drawn], self.validation.labels[self.drawn])

    @property
    def bound(self) -> Clip | None:
        """The clip per client, if there is one and the coalition knows it."""
        return self.rule.before if self.rule else None

    @property
    def limits(self) -> tuple[Clip, ...]:
        """What bounds each update of a member, as far as the coalition knows: a clip per client, and eta with `attack.budget = "client"`.
        An update within the first stays within it when it is scaled down to the second."""
        budget = (Clip("l2", self.settings.norm_bound),) if self.settings.budget == "client" else ()
        return ((self.bound,) if self.bound else ()) + budget

    @property
    def honest_sum(self) -> Tensor:
        """The honest clients' weighted sum (d,): known, or estimated as if every honest client sent the mean of the members' updates."""
        return self.seen.total if self.seen else self._members_sum / self.weights.sum() * self.honest_weight

    @property
    def honest_weight(self) -> float:
        """The honest clients' total weight: known, or estimated from the members' mean weight."""
        return self.seen.weight if self.seen else float(self.weights.mean()) * (self.num_sampled - len(self.members))

    @cached_property
    def total_weight(self) -> float:
        """W, the weight of all n sampled clients."""
        return self.honest_weight + float(self.weights.sum())

    @cached_property
    def mask_noise(self) -> Tensor:
        """Standard normal numbers (m, d) of this round, for masks."""
        return torch.randn(self.updates.shape, generator=torch_stream(self.own_seed, "masks")).to(self.updates)

    @property
    def honest_mean(self) -> Tensor:
        """honest_t (d,): the weighted mean of the honest updates of all n sampled clients, members included."""
        return (self.honest_sum + self._members_sum) / self.total_weight

    @property
    def _members_sum(self) -> Tensor:
        """The weighted sum (d,) of the members' honest updates, after the clip per client if the coalition knows it."""
        return self.weights @ self._clipped(self.updates)

    def _clipped(self, updates: Tensor) -> Tensor:
        return clip(updates, self.bound)[0] if self.bound else updates

    def combined(self, updates: Tensor) -> Tensor:
        """The combined update (d,) that the coalition expects if it sends `updates` (m, d): their weighted mean with the honest clients'
        updates, after the clips that it knows. Source: Pang et al. 2021, App. C.
        """
        mean = (self.honest_sum + self.weights @ self._clipped(updates)) / self.total_weight
        return clip(mean, self.rule.after)[0] if self.rule and self.rule.after else mean

    def honest_rows(self) -> Tensor:
        """Single honest updates: all of them (h, d) with `attack.knowledge = "updates"`. Else stand-ins (m, d): the members' updates,
        shifted so that their mean is `honest_mean` if that is known."""
        if self.shown and len(self.shown.rows):
            return self.shown.rows
        mean = torch.mean(self.updates, dim=0)
        return self.updates - mean + self.honest_mean if self.seen else self.updates
