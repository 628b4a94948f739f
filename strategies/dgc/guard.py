"""DGC, discrepancy-aware gradient clipping: clip or drop an update only if the resulting model disagrees with earlier models on the
server's probe set.

Source: Zhu et al. 2023, App. C.10, which names it but gives no algorithm. Ours (docs/mathematics.md, section 8): two references, the
rise of the loss, the drift, the backtracking step, the probation, the rehearsing guard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fl_sim.config.keys import Strategy
from fl_sim.data.batches import Batch
from fl_sim.grid.server_strategy import Needs
from fl_sim.model.flat_model import FlatModel
from fl_sim.training.clipping import Clip, clip
from strategies.dgc.discrepancy import DIVERGENCES, log_probabilities
from strategies.dgc.thresholds import Calibration, all_below, running_mean, upper_quartile
from strategies.server_sgd import ServerState, server_step

HALVINGS = 6  # of a refused step, before the step is dropped
LONGER = 4  # each probation is this many times as long as the one before


class GuardState(NamedTuple):
    """What a guard remembers from round to round.

    round: rounds so far. fixed, recent: log-probabilities (e, c) on the probe set, of the burnt-in model and of the last `strategy.lag`
    models, oldest first; no model is stored. lowest: the lowest probe loss of any model so far. probation: rounds of probation left.
    probation_length: the length of the last probation when it began, 0 before the first. bound: the bound of each client's update during
    a probation. running: the running means of the discrepancies.
    """

    round: int
    fixed: Tensor
    recent: tuple[Tensor, ...]
    lowest: float
    probation: int
    probation_length: int
    bound: float
    running: Mapping[str, float]

    def to(self, device: torch.device) -> GuardState:
        """The state with its tensors on a device."""
        return self._replace(fixed=self.fixed.to(device), recent=tuple(log_probs.to(device) for log_probs in self.recent))


class Judgement(NamedTuple):
    """The server's next state, the guard's next state, and the round's figures."""

    server: ServerState
    guard: GuardState
    metrics: dict[str, float]


def guard_problems(settings: Strategy) -> list[str]:
    """What is wrong with `strategy.*` for a guard, one sentence per problem."""
    if settings.guard != "discrepancy" and math.isinf(settings.bound):
        return [f"expected a finite strategy.bound (the step rehearsed) with strategy.guard = {settings.guard!r}, got inf"]
    if settings.scope == "client" and settings.guard != "discrepancy":
        return [f"expected strategy.guard = 'discrepancy' with strategy.scope = 'client', got {settings.guard!r}"]
    return []


@dataclass(frozen=True)
class Guard:
    """Judges candidate models on the server's own probe set.

    Args: settings, `strategy.*`; probe, examples (e, C, H, W) with labels (e,), on the device where models are run; calibration, the
    thresholds by the name of a score (see `scores`); learning_rate and momentum, the server's.
    """

    settings: Strategy
    model: FlatModel
    probe: Batch
    calibration: Calibration
    learning_rate: float
    momentum: float

    needs = Needs(server_data=True, calibration=True)

    def begin(self, theta: Tensor) -> GuardState:
        """The state before round 1, from the burnt-in model theta (d,)."""
        log_probs = self._log_probs(theta)
        upper_norm, running = self.calibration.upper_norm, self.calibration.usual()
        return GuardState(0, log_probs, (log_probs,), self._loss(log_probs), 0, 0, upper_norm, running)

    def before(self, state: GuardState) -> Clip | None:
        """The clip of each client's update during a probation; None in a normal round."""
        return Clip("l2", state.bound) if state.probation else None

    def scores(self, theta: Tensor, state: GuardState) -> tuple[dict[str, float], Tensor]:
        """The scores of a candidate theta (d,), and its log-probabilities (e, c) on the probe set.

        history: mean Memorization Discrepancy against the model `lag` rounds before the candidate. fixed: the same against the burnt-in
        model, because a patient attacker can slowly move a reference that follows the model. rise: the probe loss minus the lowest one so
        far, at least 0. A half-trained model changes so fast that a discrepancy cannot distinguish damage from learning; the rise can.
        fragility (the rehearsing guard): the increase of the probe loss after one reversed step of norm eta = `strategy.bound`,
        `L(probe; theta + server_lr * eta * u) - L(probe; theta)` with u the unit probe gradient.
        """
        divergence, settings, means = DIVERGENCES[self.settings.divergence], self.settings, dict[str, Tensor]()
        theta = self._here(theta)
        if settings.guard == "discrepancy":
            log_probs, gradient = self._log_probs(theta), torch.empty(0)
        else:  # one forward pass for both
            logits, gradient = self.model.logits_and_gradient(theta, *self.probe)
            log_probs = log_probabilities(logits)
        if settings.guard != "rehearsing":
            if settings.reference != "fixed":
                means["history"] = divergence(state.recent[0], log_probs).mean()
            if settings.reference != "history":
                means["fixed"] = divergence(state.fixed, log_probs).mean()
        means["loss"] = F.nll_loss(log_probs, self.probe.labels)
        scores = dict(zip(means, torch.stack([*means.values()]).tolist(), strict=True))  # one copy from the device
        loss = scores.pop("loss")
        if settings.rise:
            scores["rise"] = max(loss - state.lowest, 0.0)  # in this order NaN stays NaN
        if settings.guard != "discrepancy":
            u = gradient / torch.linalg.vector_norm(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
            loss_after = self.model.score(theta + self.learning_rate * settings.bound * u, *self.probe)[1]
            scores["fragility"] = loss_after - loss
        return scores, log_probs

    def judge(self, server: ServerState, combined: Tensor, state: GuardState, client_norms: Tensor) -> Judgement:
        """Apply a combined update (d,) if every score of the resulting model is at most its threshold, else do `strategy.action`.

        backtrack: halve the step until it scores like a typical clean round, at most six times, then drop it. skip: drop the step. Both
        reset the momentum: at 0.9 it would let the accepted part of a refused step grow tenfold over the next rounds. clip: clip the update
        to `strategy.small-bound` and apply it.

        Many small pushes can each pass. If a discrepancy's running mean exceeds `strategy.drift` times its clean maximum, the step is
        applied and the momentum is reset. The running mean leaves out the rounds of a probation.

        A probation follows a refusal or a drift. During it each client's update is clipped, so that the honest majority goes on learning
        under a persistent attack. The bound is the upper quartile of the calibration's norms in the first round, and from the second
        round on the upper quartile of the first round's norms if that is smaller. It does not follow later rounds: the norms of clipped
        updates fall, until nothing is learned. Each probation is four times as long as the one before.

        Args: client_norms (n,), of the updates in `combined`; NaN where nobody computed them.
        """
        round_, settings, calibration = state.round + 1, self.settings, self.calibration
        proposal = server_step(server, combined, self.learning_rate, self.momentum)
        scores, log_probs = self.scores(proposal.theta, state)
        thresholds = calibration.during_probation if state.probation else calibration.thresholds
        refused = not all_below(scores, thresholds, round_)
        scale, server_state = 1.0, proposal
        if refused and settings.action == "clip":
            clipped = clip(combined, Clip("l2", settings.small_bound))[0].nan_to_num(0.0, 0.0, 0.0)
            server_state = server_step(server, clipped, self.learning_rate, self.momentum)
        elif refused:
            scale, theta = self._backtracked(server, proposal.velocity, state, HALVINGS if settings.action == "backtrack" else 0)
            server_state = ServerState(theta, torch.zeros_like(theta))
        if refused:
            log_probs = self._log_probs(server_state.theta)
        metrics = {"refused": float(refused), "step_scale": scale, "probation": float(state.probation > 0)}
        metrics |= scores | {f"{name}_threshold": thresholds[name].at(round_) for name in scores}
        running, drifted = self._drift(state, scores, refused)
        if drifted:
            server_state = server_state._replace(velocity=torch.zeros_like(server_state.velocity))
        metrics |= {f"{name}_level": level for name, level in running.items()} | {"drifted": float(drifted)}
        metrics |= {f"{name}_level_threshold": calibration.levels[name].most for name in running}
        alarmed = refused or drifted
        probation, length = self._next_probation(state, alarmed)
        recent, lowest = (*state.recent, log_probs)[-settings.lag :], min(state.lowest, self._loss(log_probs))
        bound, running = self._bound(state, client_norms), calibration.usual() if alarmed else running
        guard = GuardState(round_, state.fixed, recent, lowest, probation, length, bound, running)
        return Judgement(server_state, guard, metrics)

    def _drift(self, state: GuardState, scores: Mapping[str, float], refused: bool) -> tuple[Mapping[str, float], bool]:
        """The running means after a round, and whether one of them is too high. Refused steps and rounds of a probation do not count."""
        if refused or state.probation:
            return state.running, False
        running = {name: running_mean(before, scores[name]) for name, before in state.running.items()}
        return running, any(level > self.calibration.levels[name].most for name, level in running.items())

    def _bound(self, state: GuardState, client_norms: Tensor) -> float:
        """The bound of each client's update in the next round, if that is a round of a probation.

        Honest clients report their norms only during a probation. In other rounds the known norms may all be those of malicious clients.
        """
        norms = client_norms[torch.isfinite(client_norms)]
        if not state.probation:
            return self.calibration.upper_norm
        first = state.probation == state.probation_length
        return min(state.bound, upper_quartile(norms)) if first and len(norms) else state.bound

    def _next_probation(self, state: GuardState, alarmed: bool) -> tuple[int, int]:
        """Rounds of probation left after this one, and the length of the last probation when it began."""
        if state.probation:
            return state.probation - 1, state.probation_length
        if not alarmed:
            return 0, state.probation_length
        length = LONGER * state.probation_length or self.settings.probation
        return length, length

    def sift(self, theta: Tensor, updates: Tensor, state: GuardState) -> tuple[Tensor, dict[str, float]]:
        """Scope `client`: the updates (n, d), each clipped to `strategy.bound` if its own candidate `theta - server_lr * g_i` exceeds a
        threshold. And the round's figures: the largest value of each score, and how many updates were clipped (`refused`).
        """
        round_, rows, worst, clipped = state.round + 1, list(updates), dict[str, float](), 0
        theta_here = self._here(theta)
        for i, update in enumerate(updates):
            candidate = theta_here - self.learning_rate * self._here(update)
            scores, _ = self.scores(candidate, state)
            worst = {name: max(value, worst.get(name, value)) for name, value in scores.items()}
            if not all_below(scores, self.calibration.thresholds, round_):
                rows[i], clipped = clip(update, Clip(self.settings.norm, self.settings.bound))[0], clipped + 1
        metrics = {
            **worst,
            **{f"{name}_threshold": self.calibration.thresholds[name].at(round_) for name in worst},
            "refused": float(clipped),
        }
        return torch.stack(rows), metrics

    def follow(self, theta: Tensor, state: GuardState) -> GuardState:
        """The state after a round whose combined update was not judged (scope `client`)."""
        log_probs = self._log_probs(theta)
        recent, lowest = (*state.recent, log_probs)[-self.settings.lag :], min(state.lowest, self._loss(log_probs))
        return state._replace(round=state.round + 1, recent=recent, lowest=lowest)

    def _backtracked(self, server: ServerState, velocity: Tensor, state: GuardState, halvings: int) -> tuple[float, Tensor]:
        """The longest of 1/2, 1/4, … of a refused step that scores like a typical clean round, with its scale. Scale 0 if none does."""
        for halving in range(1, halvings + 1):
            scale = 0.5**halving
            theta = server.theta - self.learning_rate * scale * velocity
            if all_below(self.scores(theta, state)[0], self.calibration.typical, state.round + 1):
                return scale, theta
        return 0.0, server.theta

    def _loss(self, log_probs: Tensor) -> float:
        """Mean cross-entropy on the probe set of a model with these log-probabilities (e, c)."""
        return float(F.nll_loss(log_probs, self.probe.labels))

    @torch.no_grad()
    def _log_probs(self, theta: Tensor) -> Tensor:
        """Log-probabilities (e, c) of theta (d,) on the probe set."""
        return log_probabilities(self.model.logits(self._here(theta), self.probe.inputs))

    def _here(self, theta: Tensor) -> Tensor:
        """A model (d,) on the device of the probe set."""
        return theta.to(self.probe.inputs.device)
