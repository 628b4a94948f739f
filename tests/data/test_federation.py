"""The federation of a configuration: options passed on, caches keyed by content, weights of updates, features instead of pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation, read_data
from fl_sim.data.partitions import dirichlet_per_class
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from fl_sim.model.vectors import flat_parameters
from fl_sim.rng.streams import stream
from fl_sim.training.local import block_sum, block_updates, weights_of

Configure = Callable[..., Config]

OWN = """
import torch
from torch.utils.data import TensorDataset

def blobs(root, count=120, shift=0.0):
    labels = torch.arange(count) % 3
    inputs = torch.randn(count, 4) + 3 * labels[:, None] + shift
    return TensorDataset(inputs[:-30], labels[:-30]), TensorDataset(inputs[-30:], labels[-30:])

def halves(labels, num_clients, generator, start=0):
    return [[start + 2 * client, start + 2 * client + 1] for client in range(num_clients)]
"""
SIZES: dict[str, Any] = {"attack__set_size": 20, "strategy__probe_size": 10}


def test_names_from_outside_with_options_and_by_content(configure: Configure, tmp_path: Path) -> None:
    code = tmp_path / "own.py"
    code.write_text(OWN)
    keys = {"data__name": f"{code}:blobs", "data__partition": f"{code}:halves", **SIZES}
    plain = load_federation(configure(**keys))
    assert load_federation(configure(**keys)) is plain
    assert {len(share) for share in plain.splits.shares} == {2}
    config = configure(**keys, data__options={"shift": 5.0}, data__partition_options={"start": 3})
    moved = load_federation(config)
    assert torch.allclose(moved.dataset.train.inputs, plain.dataset.train.inputs + 5.0)
    assert not set(np.concatenate(moved.splits.shares)) <= set(np.concatenate(plain.splits.shares))
    code.write_text(OWN.replace("3 * labels", "9 * labels"))
    assert load_federation(configure(**keys)).dataset.fingerprint != plain.dataset.fingerprint
    code.write_text(OWN.replace("2 * client + 1]", "2 * client + 1, -1]"))
    with pytest.raises(ValueError, match=r"data\.partition = '.*own\.py:halves': client 0: expected indices from 0 to 69, got -1"):
        load_federation(configure(**keys))


def test_a_file_of_indices_is_looked_at_again(configure: Configure, tmp_path: Path) -> None:
    path = tmp_path / "indices.json"
    shares: list[list[int]] = []
    for step in (5, 7):
        path.write_text(json.dumps([[step * client + k for k in range(5)] for client in range(12)]))
        shares.append(sorted(load_federation(configure(data__partition=str(path))).splits.shares[11].tolist()))
    assert shares[0] != shares[1]
    config = configure(data__partition=str(path))
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot load data\.partition = '.*indices\.json': .* cannot be read \(No such file"):
        load_federation(config)


def test_the_files_of_a_data_set_are_looked_at_again_at_the_start_of_a_run_only(configure: Configure, tmp_path: Path) -> None:
    rows = [f"{x},{x % 3}" for x in range(120)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["x,label", *rows]))
    config = configure(data__name="table", data__root=str(table), **SIZES)
    read_data(config, lambda done, total: None)
    first = load_federation(config)
    table.write_text("\n".join(["x,label", *rows[::-1]]))
    assert load_federation(config) is first, "the same for the whole of a run"
    read_data(config, lambda done, total: None)
    second = load_federation(config)
    assert second.dataset.fingerprint != first.dataset.fingerprint
    assert load_federation(config) is second


def test_the_keys_of_partitions_and_their_options(configure: Configure) -> None:
    """`data.dirichlet-alpha` is the alpha of each Dirichlet partition, an option comes before it."""

    def sizes(**keys: Any) -> list[int]:
        return [len(share) for share in load_federation(configure(data__partition="dirichlet-per-class", **keys)).splits.shares]

    by_key, by_option = sizes(data__dirichlet_alpha=0.1), sizes(data__dirichlet_alpha=7.0, data__partition_options={"alpha": 0.1})
    assert by_key == by_option != sizes(data__dirichlet_alpha=7.0)
    federation = load_federation(configure(data__partition="dirichlet-per-class", data__dirichlet_alpha=0.1))
    rest = np.setdiff1d(np.arange(1437), federation.splits.own_set)
    train = stream(1, "splits", "train").permutation(1437)[200:]
    assert sorted(train) == rest.tolist()
    labels = federation.dataset.train.labels.numpy()[train]
    shares = dirichlet_per_class(labels, 12, stream(1, "splits", "dirichlet-per-class"), 0.1)
    assert by_key == [len(share) for share in shares]


def test_weights_are_the_batchs_examples_or_all_of_the_clients(configure: Configure) -> None:
    """McMahan et al.'s n_k: the sum over clients weighs each update by the size of its share."""
    config = configure(data__partition="quantity-skew", data__dirichlet_alpha=0.3, client__batch_size=4)
    federation = load_federation(config)
    clients, lengths = list(range(12)), [len(share) for share in federation.splits.shares]
    assert len(set(lengths)) > 8
    batch, share = (federation.cohort(clients, 1, 2, 4, weight) for weight in ("batch", "share"))
    assert torch.equal(batch.inputs, share.inputs), "the same examples"
    assert weights_of(federation.cohort(clients, 1, 2, 4)) == weights_of(batch) == [2.0 * min(4, length) for length in lengths]
    assert weights_of(share) == lengths
    assert weights_of(share.part(3, 7)) == lengths[3:7]
    assert [w for half in share.halves() for w in weights_of(half)] == lengths
    assert weights_of(batch.part(3, 7)) == weights_of(batch)[3:7]
    module = new_module(config, federation)
    model, theta = FlatModel(module), flat_parameters(module)
    one = federation.cohort(clients, 1, 1, 4, "share")
    expected = torch.tensor(lengths, dtype=torch.float32) @ block_updates(model, theta, one, config.client)
    torch.testing.assert_close(block_sum(model, theta, one, config.client, None).total, expected)


def test_features_are_given_to_the_model_as_they_are_and_are_not_augmented(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    keys = {"data__name": f"{tmp_path / 'own.py'}:blobs", **SIZES}
    federation = load_federation(configure(**keys))
    batch = federation.test()
    assert torch.equal(batch.inputs, federation.dataset.test.inputs[torch.from_numpy(federation.splits.test)])
    with pytest.raises(
        ValueError, match=r"expected schedule\.burn-in-augmentation = 'none' .* holds 4 features and no images, got 'crop-flip'"
    ):
        load_federation(configure(**keys, schedule__burn_in_augmentation="crop-flip"))
