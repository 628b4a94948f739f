"""Shares, own set, probe and test set: nobody shares an example, nobody is empty, and too little data is an error."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fl_sim.data.partitions import KEYED, PARTITIONS
from fl_sim.data.splits import SplitPlan, make_splits
from tests.support.small_data import SORTED, split


@st.composite
def plans(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, SplitPlan]:
    """Anything that `make_splits` must accept, down to one client with one example and one class."""
    partition = draw(st.sampled_from([name for name in PARTITIONS if name != "resampled"]))  # its shares overlap
    num_clients, count, own_set_size, probe_size = draw(st.tuples(*(st.integers(low, 6) for low in (1, 1, 0, 0))))
    least = own_set_size + num_clients * (count if partition == "shards" else 1)
    labels = np.array(draw(st.lists(st.integers(0, 4), min_size=least, max_size=least + 40)))
    options: dict[str, Any] = {}
    if "alpha" in KEYED.get(partition, {}):
        options["alpha"] = draw(st.sampled_from([1e-300, 1e-3, 0.1, 1.0, 1e6]))
    elif partition == "shards":
        options["shards_per_client"] = count
    elif partition == "label-quantity":
        options["classes"] = draw(st.integers(1, 2))
    test_labels = np.zeros(probe_size + draw(st.integers(1, 10)), np.int64)
    seed = draw(st.integers(0, 2**40))
    return labels, test_labels, SplitPlan(seed, num_clients, partition, json.dumps(options), "", own_set_size, probe_size)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(plans())
def test_every_example_belongs_to_exactly_one_owner(arguments: tuple[np.ndarray, np.ndarray, SplitPlan]) -> None:
    train_labels, test_labels, plan = arguments
    try:
        splits = make_splits(train_labels, test_labels, plan)
    except ValueError as error:  # fewer clients than classes
        assume("classes" not in str(error))
        raise
    train = np.concatenate([splits.own_set, *splits.shares])
    test = np.concatenate([splits.probe, splits.test])
    assert sorted(train) == list(range(len(train_labels)))
    assert sorted(test) == list(range(len(test_labels)))
    assert len(splits.shares) == plan.num_clients
    assert min(len(share) for share in splits.shares) >= 1
    assert (len(splits.own_set), len(splits.probe)) == (plan.own_set_size, plan.probe_size)
    assert all(indices.dtype == np.int64 for indices in (*splits.shares, splits.own_set, splits.probe, splits.test))


@pytest.mark.parametrize("partition", PARTITIONS)
def test_same_seed_same_splits_and_another_seed_others(partition: str) -> None:
    first, again, other = (split(partition, seed=seed) for seed in (1, 1, 2))
    for name in ("own_set", "probe", "test"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))
    assert all(np.array_equal(*pair) for pair in zip(first.shares, again.shares, strict=True))
    assert not any(np.array_equal(*pair) for pair in zip(first.shares, other.shares, strict=True))


@pytest.mark.parametrize("partition", ["dirichlet", "dirichlet-per-class", "quantity-skew"])
def test_the_seed_draws_the_mixtures_too(partition: str) -> None:
    """With no own set both seeds divide the same class counts, so only another draw gives other counts per client."""
    first, other = (
        [np.bincount(SORTED[share], minlength=10).tolist() for share in split(partition, seed=seed, own_set_size=0).shares]
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


@pytest.mark.parametrize(
    ("partition", "changes", "message"),
    [
        ("iid", {"num_clients": 901}, r"data\.num-clients = 901: only 900 training examples are left for the clients"),
        ("shards", {"num_clients": 451}, r"data\.num-clients = 451 with data\.shards-per-client = 2: only 900 training examples"),
        ("iid", {"own_set_size": 1000}, r"attack\.set-size = 1000: expected 0 to 999 of the 1000 training examples"),
        ("iid", {"probe_size": 1000}, r"strategy\.probe-size = 1000: expected 0 to 999 of the 1000 test examples"),
        ("label-quantity", {"num_clients": 4}, r"expected data\.num-clients times 'classes' >= 10, .* got 4 times 2"),
    ],
)
def test_errors_name_key_value_and_what_is_possible(partition: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(partition, **changes)


@pytest.mark.parametrize(
    ("partition", "options", "message"),
    [
        *(
            (name, {"alpha": alpha}, r"expected data\.partition-options 'alpha' to be a finite number > 0, got ")
            for name in ("dirichlet", "dirichlet-per-class", "quantity-skew")
            for alpha in (0, -1.0, float("nan"), float("inf"), "much", True)
        ),
        *(("label-quantity", {"classes": count}, r"'classes' to be a whole number from 1 to 10, got") for count in (0, 11, 2.0, True)),
        *(("shards", {"shards_per_client": count}, r"'shards_per_client' to be a whole number from 1 to 900, got") for count in (0, 1.5)),
    ],
)
def test_options_that_the_configuration_has_not_checked(partition: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(partition, options=options)


def test_a_probe_by_class_holds_equally_many_of_each_and_moves_nothing_else() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    plan = SplitPlan(1, 2, "iid", "", "", 0, 14)
    at_random, by_class = (make_splits(labels, labels, replace(plan, probe_by_class=choice)) for choice in (False, True))
    assert np.bincount(labels[by_class.probe]).tolist() == [5, 5, 4]
    assert sorted([*by_class.probe, *by_class.test]) == list(range(100))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(at_random.shares, by_class.shares, strict=True))
    for size, text in ((2, "at least one example of each of the 3 classes"), (90, "class 2 has 20 test examples, expected at least 30")):
        with pytest.raises(ValueError, match=f"strategy.probe-size = {size}: .*{text}"):
            make_splits(labels, labels, replace(plan, probe_size=size, probe_by_class=True))


def test_public_examples_are_nobody_elses_and_the_coalitions_set_stays() -> None:
    parts = split(public_size=50, burn_in_share=0.2)
    everything = np.concatenate([*parts.shares, parts.own_set, parts.public, parts.burn_in])
    assert sorted(everything) == list(range(1000))
    assert len(parts.public) == 50
    assert np.array_equal(parts.own_set, split().own_set)
    with pytest.raises(ValueError, match=r"data.public-size = 900: expected 0 to 899 of the 900 training examples left"):
        split(public_size=900)
