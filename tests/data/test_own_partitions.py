"""Partitions from outside the repository: files of indices and own functions, and what is said of those that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_sim.data.outside import DataError
from fl_sim.data.partitions import partitions
from fl_sim.registry import OutsideError, offer
from tests.support.small_data import SORTED, split

Lists = list[list[int]]


def write_json(path: Path, shares: Lists) -> None:
    path.write_text(json.dumps(shares))


def write_npz(path: Path, shares: Lists) -> None:
    np.savez(path, *(np.array(share) for share in shares))


WRITERS = {"json": write_json, "npz": write_npz}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_of_indices_numbers_the_training_part(kind: str, tmp_path: Path) -> None:
    """12 clients, so that an order by name ("arr_10" before "arr_2") would show; the own set is drawn as ever and left out of the shares."""
    shares = [list(range(80 * client, 80 * client + 70)) for client in range(12)]
    path = tmp_path / f"indices.{kind}"
    WRITERS[kind](path, shares)
    assert partitions.problem(str(path)) == ""
    assert partitions.options_problem(str(path), {"a": 1}, "data.partition-options").endswith("it takes none")
    for size in (0, 100):
        splits = split(str(path), num_clients=12, own_set_size=size)
        own = set(splits.own_set.tolist())
        assert own == set(split("iid", own_set_size=size).own_set.tolist())
        assert [set(share.tolist()) for share in splits.shares] == [set(share) - own for share in shares]
    assert any((np.diff(share) < 0).any() for share in splits.shares), "shuffled, so that a batch may be a slice"


FULL = [[client] for client in range(20)]
BAD_FILES: dict[str, tuple[Any, str]] = {
    "too few": (FULL[:3], r"expected a list of data\.num-clients = 20 arrays of indices, got 3"),
    "no list": ({"a": 1}, r"expected a list of data\.num-clients = 20 arrays of indices, got dict"),
    "beyond": ([*FULL[:7], [1000], *FULL[8:]], r"client 7: expected indices from 0 to 999, got 1000"),
    "negative": ([*FULL[:7], [5, -1], *FULL[8:]], r"client 7: expected indices from 0 to 999, got -1"),
    "two owners": ([*FULL[:7], [3], *FULL[8:]], r"client 7: index 3 belongs to client 3 already"),
    "twice": ([*FULL[:7], [50, 60, 50], *FULL[8:]], r"client 7: index 50 is there twice"),
    "empty": ([*FULL[:7], [], *FULL[8:]], r"client 7: expected at least one index, got none"),
    "fractions": ([*FULL[:7], [0.5], *FULL[8:]], r"client 7: expected a one-dimensional array of whole numbers, got float64"),
    "truths": ([*FULL[:7], [True], *FULL[8:]], r"client 7: expected a one-dimensional array of whole numbers, got bool"),
    "nested": (
        [*FULL[:7], [[1, 2]], *FULL[8:]],
        r"client 7: expected a one-dimensional array of whole numbers, got int64 of shape \(1, 2\)",
    ),
    "ragged": ([*FULL[:7], [[1], [2, 3]], *FULL[8:]], r"client 7: expected an array of indices, got list"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_file_that_cannot_be_used_is_named(what: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[what]
    (tmp_path / "indices.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"^data\.partition = '.*indices\.json': " + message):
        split(str(tmp_path / "indices.json"), own_set_size=0)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", b"[[1], [2"), ("b.json", b"\xff"), ("c.npz", b"PK\x03\x04"), ("d.npz", b""), ("e.npz", b"\x93NUMPY\x01\x00")],
)
def test_a_damaged_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^data\.partition = '.*{name}': cannot be read: "):
        split(str(tmp_path / name))


def test_no_pickle_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"evil\.npz': cannot be read: .*allow_pickle=False"):
        split(str(tmp_path / "evil.npz"))


def test_a_share_that_lies_in_the_own_set_is_refused(tmp_path: Path) -> None:
    first = int(split("iid").own_set[0])
    write_json(tmp_path / "i.json", [[first], [index for index in range(1000) if index != first]])
    with pytest.raises(DataError, match=r"client 0 is left without an example by the coalition's own set \(attack\.set-size = 100\)"):
        split(str(tmp_path / "i.json"), num_clients=2)


def test_the_content_of_a_file_is_part_of_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "indices.json"
    digests: list[str] = []
    for content in ("[[1]]", "[[2]]", "[[1]]"):
        path.write_text(content)
        digests.append(partitions.content(str(path)))
    assert digests[0] == digests[2] != digests[1]
    path.unlink()
    with pytest.raises(OutsideError, match=r"indices\.json cannot be read \(No such file"):
        partitions.content(str(path))


OWN = """
import numpy as np

def halves(labels, num_clients, generator, small=1):
    order = generator.permutation(len(labels)) + np.random.randint(1)
    labels[:] = 0
    return np.array_split(order[: len(order) // small], num_clients)
"""


def test_an_own_function_is_given_labels_clients_and_a_stream(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    name, before = f"{tmp_path / 'own.py'}:halves", np.random.get_state()[1]
    first, again, other = (split(name, seed=seed) for seed in (1, 1, 2))
    assert [share.tolist() for share in first.shares] == [share.tolist() for share in again.shares]
    assert first.shares[0].tolist() != other.shares[0].tolist()
    assert sorted(np.concatenate([first.own_set, *first.shares])) == list(range(1000))
    assert sum(len(share) for share in split(name, options={"small": 3}).shares) == 300, "examples may be left over"
    assert np.array_equal(before, np.random.get_state()[1])
    assert SORTED[-1] == 9, "the labels that it was given are a copy"
    assert partitions.options_problem(name, {"small": 3}, "data.partition-options") == ""
    assert partitions.options_problem(name, {"large": 3}, "data.partition-options").endswith("has no option large; it takes small")


def test_the_labels_are_those_of_the_positions() -> None:
    def pure(labels: Any, num_clients: int, generator: Any) -> list[Any]:
        return [np.flatnonzero(labels == client) for client in range(num_clients)]

    for client, share in enumerate(split(offer(pure), num_clients=10).shares):
        assert set(SORTED[share]) == {client}


def refused(code: Callable[..., Any], message: str) -> None:
    with pytest.raises(DataError, match=r"^data\.partition = 'object:\S+': " + message):
        split(offer(code))


def test_what_an_own_function_gets_wrong_is_said(tmp_path: Path) -> None:
    refused(lambda labels, num_clients, generator: None, r"expected a list of data\.num-clients = 20 arrays of indices, got NoneType")
    refused(lambda labels, num_clients, generator: [labels[:1] * 0 + 900] * 20, r"client 0: expected indices from 0 to 899, got 900")
    refused(lambda labels, num_clients, generator: [[0]] * 20, r"client 1: index 0 belongs to client 0 already")
    (tmp_path / "own.py").write_text(OWN.replace("// small", "// (small - 1)"))
    with pytest.raises(DataError, match=r"own\.py, line 7: ZeroDivisionError: "):
        split(f"{tmp_path / 'own.py'}:halves")
    with pytest.raises(DataError, match=r"TypeError: .*unexpected keyword argument 'large'"):
        split(f"{tmp_path / 'own.py'}:halves", options={"large": 1})
    with pytest.raises(DataError, match=r"own\.py has no 'thirds'"):
        split(f"{tmp_path / 'own.py'}:thirds")
