"""DGC, second version: the combination of a rule that lets no client push in one direction for long, and no class die.

Ours (docs/mathematics.md, section 11).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fl_sim.config.keys import Config
from fl_sim.grid.server_strategy import Needs
from fl_sim.rng.streams import stream
from fl_sim.training.clipping import Clip
from strategies.dgc2.attribution import harmful, harmful_part
from strategies.dgc2.classes import ByClass, ClassProbe, follow
from strategies.dgc2.helping import boosts, strength
from strategies.dgc2.levels import FORGET, Levels
from strategies.dgc2.persistence import Pushes, add, conspirators, factors, no_pushes, persistence, products, sketch
from strategies.server_sgd import ServerState

SMOOTH = 5.0  # rounds over which the accuracies that decide on a return are averaged
CALM = 20  # rounds after a return, or after the last change of the bound, until the bound doubles again
TIGHTEST = 1.0 / 16.0  # of the calibrated bound


class Memories(NamedTuple):
    """beta: memory of the persistence, below 1; momentum: the server's."""

    beta: float
    momentum: float


class Memory(NamedTuple):
    """What the defence remembers from round to round.

    pushes: by client id. now: the current model by class. reference, confidence (c,): references of its losses and of its confidences.
    smooth, best (c + 1,): running means of the accuracies, of each class and of all together, and the references of these. kept (d,): the
    last model in which no class was worse than usual; kept_smooth, kept_best (c + 1,), kept_confidence (c,): as they were then. tightness:
    factor of the calibrated bound. calm: rounds since tightness changed. rounds: so far.
    """

    pushes: Pushes
    now: ByClass
    reference: Tensor
    confidence: Tensor
    smooth: Tensor
    best: Tensor
    kept: Tensor
    kept_smooth: Tensor
    kept_best: Tensor
    kept_confidence: Tensor
    tightness: float
    calm: int
    rounds: int


@dataclass
class SecondDefence:
    """Combines updates (n, d) with weights (n,) of clients (n,), and judges the model that they lead to.

    1. Each update is clipped to the calibrated bound (the `before` slot).
    2. It is scaled down so far that its client's persistence stays at most its cut, and left out if all together push in one direction
       by more than clean rounds did and its client pushes most.
    3. If the probe loss of some classes exceeds its reference by more than usual, the updates that raise it most are left out, and the
       part of the velocity that raises it is removed (the combined update holds its negative).
    4. If the confidence of some classes on the probe is below its reference, the updates that raise it count up to five times.
    5. If the accuracy on the probe, or of one class of it, has fallen by more than may be lost, the server returns to the last healthy
       model, and the bound of the clip is halved. It doubles again after 20 calm rounds, so that the server is never frozen.

    Args: by_class, gradient and shortfall_gradient, see `ClassProbe`; signs, of the sketch of a round (d,), secret.
    """

    by_class: Callable[[Tensor], ByClass]
    gradient: Callable[[Tensor, Tensor], Tensor]
    shortfall_gradient: Callable[[Tensor, Tensor], Tensor]
    signs: Callable[[int], Tensor]
    levels: Levels
    memories: Memories
    memory: Memory
    left_out: Tensor | None = None
    figures: dict[str, float] = field(default_factory=dict[str, float])

    needs = Needs(server_data=True, client_ids=True, calibration=True)
    weighted = True

    def before(self) -> Clip:
        """The clip of each update in this round."""
        return Clip("l2", self.levels.bound * self.memory.tightness)

    def combine(self, server: ServerState, updates: Tensor, weights: Tensor, clients: Tensor) -> Tensor:
        """The combined update (d,): `sum_i w_i a_i h_i clip(g_i) / W`, without what harms a class; h_i >= 1 if it helps one. Sets
        `left_out` (n,): the clients with a_i < 1/2."""
        memory, beta, cuts, signs = self.memory, self.memories.beta, self.levels.cuts[clients], self.signs(self.memory.rounds)
        unit = 1.0 / memory.tightness  # pushes are counted in bounds of the clip, so that a tighter clip is no laxer limit
        pushes = memory.pushes.of(clients)
        known = products(pushes, updates)
        scales = factors(pushes, known.times(unit), beta, cuts)
        scaled = int((scales < 1.0).sum())
        limit = self.levels.joint_in(memory.rounds + 1, beta)
        sketches = unit * scales.unsqueeze(1) * sketch(updates, signs)
        joint = conspirators(sketch(memory.pushes.sums, signs), sketches, clients, beta, cuts, limit)
        scales = torch.where(joint.silent, 0.0, scales)
        rising = self._rising()
        correction, dropped = torch.zeros_like(server.theta), torch.zeros_like(clients, dtype=torch.bool)
        if rising.any():
            gradient = self.gradient(server.theta, rising)
            dropped = harmful(-weights * scales * (updates @ gradient))
            correction = self.memories.momentum * harmful_part(server.velocity, gradient)
            scales = torch.where(dropped, 0.0, scales)
        deficits = (memory.confidence - memory.now.confidences).clamp(min=0.0)
        helping = strength(deficits, self.levels.falls)
        if helping:
            helps = boosts(updates, known.squares.sqrt(), self.shortfall_gradient(server.theta, deficits), helping)
        else:
            helps = torch.ones_like(scales)
        pushes = add(pushes, updates, unit * scales, known, beta)
        memory.pushes.put(clients, pushes)
        self.left_out = scales < 0.5
        self.figures = {
            "scaled": float(scaled),
            "silenced": float(joint.silent.sum()),
            "rising_classes": float(rising.sum()),
            "dropped": float(dropped.sum()),
            "helping": helping,
            "tightness": memory.tightness,
            "largest_persistence": float(persistence(pushes).max()),
            "joint_push": joint.push,
        }
        return (weights * scales * helps) @ updates / weights.sum() - correction

    def settle(self, server: ServerState) -> tuple[ServerState, dict[str, float]]:
        """The server after the step, or after a return to an earlier model; and the figures of it."""
        memory, now = self.memory, self.by_class(server.theta)
        reference = follow(memory.reference, now.losses, self.levels.usual_losses, FORGET)
        smooth = memory.smooth + (summary(now) - memory.smooth) / SMOOTH
        best = -follow(-memory.best, -smooth, -self.levels.usual_accuracies, FORGET)
        lost = best - smooth
        returns = not bool((lost <= self.levels.lost).all())  # in this form a model that is not a number is not accepted
        figures = {"returned": float(returns), "probe_accuracy": float(smooth[-1]), "most_lost": float(lost[:-1].max())}
        calm, tightness = memory.calm + 1, memory.tightness
        confidence = -follow(-memory.confidence, -now.confidences, -self.levels.usual_confidences, FORGET)
        if returns:
            server = ServerState(memory.kept, torch.zeros_like(memory.kept))
            now, smooth, best, confidence = self.by_class(server.theta), memory.kept_smooth, memory.kept_best, memory.kept_confidence
            reference = follow(memory.reference, now.losses, self.levels.usual_losses, FORGET)
            tightness, calm = max(tightness / 2.0, TIGHTEST), 0
        elif calm >= CALM and tightness < 1.0:
            tightness, calm = tightness * 2.0, 0
        memory = memory._replace(
            now=now,
            reference=reference,
            confidence=confidence,
            smooth=smooth,
            best=best,
            tightness=tightness,
            calm=calm,
            rounds=memory.rounds + 1,
        )
        most = torch.maximum(lost, best - summary(now))  # the running means lag behind a fall
        if not returns and bool((most <= self.levels.lost / 2.0).all()) and not self._rising_in(memory).any():
            memory = memory._replace(kept=server.theta, kept_smooth=smooth, kept_best=best, kept_confidence=confidence)
        self.memory = memory
        return server, figures

    def _rising(self) -> Tensor:
        return self._rising_in(self.memory)

    def _rising_in(self, memory: Memory) -> Tensor:
        """The classes, bool (c,), whose loss exceeds its reference by more than usual."""
        return memory.now.losses - memory.reference > self.levels.rises


def begin_defence(config: Config, theta: Tensor, probe: ClassProbe, levels: Levels) -> SecondDefence:
    """The defence before round 1, from the burnt-in model theta (d,)."""

    def signs(number: int) -> Tensor:
        return torch.from_numpy(2.0 * stream(config.seed, "sketch", number).integers(0, 2, len(theta)) - 1.0).to(theta)

    return SecondDefence(
        by_class=probe.by_class,
        gradient=probe.gradient,
        shortfall_gradient=probe.shortfall_gradient,
        signs=signs,
        levels=levels,
        memories=Memories(config.strategy.persistence_memory, config.server.momentum),
        memory=first_memory(theta, probe.by_class(theta), no_pushes(config.data.num_clients, len(theta)), levels),
    )


def summary(now: ByClass) -> Tensor:
    """The accuracies of each class and their mean (c + 1,)."""
    return torch.cat([now.accuracies, now.accuracies.mean().unsqueeze(0)])


def first_memory(theta: Tensor, now: ByClass, pushes: Pushes, levels: Levels) -> Memory:
    """The memory before round 1, from the burnt-in model theta (d,)."""
    accuracies, reference = summary(now), torch.maximum(now.losses, levels.usual_losses)
    best = torch.minimum(accuracies, levels.usual_accuracies)
    confidence = torch.minimum(now.confidences, levels.usual_confidences)
    return Memory(pushes, now, reference, confidence, accuracies, best, theta, accuracies, best, confidence, 1.0, 0, 0)
