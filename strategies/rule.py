"""The server's rules: a clip before combining, the combination, a clip after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fl_sim.config.keys import Strategy
from fl_sim.data.batches import Batch
from fl_sim.grid.server_strategy import Needs
from fl_sim.model.flat_model import FlatModel
from fl_sim.training.clipping import Clip, clip, clip_of, norms

Combine = Callable[[Tensor, Tensor, Tensor], Tensor]  # updates (n, d), weights (n,), client ids (n,) -> (d,)


class CannotCombineError(RuntimeError):
    """A combination cannot make anything of the updates of a round: the round is skipped."""


class OptionError(ValueError):
    """An option of a rule of ours is out of its range."""


@dataclass(frozen=True)
class RuleView:
    """What a rule that asks for `view` gets in one round: the inputs that other rules ask for one by one (docs/contributing.md, section
    2.2), but for the server's own update."""

    clients: Tensor
    theta: Tensor
    model: FlatModel
    server_data: Batch
    server_lr: float
    server_momentum: float
    client_lr: float
    generator: torch.Generator
    state: dict[str, Tensor]
    report: dict[str, Any]


@runtime_checkable
class SeesModel(Protocol):
    """A combination that must know the global model of a round."""

    def see(self, theta: Tensor) -> None:
        """Look at the model (d,) before the round's updates are combined."""
        ...


@dataclass(frozen=True)
class Rule:
    """Three slots: `before` per client, `combine`, `after` on the combined update.

    `combine = None` is the weighted mean: workers can add up their parts of it, so the server does not need every update.
    Source: Pang et al. 2021, App. C (no clip, clip before, clip after aggregation).
    """

    before: Clip | None = None
    combine: Combine | None = None
    after: Clip | None = None

    @property
    def reducible(self) -> bool:
        """Whether workers may reply with weighted sums instead of every update."""
        return self.combine is None

    @property
    def needs(self) -> Needs:
        """What the combination requires."""
        return getattr(self.combine, "needs", Needs())

    @property
    def weighted(self) -> bool:
        """Whether the weights of clients count. A user's combination may use them."""
        return bool(getattr(self.combine, "weighted", True))


@dataclass(frozen=True)
class CombinedUpdate:
    """A combined update (d,) and the rule's figures: its l2 norm before and after the last slot, and how many updates were clipped."""

    update: Tensor
    metrics: dict[str, float]


def finish(rule: Rule, mean: Tensor, client_norms: Tensor) -> CombinedUpdate:
    """The `after` slot on the combined update (d,), and the rule's figures.

    Args: client_norms (n,), each update's norm in the norm of `before`, NaN if not computed.
    """
    update, norm = clip(mean, rule.after) if rule.after else (mean, norms(mean))
    metrics = {"combined_norm": float(norms(mean)), "applied_norm": float(norms(update))}
    if rule.after:
        metrics["clipped"] = float(norm > rule.after.bound)
    if rule.before:
        metrics["clipped"] = float((client_norms > rule.before.bound).sum())
        metrics["median_norm"] = float(client_norms.nanmedian())
    return CombinedUpdate(update, metrics)


def stacked_mean(rule: Rule, updates: Tensor, weights: Tensor, clients: Tensor) -> Tensor:
    """The `before` and `combine` slots on single updates (n, d) with weights (n,) of clients (n,): `sum_i w_i before(g_i) / sum_i w_i`,
    or the rule's own combination.
    """
    clipped = clip(updates, rule.before)[0] if rule.before else updates
    if rule.combine:
        return rule.combine(clipped, weights, clients)
    return (weights @ clipped) / weights.sum()


RULES: dict[str, Callable[[Strategy], Rule]] = {
    "mean": lambda settings: Rule(),
    "clip-before": lambda settings: Rule(before=clip_of(settings.norm, settings.bound)),
    "clip-after": lambda settings: Rule(after=clip_of(settings.norm, settings.bound)),
}
