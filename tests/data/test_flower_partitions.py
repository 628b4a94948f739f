"""Flower's partitioners (flwr-datasets) as partitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fl_sim.data.outside import DataError
from fl_sim.data.outside_partitions import FLOWER
from fl_sim.data.partitions import partitions
from fl_sim.registry import how_to_install
from tests.support.small_data import SORTED, split

partitioner: Any = pytest.importorskip("flwr_datasets.partitioner", reason="the extra `datasets` is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*null_placement.*:FutureWarning"),  # Hugging Face's, of pyarrow
    pytest.mark.filterwarnings("ignore::UserWarning:flwr_datasets"),  # about classes and examples that are left over
]

# Options for ten clients and the 900 labels that the own set leaves.
OPTIONS: dict[str, dict[str, Any]] = {
    "ContinuousPartitioner": {"strictness": 0.5},
    "DirichletPartitioner": {"alpha": 5.0},
    "DistributionPartitioner": {
        "distribution_array": np.full((10, 10), 0.1).tolist(),
        "num_unique_labels_per_partition": 10,
        "preassigned_num_samples_per_label": 1,
    },
    "ExponentialPartitioner": {},
    "GroupedNaturalIdPartitioner": {"group_size": 1},
    "IidPartitioner": {},
    "InnerDirichletPartitioner": {"alpha": 5.0, "partition_sizes": [90] * 10},
    "LinearPartitioner": {},
    "NaturalIdPartitioner": {},
    "PathologicalPartitioner": {"num_classes_per_partition": 2},
    "ShardPartitioner": {"num_shards_per_partition": 2},
    "SizePartitioner": {"partition_sizes": [45] * 10},
    "SquarePartitioner": {},
}


@pytest.mark.parametrize("name", FLOWER)
def test_each_partitioner_divides_the_examples(name: str) -> None:
    clients = 3 if name == "ExponentialPartitioner" else 10  # its shares grow as e^i
    first, again, other = (split(f"flwr.{name}", num_clients=clients, options=OPTIONS[name], seed=seed) for seed in (1, 1, 2))
    assert [share.tolist() for share in first.shares] == [share.tolist() for share in again.shares]
    assert [share.tolist() for share in first.shares] != [share.tolist() for share in other.shares]
    everything = np.concatenate([first.own_set, *first.shares])
    assert len(np.unique(everything)) == len(everything)
    assert len(everything) >= 550
    assert partitions.problem(f"flwr.{name}") == ""


def test_the_labels_are_the_column_that_is_divided_by() -> None:
    assert {len(np.unique(SORTED[share])) for share in split("flwr.NaturalIdPartitioner", num_clients=10).shares} == {1}
    two = split("flwr.PathologicalPartitioner", num_clients=10, options={"num_classes_per_partition": 2}).shares
    assert {len(np.unique(SORTED[share])) for share in two} == {2}


def test_the_names_are_those_of_the_package() -> None:
    left_out = {"Partitioner", "IdToSizeFncPartitioner", "VerticalEvenPartitioner", "VerticalSizePartitioner"}
    assert set(FLOWER) == set(partitioner.__all__) - left_out


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Dirichlet", {}, r"TypeError: .*missing 1 required positional argument: 'alpha'"),
        ("Dirichlet", {"alfa": 1}, r"it has no option alfa; it takes partition_by, alpha, min_partition_size, "),
        ("Dirichlet", {"num_partitions": 3, "alpha": 1}, r"it has no option num_partitions; it takes partition_by"),
        ("Dirichlet", {"alpha": -1.0}, r"ValueError: Alpha values should be strictly greater"),
        ("Iid", {"seed": 1}, r"it has no option seed; it takes none"),
        ("Size", {"partition_sizes": [5] * 3}, r"expected as many shares as data\.num-clients = 20, got 3"),
        ("NaturalId", {}, r"expected as many shares as data\.num-clients = 20, got 10"),
    ],
)
def test_what_does_not_fit_is_said(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.partition = 'flwr\.{name}Partitioner': {message}"):
        split(f"flwr.{name}Partitioner", options=options)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert how_to_install("datasets") in partitions.problem("flwr.IidPartitioner")
