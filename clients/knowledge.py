"""What the coalition may know: frozen objects that hold no more than their name says (DESIGN section 5)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fl_sim.clipping import Clip, clip
from fl_sim.config import Attack
from fl_sim.federation import Batch
from fl_sim.flat_model import FlatModel


@dataclass(frozen=True)
class Knowledge:
    """`attack.knowledge = "coalition"`: the global model, the members' own data and updates, who of it was sampled.

    Beside that only public parameters of the protocol: the server's learning rate and how many clients a round samples.
    """

    round: int
    phase: str  # accumulate, trigger
    accumulate: bool  # false in a control: everything but the accumulation
    may_fire: bool  # false if the schedule has no trigger
    total_rounds: int  # T, the length of the accumulative phase
    model: FlatModel
    theta: Tensor  # (d,)
    members: tuple[int, ...]  # the m sampled members
    updates: Tensor  # (m, d) what they would honestly send
    weights: Tensor  # (m,)
    num_sampled: int  # n
    server_lr: float
    validation: Batch  # S_val, whole
    validation_draw: Batch  # this round's draw of S_val
    trigger_batch: Batch  # S_T
    settings: Attack
    own_seed: int  # of the coalition's own randomness in this round

    @property
    def honest_sum(self) -> Tensor:
        """The honest clients' weighted sum (d,), estimated: every honest client is like the mean member."""
        mean = (self.weights.unsqueeze(1) * self.updates).sum(dim=0) / self.weights.sum()
        return mean * self.honest_weight

    @property
    def honest_weight(self) -> float:
        """The honest clients' total weight, estimated from the mean weight of a member."""
        return float(self.weights.mean()) * (self.num_sampled - len(self.members))

    @property
    def total_weight(self) -> float:
        """W, the weight of all n sampled clients."""
        return self.honest_weight + float(self.weights.sum())

    @property
    def honest_mean(self) -> Tensor:
        """honest_t (d,): the weighted mean of what all n sampled clients, members included, would honestly send."""
        members = (self.weights.unsqueeze(1) * self.updates).sum(dim=0)
        return (self.honest_sum + members) / self.total_weight

    def reachable(self, combined: Tensor) -> Tensor:
        """As much of a combined update (d,) as the coalition expects to get through. Without knowledge of the rule: all."""
        return combined


@dataclass(frozen=True)
class RuleAware(Knowledge):
    """`attack.knowledge = "rule"`: and the strategy's clip, as slot, norm and bound."""

    before: Clip | None
    after: Clip | None

    def reachable(self, combined: Tensor) -> Tensor:
        """The combined update (d,) at the length that the clip lets through.

        Clip-after at bound b: at most b. Clip-before: each of the m updates at most b, so together at most `b * (their
        share of the weight)`, about `m * b / n`. Source: Pang et al. 2021, App. C.
        """
        if self.before:
            share = float(self.weights.sum()) / self.total_weight
            combined = clip(combined, Clip(self.before.norm, self.before.bound * share))[0]
        return clip(combined, self.after)[0] if self.after else combined


@dataclass(frozen=True)
class Omniscient(RuleAware):
    """`attack.knowledge = "omniscient"`: and the honest clients' combined update of this round (the papers' white box)."""

    seen_sum: Tensor  # (d,) the honest clients' weighted sum as the server will combine it
    seen_weight: float

    @property
    def honest_sum(self) -> Tensor:
        return self.seen_sum

    @property
    def honest_weight(self) -> float:
        return self.seen_weight
