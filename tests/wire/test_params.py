"""Flat vectors and the arrays that carry them."""

from __future__ import annotations

import pickle

import numpy as np
import torch
from flwr.app import Array
from torch import nn

from fl_sim.model.flat_model import FlatModel
from fl_sim.model.vectors import flat_parameters
from fl_sim.rng.streams import stream, torch_stream
from fl_sim.wire.arrays import array_record, from_record, to_record
from tests.support import oracles


def test_a_tensor_array_is_an_ordinary_flower_array_to_everybody_else() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    record = array_record({"x": values})
    assert record["x"].numpy() is values
    (array,) = record.children.values()
    received = Array.inflate(array.deflate(), array.children)  # what a SuperNode does with the bytes of the wire
    np.testing.assert_array_equal(received.numpy(), values)
    assert array.deflate() == Array(values).deflate()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(record, protocol=5))["x"].numpy(), values)


def test_records_share_memory_with_the_tensors() -> None:
    theta = torch.arange(4.0)
    back = from_record(to_record({"theta": theta}))["theta"]
    assert back.data_ptr() == theta.data_ptr()


def test_flat_model_gradient_is_the_oracle_and_its_vmap_agrees() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 4)).double()
    model = FlatModel(module)
    theta = flat_parameters(module)
    generator = np.random.default_rng(1)
    inputs, labels = generator.normal(size=(3, 5, 1, 2, 3)), generator.integers(0, 4, size=(3, 5))
    expected = [oracles.softmax_regression_gradient(theta.numpy(), x.reshape(5, 6), y, 4) for x, y in zip(inputs, labels, strict=True)]
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    for row in range(3):
        np.testing.assert_allclose(model.gradient(theta, x[row], y[row]).numpy(), expected[row], rtol=1e-9)
    vectorised = model.gradients(theta, x, y, torch.full((3, 5), 0.2, dtype=torch.float64))
    np.testing.assert_allclose(vectorised.numpy(), np.stack(expected), rtol=1e-9)


def test_score_counts_and_averages_over_batches() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    theta = torch.tensor([1.0, 0.0, 0.0, 1.0])
    inputs = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]).view(3, 1, 1, 2)
    accuracy, loss = FlatModel(module).score(theta, inputs, torch.tensor([0, 1, 1]), batch=2)
    easy = float(np.log1p(np.exp(-2.0)))
    assert accuracy == 100.0 * 2 / 3
    assert abs(loss - (2 * easy + easy + 2.0) / 3) < 1e-6


def test_streams_are_independent_of_each_other_and_of_the_order_of_asking() -> None:
    first = stream(1, "batch", 3, 7).integers(1 << 30, size=4)
    stream(1, "other").integers(1 << 30, size=100)
    np.testing.assert_array_equal(stream(1, "batch", 3, 7).integers(1 << 30, size=4), first)
    others = [stream(2, "batch", 3, 7), stream(1, "batch", 7, 3), stream(1, "sample", 3, 7), stream(1, "batch", 3)]
    assert not any(np.array_equal(other.integers(1 << 30, size=4), first) for other in others)
    assert torch.equal(torch.rand(3, generator=torch_stream(1, "a")), torch.rand(3, generator=torch_stream(1, "a")))
