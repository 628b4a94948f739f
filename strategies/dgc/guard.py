"""DGC, discrepancy-aware gradient clipping: leave updates alone until the model that they lead to says something else.

Source: Zhu et al. 2023, App. C.10, which names it and does not spell it out. Ours (MATH section 5): two references, the
rise of the loss, the drift, the backtracking step, the probation, the rehearsing guard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fl_sim.config.keys import Strategy
from fl_sim.data.federation import Batch
from fl_sim.model.flat_model import FlatModel
from fl_sim.training.clipping import Clip, clip
from strategies.dgc.discrepancy import DIVERGENCES, log_probabilities
from strategies.dgc.thresholds import Calibration, running_mean, upper_quartile, within
from strategies.server_sgd import ServerState, server_step

HALVINGS = 6  # of a refused step, before it is dropped
LONGER = 4  # factor of a probation's length over the one before


class GuardState(NamedTuple):
    """What a guard remembers: rounds so far; log-probabilities (e, c) on the probe set of the burnt-in model and of the last
    `strategy.lag` models, oldest first, but no old model; the lowest probe loss of them all; rounds of probation left, and how long
    the last probation was when it began; the bound of a client's update during probation; the running means of the discrepancies."""

    round: int
    fixed: Tensor
    recent: tuple[Tensor, ...]
    lowest: float
    probation: int
    sentence: int
    bound: float
    running: Mapping[str, float]

    def to(self, device: torch.device) -> GuardState:
        """The state with its tensors on a device."""
        return self._replace(fixed=self.fixed.to(device), recent=tuple(said.to(device) for said in self.recent))


class Judged(NamedTuple):
    """The server's next state, the guard's, and what it measured and did."""

    server: ServerState
    guard: GuardState
    metrics: dict[str, float]


@dataclass(frozen=True)
class Guard:
    """Judges candidate models on the server's own probe set.

    Args: settings, `strategy.*`; probe, examples (e, C, H, W) with labels (e,), on the device where models are run; calibration,
    thresholds by the name of a score, see `scores`, and the rest that clean rounds told; learning_rate and momentum, the server's.
    """

    settings: Strategy
    model: FlatModel
    probe: Batch
    calibration: Calibration
    learning_rate: float
    momentum: float

    def begin(self, theta: Tensor) -> GuardState:
        """The state before round 1, from the burnt-in model theta (d,)."""
        said, known = self._said(theta), self.calibration
        return GuardState(0, said, (said,), self._loss(said), 0, 0, known.upper_norm, known.usual())

    def before(self, state: GuardState) -> Clip | None:
        """The clip of each client's update that a round asks for during probation."""
        return Clip("l2", state.bound) if state.probation else None

    def scores(self, theta: Tensor, state: GuardState, said: Tensor) -> dict[str, float]:
        """What a candidate theta (d,) is judged by, given what it says about the probe set (e, c).

        history: mean Memorization Discrepancy against the model `lag` rounds before the candidate; fixed: against the burnt-in
        model, because a patient attacker walks a reference that follows the model. rise: of the probe loss over the lowest so far,
        at least 0; a half-trained model changes so fast that no discrepancy tells damage from learning. fragility (the rehearsing
        guard): how much one reversed step of norm eta = `strategy.bound` along the probe gradient would hurt,
        `L(probe; theta + server_lr * eta * u) - L(probe; theta)`, u the unit gradient.
        """
        divergence, settings, found = DIVERGENCES[self.settings.divergence], self.settings, dict[str, float]()
        if settings.guard != "rehearsing":
            if settings.reference != "fixed":
                found["history"] = float(divergence(state.recent[0], said).mean())
            if settings.reference != "history":
                found["fixed"] = float(divergence(state.fixed, said).mean())
        if settings.rise:
            found["rise"] = max(self._loss(said) - state.lowest, 0.0)  # in this order not-a-number stays what it is
        if settings.guard != "discrepancy":
            theta = theta.to(self.probe.inputs.device)
            gradient = self.model.gradient(theta, *self.probe)
            u = gradient / torch.linalg.vector_norm(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
            hurt = self.model.score(theta + self.learning_rate * settings.bound * u, *self.probe)[1]
            found["fragility"] = hurt - self._loss(said)
        return found

    def judge(self, server: ServerState, combined: Tensor, state: GuardState, client_norms: Tensor) -> Judged:
        """Apply a combined update (d,) if the model that it leads to is tolerated, else `strategy.action`.

        backtrack: halve the step until it scores like a typical clean round, at most six times, then drop it. skip: drop it. The
        velocity becomes 0, so that nothing of a refused push comes back through momentum, at 0.9 ten times the part that was taken.
        clip: clip the update to `strategy.small-bound` and go on.

        Many small pushes that each pass are a drift: the running mean of a discrepancy, over rounds outside a probation, is more than
        `strategy.drift` times its highest in clean rounds. The step is taken; the velocity, in which more of them wait, becomes 0.

        After a refusal or a drift comes a probation: rounds in which each client is clipped at the upper quartile of the norms in the
        calibration, after the first round at that of this round where it is smaller, so that the honest majority goes on learning under a
        persistent attack. Not at each last round's: the norms of clipped updates fall, until nothing is learned. Each probation is four
        times as long as the one before.

        Args: client_norms (n,), of the updates behind it, NaN where nobody needed them.
        """
        round_, settings, known = state.round + 1, self.settings, self.calibration
        proposal = server_step(server, combined, self.learning_rate, self.momentum)
        said = self._said(proposal.theta)
        first = self.scores(proposal.theta, state, said)
        thresholds = known.during_probation if state.probation else known.thresholds
        refused = not within(first, thresholds, round_)
        scale, taken = 1.0, proposal
        if refused and settings.action == "clip":
            clipped = clip(combined, Clip("l2", settings.small_bound))[0].nan_to_num(0.0, 0.0, 0.0)
            taken = server_step(server, clipped, self.learning_rate, self.momentum)
        elif refused:
            scale, theta = self._backtracked(server, proposal.velocity, state, HALVINGS if settings.action == "backtrack" else 0)
            taken = ServerState(theta, torch.zeros_like(theta))
        if refused:
            said = self._said(taken.theta)
        metrics = {"refused": float(refused), "step-scale": scale, "probation": float(state.probation > 0)}
        metrics |= first | {f"{name}-threshold": thresholds[name].at(round_) for name in first}
        running, drifted = self._drift(state, first, refused)
        if drifted:
            taken = taken._replace(velocity=torch.zeros_like(taken.velocity))
        metrics |= {f"{name}-level": level for name, level in running.items()} | {"drifted": float(drifted)}
        metrics |= {f"{name}-level-threshold": known.levels[name].most for name in running}
        alarmed = refused or drifted
        probation, sentence = self._sentenced(state, alarmed)
        recent, lowest = (*state.recent, said)[-settings.lag :], min(state.lowest, self._loss(said))
        bound, running = self._bound(state, client_norms), known.usual() if alarmed else running
        guard = GuardState(round_, state.fixed, recent, lowest, probation, sentence, bound, running)
        return Judged(taken, guard, metrics)

    def _drift(self, state: GuardState, scores: Mapping[str, float], refused: bool) -> tuple[Mapping[str, float], bool]:
        """The running means after a round, and whether one of them is too high. What was refused does not count, nor does a probation."""
        if refused or state.probation:
            return state.running, False
        running = {name: running_mean(before, scores[name]) for name, before in state.running.items()}
        return running, any(level > self.calibration.levels[name].most for name, level in running.items())

    def _bound(self, state: GuardState, client_norms: Tensor) -> float:
        """The bound of a client's update in the next round, should it be one of a probation.

        Only a probation asks the honest clients for their norms: those of other rounds may be the malicious ones' alone.
        """
        known = client_norms[torch.isfinite(client_norms)]
        if not state.probation:
            return self.calibration.upper_norm
        return min(state.bound, upper_quartile(known)) if state.probation == state.sentence and len(known) else state.bound

    def _sentenced(self, state: GuardState, alarmed: bool) -> tuple[int, int]:
        """Rounds of probation left after this one, and how long the last probation was when it began."""
        if state.probation:
            return state.probation - 1, state.sentence
        if not alarmed:
            return 0, state.sentence
        sentence = LONGER * state.sentence or self.settings.probation
        return sentence, sentence

    def sift(self, theta: Tensor, updates: Tensor, state: GuardState) -> tuple[Tensor, dict[str, float]]:
        """Scope `client`: updates (n, d) with each one clipped to `strategy.bound` whose own candidate `theta - server_lr * g_i` is not
        tolerated. And the largest scores, with how many were clipped.
        """
        round_, rows, worst, clipped = state.round + 1, list(updates), dict[str, float](), 0
        for i, update in enumerate(updates):
            candidate = theta - self.learning_rate * update
            scores = self.scores(candidate, state, self._said(candidate))
            worst = {name: max(value, worst.get(name, value)) for name, value in scores.items()}
            if not within(scores, self.calibration.thresholds, round_):
                rows[i], clipped = clip(update, Clip(self.settings.norm, self.settings.bound))[0], clipped + 1
        metrics = {
            **worst,
            **{f"{name}-threshold": self.calibration.thresholds[name].at(round_) for name in worst},
            "refused": float(clipped),
        }
        return torch.stack(rows), metrics

    def follow(self, theta: Tensor, state: GuardState) -> GuardState:
        """The state after a round that was not judged as a whole (scope `client`)."""
        said = self._said(theta)
        recent, lowest = (*state.recent, said)[-self.settings.lag :], min(state.lowest, self._loss(said))
        return state._replace(round=state.round + 1, recent=recent, lowest=lowest)

    def _backtracked(self, server: ServerState, velocity: Tensor, state: GuardState, halvings: int) -> tuple[float, Tensor]:
        """The longest step among 1/2, 1/4, ... of a refused one that scores like a typical clean round; scale 0: none does."""
        for halving in range(1, halvings + 1):
            scale = 0.5**halving
            theta = server.theta - self.learning_rate * scale * velocity
            if within(self.scores(theta, state, self._said(theta)), self.calibration.typical, state.round + 1):
                return scale, theta
        return 0.0, server.theta

    def _loss(self, said: Tensor) -> float:
        """Mean cross-entropy on the probe set of a model that says `said` (e, c)."""
        return float(F.nll_loss(said, self.probe.labels))

    @torch.no_grad()
    def _said(self, theta: Tensor) -> Tensor:
        """Log-probabilities (e, c) of theta (d,) on the probe set."""
        return log_probabilities(self.model.logits(theta.to(self.probe.inputs.device), self.probe.inputs))
