"""`attack.delivery`: what the members send in place of an attack's own updates.

`rehearse`: the updates with which the server's own rule comes as near as it can to what an attack wants. The coalition tries the rule on
honest updates that it simulates with its own examples. Ours; the search of one length per round under the rule follows Fang et al. 2020,
"Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", section 4, and Shejwalkar and Houmansadr 2021, section IV. Where we
differ: any rule, any attack's direction, three shapes (docs/mathematics.md, section 4.12).

`alternating`, ours: against a server that remembers who pushes in one direction (DGC's second version; docs/mathematics.md, section 11.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.accumulative.offset import within_budget
from clients.action import Action
from clients.knowledge import Knowledge, KnownRule
from fl_sim.data.batches import CohortBatches
from fl_sim.rng.streams import torch_stream
from fl_sim.training.clipping import clip
from fl_sim.training.local import block_updates

SKETCH = 2048  # coordinates of a rehearsal: a rule on the whole of 100 updates of 100,000 numbers takes up to 3 s, a search needs 26
COARSE = tuple(4.0**k for k in range(-2, 4))  # lengths, in medians of the honest updates' distance from the member's start


@dataclass(frozen=True)
class Rehearsal:
    """The rule, tried on honest updates and on a choice of the members' updates, on some coordinates.

    members (m, k) and others (n - m, k), honest updates, those of the others simulated; weights (n,), the members' first; columns (k,), the
    coordinates, multiplied by `factor` so that distances are on average those of whole updates; honest (k,), what the rule gives if the
    members are honest.
    """

    rule: KnownRule
    members: Tensor
    others: Tensor
    weights: Tensor
    columns: Tensor
    factor: float
    honest: Tensor

    def sketch(self, vectors: Tensor) -> Tensor:
        """Some coordinates (..., k) of vectors (..., d)."""
        return self.factor * vectors[..., self.columns]

    def distance(self, start: Tensor) -> float:
        """The median distance of an honest update from start (d,)."""
        return float(torch.linalg.vector_norm(torch.cat([self.members, self.others]) - self.sketch(start), dim=1).median())

    def gap(self, updates: Tensor, shift: Tensor) -> float:
        """How far from the wanted shift (k,) the rule's output moves if the members send updates (m, d):
        `|rule(updates, others) - rule(honest, others) - shift|`."""
        moved = _output(self.rule, torch.cat([self.sketch(updates), self.others]), self.weights) - self.honest
        return float(torch.linalg.vector_norm(moved - shift))


def rehearsed(knowledge: Knowledge, action: Action) -> Action:
    """The action with the updates (m, d) that bring the rule's output nearest to what the attack wants.

    It wants the shift `s = sum_i w_i (A_i - g_i) / W` of the mean, as `attack.budget` measures it. Candidates are its own updates, and
    equal updates of all members, within the budget, of a length L:
    `L s / |s|` (the honest crowd may be near 0), `mean(g) + L s / |s|`, and `mean(g) + L std(g) sign(s)` (the edge of the honest spread),
    with g the honest updates, L over powers of 4 and then of 2 of their median distance. The nearest one wins; the attack's own on a tie.

    Figures: `delivery_gap`, `|output - honest output - s| / |s|` of the choice, 0 at best and 1 for honest members; `plain_gap`, the same
    of the attack's own updates. An honest action, and one that proposes images, stay as they are.
    """
    if action.images is not None or torch.equal(action.updates, knowledge.updates):
        return action
    plain = within_budget(knowledge, action.updates)[0]
    shift = knowledge.weights @ (plain - knowledge.updates) / knowledge.total_weight  # (d,)
    length = float(torch.linalg.vector_norm(shift))
    if length == 0.0:
        return action
    others = simulated(knowledge)
    trial = _rehearsal(knowledge, others)
    wanted = trial.sketch(shift)
    best, best_gap = plain, trial.gap(plain, wanted)
    plain_gap = best_gap
    for shape in _shapes(knowledge, trial, torch.cat([knowledge.updates, others]), shift):
        gaps = {size: trial.gap(shape(size), wanted) for size in COARSE}
        middle = min(gaps, key=gaps.__getitem__)
        gaps |= {size: trial.gap(shape(size), wanted) for size in (middle / 2.0, 2.0 * middle)}
        size = min(gaps, key=gaps.__getitem__)
        if gaps[size] < best_gap:
            best, best_gap = shape(size), gaps[size]
    scale = float(torch.linalg.vector_norm(wanted)) or 1.0
    figures = {"delivery_gap": best_gap / scale, "plain_gap": plain_gap / scale}
    return action._replace(updates=best, metrics={**action.metrics, **figures})


def alternating(knowledge: Knowledge, action: Action) -> Action:
    """The action with updates of the same lengths, `|A_i| (c A_i / |A_i| + s sqrt(1 - c^2) e_i)`: c is `attack.push-share`, e_i a unit
    vector that is a member's own for good and orthogonal to A_i, s = 1 in odd rounds and -1 in even ones. What is sent adds up to c A_i;
    the rest cancels. An honest action, and one that proposes images, stay as they are."""
    if action.images is not None or torch.equal(action.updates, knowledge.updates):
        return action
    share, sign = knowledge.settings.push_share, 1.0 if knowledge.round % 2 else -1.0
    lengths, along = torch.linalg.vector_norm(action.updates, dim=1, keepdim=True), F.normalize(action.updates, dim=1)
    drawn = torch.stack([torch.randn(along.shape[1], generator=torch_stream(member, "alternating")) for member in knowledge.members]).to(
        along
    )
    rest = F.normalize(drawn - (drawn * along).sum(dim=1, keepdim=True) * along, dim=1)
    return action._replace(updates=lengths * (share * along + sign * (1.0 - share**2) ** 0.5 * rest))


def simulated(knowledge: Knowledge) -> Tensor:
    """Updates (n - m, d) as the honest clients may send them: local training on batches drawn with replacement from S_val."""
    drawn = knowledge.batches
    count, (_, steps, size) = knowledge.num_sampled - len(knowledge.members), drawn.labels.shape
    if not count:
        return torch.zeros_like(knowledge.updates[:0])
    generator = torch_stream(knowledge.own_seed, "simulated")
    places = torch.randint(len(knowledge.validation.labels), (count, steps, size), generator=generator).to(drawn.labels.device)
    inputs, labels = knowledge.validation.inputs[places], knowledge.validation.labels[places]
    weights = torch.full(places.shape, 1.0 / size, dtype=drawn.weights.dtype, device=drawn.weights.device)
    return block_updates(knowledge.model, knowledge.theta, CohortBatches(inputs, labels, weights, [size] * count), knowledge.client)


def _rehearsal(knowledge: Knowledge, others: Tensor) -> Rehearsal:
    """The rehearsal of a round, given the simulated updates (n - m, d)."""
    rule, d = knowledge.rule, others.shape[1]
    assert rule is not None  # the configuration is checked
    columns = torch.arange(d, device=others.device)
    if d > SKETCH:
        columns = torch.randperm(d, generator=torch_stream(knowledge.own_seed, "sketch"))[:SKETCH].sort().values.to(others.device)
    factor = (d / len(columns)) ** 0.5
    weights = torch.cat([knowledge.weights, knowledge.weights.new_full((len(others),), knowledge.honest_weight / max(len(others), 1))])
    members, simulations = knowledge.updates[:, columns] * factor, others[:, columns] * factor
    return Rehearsal(rule, members, simulations, weights, columns, factor, _output(rule, torch.cat([members, simulations]), weights))


def _output(rule: KnownRule, rows: Tensor, weights: Tensor) -> Tensor:
    """What the rule makes of rows (n, k)."""
    assert rule.combine is not None
    combined = rule.combine(clip(rows, rule.before)[0] if rule.before else rows, weights)
    return clip(combined, rule.after)[0] if rule.after else combined


def _shapes(knowledge: Knowledge, trial: Rehearsal, honest: Tensor, shift: Tensor) -> Iterator[Callable[[float], Tensor]]:
    """Families of equal updates (m, d) within the budget, by their length. Args: honest (n, d); shift (d,), what the attack wants."""
    mean, along, spread = honest.mean(dim=0), F.normalize(shift, dim=0), F.normalize(honest.std(dim=0) * shift.sign(), dim=0)

    def family(start: Tensor, direction: Tensor) -> Callable[[float], Tensor]:
        unit = trial.distance(start) * direction
        return lambda size: within_budget(knowledge, (start + size * unit).expand(len(knowledge.members), -1))[0]

    for start, direction in ((torch.zeros_like(mean), along), (mean, along), (mean, spread)):
        yield family(start, direction)
