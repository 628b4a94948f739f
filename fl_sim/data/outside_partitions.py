"""Partitions from outside the repository: Flower's partitioners, files of indices, a user's functions; and the checks of their results."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_sim.data.outside import DataError
from fl_sim.outside_code import error_words, outside_call
from fl_sim.registry import OutsideError, how_to_install
from fl_sim.rng.streams import seeded_global_generators

Integers = NDArray[np.int64]

# The classes of `flwr_datasets.partitioner` that divide examples by their labels and whose arguments a configuration can hold: without
# IdToSizeFncPartitioner (its argument is a function) and the vertical ones (they divide columns).
FLOWER = (
    "ContinuousPartitioner",
    "DirichletPartitioner",
    "DistributionPartitioner",
    "ExponentialPartitioner",
    "GroupedNaturalIdPartitioner",
    "IidPartitioner",
    "InnerDirichletPartitioner",
    "LinearPartitioner",
    "NaturalIdPartitioner",
    "PathologicalPartitioner",
    "ShardPartitioner",
    "SizePartitioner",
    "SquarePartitioner",
)


def family_problem(name: str) -> str | None:
    """What is wrong with the name of a Flower partitioner or of a file of indices, empty if nothing; None for other names."""
    if is_index_file(name):
        path = Path(name).expanduser()
        return "" if path.is_file() else f"expected data.partition to be a file of indices, got {name!r} (there is no file {str(path)!r})"
    package, _, kind = name.partition(".")
    if package != "flwr" or ":" in name:
        return None
    if kind not in FLOWER:
        near = difflib.get_close_matches(kind, FLOWER, n=1)
        hint = f"; did you mean 'flwr.{near[0]}'?" if near else ""
        return f"expected data.partition to be flwr. and one of {', '.join(FLOWER)}, got {name!r}{hint}"
    if importlib.util.find_spec("flwr_datasets") is None:
        return f"expected data.partition = {name!r} only with the optional package flwr-datasets: {how_to_install('datasets')}"
    return ""


def flower_partition(name: str) -> Callable[..., list[Integers]]:
    """One of Flower's partitioners as a partition.

    We set `num_partitions`, and unless the options do, `partition_by` (the only column, "label") and `seed` (drawn from the generator). The
    options are the other arguments of the class. flwr-datasets is imported when the partition is called: that takes seconds.
    """

    def divide(labels: Integers, num_clients: int, generator: np.random.Generator, **options: Any) -> list[Integers]:
        from datasets import Dataset
        from flwr_datasets import partitioner

        partitioner_class = getattr(partitioner, name.removeprefix("flwr."))
        takes = inspect.signature(partitioner_class).parameters
        ours = {"num_partitions": num_clients, "partition_by": "label", "seed": int(generator.integers(2**31))}
        if strange := [option for option in options if option not in takes or option == "num_partitions"]:
            names = ", ".join(option for option in takes if option != "num_partitions")
            raise DataError(f"it has no option {', '.join(strange)}; it takes {names or 'none'}")
        if "distribution_array" in options:  # the only argument that must be an array
            options["distribution_array"] = np.asarray(options["distribution_array"])
        try:
            divider: Any = partitioner_class(**{key: value for key, value in ours.items() if key in takes} | options)
            divider.dataset = Dataset.from_dict({"label": labels, "position": np.arange(len(labels))})
            count = divider.num_partitions
            shares = [np.asarray(divider.load_partition(client)["position"]) for client in range(count)]
        except Exception as error:
            raise DataError(error_words(error, None)) from error
        if count != num_clients:
            raise DataError(f"expected as many shares as data.num-clients = {num_clients}, got {count}")
        return shares

    return divide


def is_index_file(name: str) -> bool:
    """Whether a name is the path of a file of indices."""
    return Path(name).suffix in (".json", ".npz")


def index_file_digest(name: str) -> str:
    """Sixteen hex digits of the content of a file of indices. Raises OutsideError if it cannot be read."""
    try:
        return hashlib.sha256(Path(name).expanduser().read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise OutsideError(f"{name} cannot be read ({error.strerror})") from error


def index_file_partition(name: str) -> Callable[[Integers, int, np.random.Generator], Sequence[Any]]:
    """A file of indices as a partition: a JSON list of N lists, or the arrays of an `.npz` in the order in which they were saved. Its
    indices number the examples of the data set's whole training part, not those that are left for the clients as other partitions' do.
    """

    def read(labels: Integers, num_clients: int, generator: np.random.Generator) -> Sequence[Any]:
        path = Path(name).expanduser()
        try:
            if path.suffix == ".json":
                return json.loads(path.read_text(encoding="utf-8"))
            with zipfile.ZipFile(path):  # first, because NumPy leaves a damaged file open, and would also read an .npy of this name
                pass
            with np.load(path, allow_pickle=False) as arrays:
                return [arrays[key] for key in arrays.files]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot be read: {error}") from error

    return read


def shares_of(partition: Callable[..., Any], labels: Integers, num_clients: int, generator: np.random.Generator, **options: Any) -> Any:
    """What a partition from outside returns. Meanwhile the global generators are seeded from a stream of the run.

    Raises DataError for any error, with the line of the partition's code.
    """

    def failure(error: BaseException) -> Exception:
        return error if isinstance(error, DataError) else DataError(error_words(error, partition))

    with seeded_global_generators(int(generator.integers(2**31)), "partition"), outside_call(failure):
        return partition(labels.copy(), num_clients, generator, **options)


def checked_shares(shares: Any, num_clients: int, size: int) -> list[Integers]:
    """Shares as int64 arrays. Raises DataError unless they are N arrays of whole numbers from 0 to `size - 1`, no array empty and no number
    twice."""
    if not isinstance(shares, Sequence) or len(shares) != num_clients or isinstance(shares, str):
        got = f"{len(shares)}" if isinstance(shares, Sequence) else type(shares).__name__
        raise DataError(f"expected a list of data.num-clients = {num_clients} arrays of indices, got {got}")
    arrays = [_indices(share, client) for client, share in enumerate(shares)]
    owner = np.full(size, -1)
    for client, array in enumerate(arrays):
        beyond = array[(array < 0) | (array >= size)]
        if len(beyond):
            raise DataError(f"client {client}: expected indices from 0 to {size - 1}, got {beyond[0]}")
        overlap = array[owner[array] >= 0]
        if len(overlap):
            raise DataError(f"client {client}: index {overlap[0]} belongs to client {owner[overlap[0]]} already")
        if len(np.unique(array)) < len(array):
            values, counts = np.unique(array, return_counts=True)
            raise DataError(f"client {client}: index {values[counts > 1][0]} is there twice")
        owner[array] = client
    return arrays


def _indices(share: Any, client: int) -> Integers:
    try:
        array = np.asarray(share)
    except Exception:  # lists of several lengths, a tensor on another device, anything
        raise DataError(f"client {client}: expected an array of indices, got {type(share).__name__}") from None
    if not array.size:
        raise DataError(f"client {client}: expected at least one index, got none")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"client {client}: expected a one-dimensional array of whole numbers, got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)
