"""The law of each partition: sizes, classes per client, moments; and what the registry takes for a name."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from fl_sim.data.partitions import dirichlet, dirichlet_per_class, label_quantity, partitions, quantity_skew
from fl_sim.data.splits import SplitPlan, Splits, make_splits
from tests.support.small_data import SORTED, split

MANY = np.repeat(np.arange(10), 2_000)


def counts(shares: list[np.ndarray], labels: np.ndarray = SORTED) -> np.ndarray:
    """Examples of each client and class (N, c)."""
    return np.array([np.bincount(labels[share], minlength=10) for share in shares])


def classes_per_client(splits: Splits) -> list[int]:
    return (counts(list(splits.shares)) > 0).sum(axis=1).tolist()


def effective_classes(shares: list[np.ndarray], labels: np.ndarray) -> float:
    """The mean over clients of e to the entropy of their labels: c for everybody alike, 1 for one class each."""
    mixtures = counts(shares, labels) / np.array([[len(share)] for share in shares])
    return float(np.exp(-(mixtures * np.log(np.where(mixtures > 0, mixtures, 1))).sum(axis=1)).mean())


def test_iid_and_dirichlet_shares_have_equal_sizes() -> None:
    for partition in ("iid", "dirichlet"):
        sizes = [len(share) for share in split(partition, num_clients=7).shares]  # 900 / 7 = 128.6
        assert set(sizes) == {128, 129}


def test_dirichlet_alpha_goes_from_one_class_each_to_everybodys_mixture() -> None:
    """20 clients of 45 out of 10 classes of about 90. At alpha -> 0 a client takes one class, and a second where that runs out;
    only the last ones scrape together what is left. At infinity it misses a given class with probability 0.9^45 = 0.9 %."""
    lonely, some, even = (classes_per_client(split("dirichlet", options={"alpha": alpha})) for alpha in (1e-6, 1.0, 1e6))
    assert np.median(lonely) == 1
    assert np.mean(lonely) < 2 < 3 < np.mean(some) < 7 < 9 < np.mean(even)


def test_dirichlet_variance_is_the_laws() -> None:
    """Var(share of class k) = p (1 - p) / (alpha + 1) over clients, here 0.09 / 2 for alpha = 1, plus 1 % from drawing 100 examples.

    The first 300 of 2,000 clients, so that no class has run out; the error of a variance from 3,000 values is about 5 %.
    """
    labels = np.repeat(np.arange(10), 20_000)
    splits = make_splits(labels, SORTED, SplitPlan(0, 2_000, "dirichlet", json.dumps({"alpha": 1.0}), "", 0, 0))
    parts = np.array([np.bincount(labels[share], minlength=10) / len(share) for share in splits.shares[:300]])
    assert parts.var() == pytest.approx(0.09 / 2, rel=0.15)


def test_shards_give_few_classes() -> None:
    """A shard of 900 / 40 = 22 examples touches at most 2 classes. Two neighbouring shards would be half of one class, 1.5 classes
    on average; two dealt at random come from different classes nine times out of ten."""
    number = classes_per_client(split("shards", options={"shards_per_client": 2}))
    assert max(number) <= 4
    assert 2 < np.mean(number) < 3
    assert max(classes_per_client(split("shards", options={"shards_per_client": 1}))) <= 2


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_per_class_dirichlet_has_the_moments_of_its_law(alpha: float) -> None:
    """A client's part of a class has mean 1 / N and variance (N - 1) / (N^2 (N alpha + 1)); rounding adds at most 1 / 2,000. From 40 draws
    of 10 classes and 10 clients."""
    clients = 10
    draws = [dirichlet_per_class(MANY, clients, np.random.default_rng(seed), alpha) for seed in range(40)]
    parts = np.stack([counts(shares, MANY) / 2_000 for shares in draws])
    assert parts.sum(axis=1) == pytest.approx(np.ones((40, clients)))
    assert parts.var() == pytest.approx((clients - 1) / (clients**2 * (clients * alpha + 1)), rel=0.15)


def test_per_class_dirichlet_leaves_nobody_without_an_example() -> None:
    """At alpha = 0.001 each of ten classes falls to a few clients; those of the 200 without get one example each of the largest share."""
    shares = dirichlet_per_class(MANY, 200, np.random.default_rng(0), 0.001)
    sizes = np.array([len(share) for share in shares])
    assert sizes.min() == 1
    assert (sizes == 1).sum() > 150
    assert sorted(np.concatenate(shares)) == list(range(len(MANY)))


def test_hsus_dirichlet_is_the_per_class_one_with_a_tenth_of_its_alpha() -> None:
    """Ten equal classes: Dir(alpha p) has ten parameters alpha / 10. A client's mixture under the per-class law is ten independent gamma
    variables of shape alpha, scaled to sum to 1 (for many clients), which is Dir(alpha, …, alpha)."""
    generator = np.random.default_rng
    hsu = effective_classes(dirichlet(MANY, 100, generator(0), 0.5), MANY)
    same = effective_classes(dirichlet_per_class(MANY, 100, generator(0), 0.05), MANY)
    theirs = effective_classes(dirichlet_per_class(MANY, 100, generator(0), 0.5), MANY)
    law = {a: np.exp(entropy(generator(1).dirichlet(np.full(10, a), 20_000))).mean() for a in (0.05, 0.5)}
    assert hsu == pytest.approx(law[0.05], rel=0.15)
    assert same == pytest.approx(law[0.05], rel=0.15)
    assert theirs == pytest.approx(law[0.5], rel=0.05)
    assert theirs > 2.5 * hsu


def entropy(mixtures: np.ndarray) -> np.ndarray:
    return -(mixtures * np.log(np.where(mixtures > 0, mixtures, 1))).sum(axis=1)


@pytest.mark.parametrize("alpha", [0.2, 2.0])
def test_quantity_skew_has_other_sizes_and_the_same_classes(alpha: float) -> None:
    """Sizes 1 + part of the rest: variance (N - 1) / (N^2 (N alpha + 1)) of the parts. Shuffled labels: every large share is even."""
    clients, labels = 20, np.random.default_rng(0).permutation(MANY)
    draws = [quantity_skew(labels, clients, np.random.default_rng(seed), alpha) for seed in range(100)]
    sizes = np.array([[len(share) for share in shares] for shares in draws])
    assert sizes.min() >= 1
    assert (sizes.sum(axis=1) == len(MANY)).all()
    parts = (sizes - 1) / (len(MANY) - clients)
    assert parts.var() == pytest.approx((clients - 1) / (clients**2 * (clients * alpha + 1)), rel=0.2)
    largest = max(draws[0], key=len)
    assert (np.bincount(labels[largest], minlength=10) / len(largest)).std() < 0.02


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
def test_label_quantity_gives_each_client_its_number_of_classes_and_each_class_equally_many_clients(classes: int) -> None:
    table = counts(label_quantity(MANY, 25, np.random.default_rng(3), classes), MANY)
    assert ((table > 0).sum(axis=1) == classes).all()
    holders = (table > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1
    for column in table.T:  # each class equally among its holders
        assert column[column > 0].max() - column[column > 0].min() <= 1


def test_label_quantity_draws_the_classes() -> None:
    first, other = (counts(label_quantity(MANY, 25, np.random.default_rng(seed), 2), MANY) > 0 for seed in (0, 1))
    assert (first != other).any()
    assert len(np.unique(first, axis=0)) > 10, "the pairs of classes differ"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dirichlett", r"expected data\.partition to be one of iid, dirichlet, .*got 'dirichlett'; did you mean 'dirichlet'\?"),
        ("flwr.DirichletPartition", r"expected data\.partition to be flwr\. and one of .*did you mean 'flwr\.DirichletPartitioner'\?"),
        ("flwr.IdToSizeFncPartitioner", r"expected data\.partition to be flwr\. and one of "),
        ("nowhere/indices.json", r"expected data\.partition to be a file of indices, got 'nowhere/indices\.json' \(there is no file "),
        ("nowhere.py:mine", r"cannot load data\.partition = 'nowhere\.py:mine': there is no file"),
    ],
)
def test_a_name_that_stands_for_nothing(name: str, message: str) -> None:
    assert re.search(message, partitions.problem(name)), partitions.problem(name)


def test_options_are_known_beforehand() -> None:
    assert partitions.options_problem("label-quantity", {"classes": 3}, "data.partition-options") == ""
    assert "has no option clases; it takes classes" in partitions.options_problem("label-quantity", {"clases": 3}, "data.partition-options")
    assert "has no option alpha; it takes none" in partitions.options_problem("iid", {"alpha": 3}, "data.partition-options")
