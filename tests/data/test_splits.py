"""Shares, own set, probe and test set: nobody shares an example, nobody is empty, and each partition has its law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_sim.data.splits import PARTITIONS, Splits, make_splits

SORTED = np.repeat(np.arange(10), 100)  # 1,000 labels, class after class, as many test files come


def split(partition: str = "iid", **changes: Any) -> Splits:
    arguments: dict[str, Any] = {"seed": 0, "num_clients": 20, "own_set_size": 100, "probe_size": 100} | changes
    return make_splits(SORTED, SORTED, partition=partition, **arguments)


def classes_per_client(splits: Splits) -> list[int]:
    return [len(np.unique(SORTED[share])) for share in splits.shares]


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Any arguments that `make_splits` must accept, down to one client with one example and one class."""
    partition = draw(st.sampled_from(PARTITIONS))
    num_clients, shards, own_set_size, probe_size = draw(st.tuples(*(st.integers(low, 6) for low in (1, 1, 0, 0))))
    least = own_set_size + num_clients * (shards if partition == "shards" else 1)
    return {
        "train_labels": np.array(draw(st.lists(st.integers(0, 4), min_size=least, max_size=least + 40))),
        "test_labels": np.zeros(probe_size + draw(st.integers(1, 10)), np.int64),
        "seed": draw(st.integers(0, 2**40)),
        "num_clients": num_clients,
        "partition": partition,
        "dirichlet_alpha": draw(st.sampled_from([1e-300, 1e-3, 0.1, 1.0, 1e6])),
        "shards_per_client": shards,
        "own_set_size": own_set_size,
        "probe_size": probe_size,
    }


@settings(derandomize=True, deadline=None, max_examples=150)
@given(arguments())
def test_every_example_belongs_to_exactly_one_owner(arguments: dict[str, Any]) -> None:
    splits = make_splits(**arguments)
    train = np.concatenate([splits.own_set, *splits.shares])
    test = np.concatenate([splits.probe, splits.test])
    assert sorted(train) == list(range(len(arguments["train_labels"])))
    assert sorted(test) == list(range(len(arguments["test_labels"])))
    assert len(splits.shares) == arguments["num_clients"]
    assert min(len(share) for share in splits.shares) >= 1
    assert (len(splits.own_set), len(splits.probe)) == (arguments["own_set_size"], arguments["probe_size"])
    assert all(indices.dtype == np.int64 for indices in (*splits.shares, splits.own_set, splits.probe, splits.test))


@pytest.mark.parametrize("partition", PARTITIONS)
def test_same_seed_same_splits_and_another_seed_others(partition: str) -> None:
    first, again, other = (split(partition, seed=seed) for seed in (1, 1, 2))
    for name in ("own_set", "probe", "test"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))
    assert all(np.array_equal(*pair) for pair in zip(first.shares, again.shares, strict=True))
    assert not any(np.array_equal(*pair) for pair in zip(first.shares, other.shares, strict=True))


def test_the_seed_draws_the_mixtures_too() -> None:
    """With no own set both seeds divide the same class counts, so only another draw gives other counts per client."""
    first, other = (
        [np.bincount(SORTED[share], minlength=10).tolist() for share in split("dirichlet", seed=seed, own_set_size=0).shares]
        for seed in (1, 2)
    )
    assert first != other


def test_own_set_and_probe_do_not_depend_on_the_clients() -> None:
    first, other = split("iid", num_clients=3), split("dirichlet", num_clients=30)
    assert np.array_equal(first.own_set, other.own_set)
    assert np.array_equal(first.probe, other.probe)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_class_sorted_files_are_shuffled(partition: str) -> None:
    """100 of 1,000 drawn without replacement, 100 per class: each class has 10 +- 3 of them (hypergeometric), none 0."""
    splits = split(partition)
    for indices in (splits.own_set, splits.probe):
        assert np.bincount(SORTED[indices], minlength=10).min() >= 2
    longest = max(splits.shares, key=lambda share: len(np.unique(SORTED[share])))
    assert (np.diff(SORTED[longest]) < 0).any(), "a share lists its classes in order"


def test_iid_and_dirichlet_shares_have_equal_sizes() -> None:
    for partition in ("iid", "dirichlet"):
        sizes = [len(share) for share in split(partition, num_clients=7).shares]  # 900 / 7 = 128.6
        assert set(sizes) == {128, 129}


def test_dirichlet_alpha_goes_from_one_class_each_to_everybodys_mixture() -> None:
    """20 clients of 45 out of 10 classes of about 90. At alpha -> 0 a client takes one class, and a second where that runs out;
    only the last ones scrape together what is left. At infinity it misses a given class with probability 0.9^45 = 0.9 %."""
    lonely, some, even = (classes_per_client(split("dirichlet", dirichlet_alpha=alpha)) for alpha in (1e-6, 1.0, 1e6))
    assert np.median(lonely) == 1
    assert np.mean(lonely) < 2 < 3 < np.mean(some) < 7 < 9 < np.mean(even)


def test_dirichlet_variance_is_the_laws() -> None:
    """Var(share of class k) = p (1 - p) / (alpha + 1) over clients, here 0.09 / 2 for alpha = 1, plus 1 % from drawing 100 examples.

    The first 300 of 2,000 clients, so that no class has run out; the error of a variance from 3,000 values is about 5 %.
    """
    labels = np.repeat(np.arange(10), 20_000)
    sizes = {"num_clients": 2_000, "own_set_size": 0, "probe_size": 0}
    splits = make_splits(labels, SORTED, seed=0, partition="dirichlet", dirichlet_alpha=1.0, **sizes)
    parts = np.array([np.bincount(labels[share], minlength=10) / len(share) for share in splits.shares[:300]])
    assert parts.var() == pytest.approx(0.09 / 2, rel=0.15)


def test_shards_give_few_classes() -> None:
    """A shard of 900 / 40 = 22 examples touches at most 2 classes. Two neighbouring shards would be half of one class, 1.5 classes
    on average; two dealt at random come from different classes nine times out of ten."""
    counts = classes_per_client(split("shards", shards_per_client=2))
    assert max(counts) <= 4
    assert 2 < np.mean(counts) < 3
    assert max(classes_per_client(split("shards", shards_per_client=1))) <= 2


@pytest.mark.parametrize(
    ("partition", "changes", "message"),
    [
        ("iid", {"num_clients": 901}, r"data\.num-clients = 901: only 900 training examples are left for the clients"),
        ("shards", {"num_clients": 451}, r"data\.num-clients = 451 with data\.shards-per-client = 2: only 900 training examples"),
        ("iid", {"num_clients": 0}, r"data\.num-clients: expected at least 1, got 0"),
        ("iid", {"own_set_size": 1000}, r"attack\.set-size = 1000: expected 0 to 999 of the 1000 training examples"),
        ("iid", {"probe_size": 1000}, r"strategy\.probe-size = 1000: expected 0 to 999 of the 1000 test examples"),
        ("iid", {"probe_size": -1}, r"strategy\.probe-size = -1"),
        ("dirichlet", {"dirichlet_alpha": 0.0}, r"data\.dirichlet-alpha: expected a finite number > 0, got 0\.0"),
        ("dirichlet", {"dirichlet_alpha": float("nan")}, r"data\.dirichlet-alpha: .* got nan"),
        ("shards", {"shards_per_client": 0}, r"data\.shards-per-client: expected at least 1, got 0"),
        ("stripes", {}, r"data\.partition: expected one of iid, dirichlet, shards, got 'stripes'"),
    ],
)
def test_errors_name_key_value_and_what_is_possible(partition: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(partition, **changes)
