"""Persistence: how much of what a client sends adds up over the rounds.

Honest updates of small batches are nearly orthogonal from round to round; a patient attacker's are not. Ours (docs/mathematics.md,
section 11.2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fl_sim.training.clipping import norms

SKETCH = 1024  # numbers that stand for a sum where all clients are compared; inner products are off by about 3 % of the lengths


class Pushes(NamedTuple):
    """What each client's applied updates added up to, by client id: `sums` S (N, d), their `norms` |S|^2 (N,), and the `squares` Q (N,) of
    the updates' lengths."""

    sums: Tensor
    norms: Tensor
    squares: Tensor

    def of(self, clients: Tensor) -> Pushes:
        """Those of the clients with these ids (n,); no copy if these are all in order."""
        if len(clients) == len(self.norms) and bool((clients[1:] > clients[:-1]).all()):
            return self
        return Pushes(*(part[clients] for part in self))

    def put(self, clients: Tensor, pushes: Pushes) -> None:
        """Overwrite those of the clients with these ids (n,)."""
        for part, new in zip(self, pushes, strict=True):
            if part is not new:
                part[clients] = new


def no_pushes(num_clients: int, dimensions: int) -> Pushes:
    """The state before the first round."""
    return Pushes(torch.zeros(num_clients, dimensions), torch.zeros(num_clients), torch.zeros(num_clients))


class Products(NamedTuple):
    """Of updates g (n, d) and what their clients had pushed before: `along` <S, g> and `squares` |g|^2 (n,)."""

    along: Tensor
    squares: Tensor

    def times(self, unit: float) -> Products:
        """Those of `unit * g`."""
        return Products(unit * self.along, unit**2 * self.squares)


def products(pushes: Pushes, updates: Tensor) -> Products:
    """The products of updates (n, d) with the pushes of the same n clients."""
    along = torch.stack([torch.dot(own, update) for own, update in zip(pushes.sums, updates, strict=True)])  # vecdot copies (n, d)
    return Products(along, norms(updates).square())


def sketch(vectors: Tensor, signs: Tensor) -> Tensor:
    """A random projection of vectors (n, d) to (n, k): coordinate j is added to the number j mod k with the sign `signs[j]`.

    Inner products are kept in expectation: `E <sketch(a), sketch(b)> = <a, b>`. The signs (d,), 1 or -1, are to be drawn afresh in every
    round: an attacker that sees what the server makes of its updates can learn signs that stay, and then push where they see nothing.
    Source: Charikar et al. 2002 (count sketch), with a fixed assignment to the k numbers.
    """
    sketches = vectors.new_zeros(len(vectors), SKETCH)
    for part, own in zip(vectors.split(SKETCH, dim=1), signs.split(SKETCH), strict=True):  # k coordinates at a time: no copy of (n, d)
        sketches[:, : len(own)].addcmul_(part, own)
    return sketches


def persistence(pushes: Pushes) -> Tensor:
    """`R = |S|^2 / Q` (n,): about 1 for independent updates; see `largest_persistence`."""
    return pushes.norms / pushes.squares.clamp(min=torch.finfo(pushes.squares.dtype).tiny)


def largest_persistence(beta: float) -> float:
    """`(1 + beta) / (1 - beta)`: the R of the same update in every round."""
    return (1.0 + beta) / (1.0 - beta)


def add(pushes: Pushes, updates: Tensor, scales: Tensor, known: Products, beta: float) -> Pushes:
    """`S <- beta S + a g`, `Q <- beta^2 Q + |a g|^2` for updates g (n, d) applied with factors a (n,); pushes of the same n clients, whose
    sums are overwritten."""
    added = scales.square() * known.squares
    return Pushes(
        pushes.sums.mul_(beta).addcmul_(updates, scales.unsqueeze(1)),
        (beta**2 * pushes.norms + 2.0 * beta * scales * known.along + added).clamp(min=0.0),
        beta**2 * pushes.squares + added,
    )


def factors(pushes: Pushes, known: Products, beta: float, cuts: Tensor) -> Tensor:
    """The largest factor a (n,) from 0 to 1 of each update with which the client's R stays at most its cut.

    `|beta S + a g|^2 <= cut (beta^2 Q + a^2 |g|^2)` is a quadratic inequality in a. It holds at a = 0 if it held in the round before, so
    that it holds in every round: this bounds what a client's applied updates can add up to, whatever it sends.

    Args: pushes of the n clients before the round; known, their products with the updates; cuts (n,), above 1.
    """
    quadratic = (cuts - 1.0) * known.squares  # the inequality is: -quadratic a^2 + linear a - slack <= 0
    linear = 2.0 * beta * known.along
    slack = beta**2 * (cuts * pushes.squares - pushes.norms).clamp(min=0.0)  # below 0 by rounding only
    broken = linear - quadratic > slack  # at a = 1; then linear > 0 and the roots are real
    root = (linear.square() - 4.0 * quadratic * slack).clamp(min=0.0).sqrt()
    return torch.where(broken, 2.0 * slack / (linear + root).clamp(min=torch.finfo(linear.dtype).tiny), 1.0).clamp(max=1.0)


def strongest(sums: Tensor) -> tuple[Tensor, Tensor]:
    """`max_v |(S - mean S) v|^2` over unit vectors, and that v (k,), of sketched sums S (N, k): the direction in which clients have pushed
    apart most. (All honest clients push along the mean.)"""
    apart = sums - sums.mean(dim=0)
    if len(apart) <= apart.shape[1]:  # the smaller of the two matrices with these eigenvalues
        values, vectors = torch.linalg.eigh(apart @ apart.T)
        return values[-1], torch.nn.functional.normalize(apart.T @ vectors[:, -1], dim=0)
    values, vectors = torch.linalg.eigh(apart.T @ apart)
    return values[-1], vectors[:, -1]


class Joint(NamedTuple):
    """silent: the clients of a round, bool (n,), that are left out; push: what all clients together have then pushed in one direction."""

    silent: Tensor
    push: float


def conspirators(sums: Tensor, sketches: Tensor, clients: Tensor, beta: float, cuts: Tensor, limit: float) -> Joint:
    """Whom to leave out so that clients do not push apart in any direction by more than a limit, `|(S - mean S) v|^2 <= limit`.

    Along the direction that is pushed too much those go first that pushed most, in proportion to their cuts (a client that always repeated
    itself goes last). It ends where leaving out more would not help: a majority that pushes in one direction moves the mean, and is not
    held.

    Args: sketched sums S (N, k) before the round, sketches (n, k) of the updates of the clients with ids `clients` (n,), their cuts (n,).
    """
    silent = torch.zeros_like(clients, dtype=torch.bool)
    if not sketches.isfinite().all():
        return Joint(silent, float("nan"))
    usual = cuts.clamp(max=largest_persistence(beta))
    after, before = sums.clone(), beta * sums[clients]
    after[clients] = before + sketches
    while True:
        push, direction = strongest(after)
        mean = after.mean(dim=0)
        pushed = ((after[clients] - mean) @ direction).square()
        relief = torch.where(silent, 0.0, pushed - ((before - mean) @ direction).square()).clamp(min=0.0)
        if push <= limit or not relief.any():
            return Joint(silent, float(push))
        order = torch.where(relief > 0.0, pushed / usual, -1.0).argsort(descending=True, stable=True)
        relief_before = relief[order].cumsum(dim=0) - relief[order]  # by those that go before
        silent[order] |= (relief[order] > 0.0) & (relief_before < push - limit)
        after[clients[silent]] = before[silent]
