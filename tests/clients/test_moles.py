"""Moles: which images are chosen, where they go, and that they are true gradients of the members' own data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clients.coalition import member_share
from clients.honest import RoundInputs
from clients.images.moles import Pair, choose, choose_pair, mole_count, mole_places, moles
from clients.knowledge import Knowledge
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.data.batches import Batch, CohortBatches
from fl_sim.data.federation import load_federation
from fl_sim.data.sampling import malicious_clients
from fl_sim.grid.transports import InlineTransport
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from fl_sim.model.vectors import flat_parameters
from fl_sim.wire.messages import AttackState
from tests.support.runs import fingerprint, lines, run
from tests.support.small_knowledge import knowledge_of
from tests.support.workers import Workers, encoded_answer

Configure = Callable[..., Config]


def made_by_hand(likeness: dict[int, list[float]], batch: list[list[int]], **settings: Any) -> Knowledge:
    """A model that says log-probabilities 0 for the label of an image, and what the image says for another class: image k of class c is
    the vector of its logits. The own set holds images of class c with p(0 | x) as in `likeness[c]`, in this order.

    Args: batch, the labels (m, b) of the members' batches.
    """
    module = nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False)).double()
    with torch.no_grad():
        module[1].weight.copy_(torch.eye(3))
    images = [(log_odds(p, label), label) for label, values in likeness.items() for p in values]
    own = Batch(torch.stack([image for image, _ in images]), torch.tensor([label for _, label in images]))
    labels = torch.tensor(batch)
    m, b = labels.shape
    k = knowledge_of(m, **settings)
    batches = CohortBatches(
        torch.full((m, 1, b, 1, 1, 3), 9.0, dtype=torch.float64),
        labels[:, None],
        torch.full((m, 1, b), 1 / b, dtype=torch.float64),
        [b] * m,
    )
    return dataclasses.replace(
        k,
        model=FlatModel(module),
        theta=flat_parameters(module),
        batches=batches,
        updates=torch.zeros(m, 9, dtype=torch.float64),
        trigger_batch=Batch(own.inputs[:1], own.labels[:1]),
        validation=Batch(own.inputs[1:], own.labels[1:]),
    )


def log_odds(p: float, label: int) -> torch.Tensor:
    """An image (1, 1, 3) with p(0 | x) = p and p(label | x) = 1 - p, almost."""
    image = torch.full((1, 1, 3), -50.0, dtype=torch.float64)
    image[..., 0], image[..., label] = np.log(p), np.log(1 - p)
    return image


def test_the_pair_is_the_one_with_the_highest_percentile() -> None:
    generator = np.random.default_rng(0)
    p, labels = generator.dirichlet((1.0, 1.0, 1.0, 1.0), 60), generator.integers(4, size=60)
    by_numpy = {(a, c): np.percentile(p[labels == c, a], 99) for a in range(4) for c in range(4) if a != c}
    expected = max(by_numpy, key=lambda pair: by_numpy[pair])
    assert choose_pair(torch.from_numpy(p), torch.from_numpy(labels)) == expected
    for a in range(4):
        best = max((c for c in range(4) if c != a), key=lambda c, a=a: by_numpy[a, c])
        assert choose_pair(torch.from_numpy(p), torch.from_numpy(labels), attacked=a) == (a, best)
    assert choose_pair(torch.from_numpy(p), torch.from_numpy(labels), 3, 1) == (3, 1)
    assert choose_pair(torch.from_numpy(p), torch.zeros(60), confounding=1) is None
    with pytest.raises(ValueError, match=r"expected attack\.attacked to be a class from 0 to 3, or -1, got 4"):
        choose_pair(torch.from_numpy(p), torch.from_numpy(labels), attacked=4)


def test_as_many_moles_as_bring_their_mean_down() -> None:
    """101 images, so that the 99th percentile is the second highest: rho = 0.9, and the mean has to fall to 0.7895."""
    likeness = torch.tensor([1.0, 0.9, 0.7, 0.55, *[0.0] * 97])
    means = [1.0, 0.95, 0.8667, 0.7875]
    assert [round(float(likeness[:k].mean()), 4) for k in (1, 2, 3, 4)] == means
    assert mole_count(likeness[torch.randperm(101, generator=torch.Generator().manual_seed(0))]) == 4
    assert mole_count(torch.full((5,), 0.9)) == 5, "it never falls"
    assert mole_count(torch.full((5,), 0.1)) == 1, "the first is below already"


def test_which_images_are_chosen() -> None:
    p = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.4, 0.1], [0.3, 0.2, 0.5], [0.4, 0.3, 0.3]])
    pair = Pair(attacked=0, confounding=1)
    assert choose(p, pair, "moles", 2).tolist() == [1, 3]
    assert choose(p, pair, "highest-loss", 2).tolist() == [2, 3]
    assert choose(p, pair, "random", 2).tolist() == [0, 1, 2, 3]


def test_moles_take_the_places_of_their_class_and_of_one_image_where_there_is_none() -> None:
    batches = CohortBatches(torch.zeros(3, 1, 3, 1), torch.tensor([[[1, 0, 1]], [[2, 0, 0]], [[0, 2, 1]]]), torch.ones(3, 1, 3), [3, 3, 2])
    batches.weights[2, 0, 2] = 0.0  # padding
    assert mole_places(batches, 1)[:, 0].tolist() == [[True, False, True], [True, False, False], [True, False, False]]


def test_the_update_is_the_gradient_of_the_batch_with_the_moles_of_the_own_set() -> None:
    """Members with one image each send a mole alone, each another one; in a larger batch the other classes stay."""
    k = made_by_hand({1: [0.2, 0.8, 0.6], 2: [0.1, 0.5]}, [[0], [2]], moles=2)
    action = moles(k, AttackState())
    assert action.metrics == {"attacked": 0.0, "confounding": 1.0, "moles": 2.0, "mole_score": pytest.approx(0.7)}
    alone = [k.model.gradient(k.theta, log_odds(p, 1)[None], torch.tensor([1])) for p in (0.8, 0.6)]
    rows = sorted(action.updates.tolist())
    torch.testing.assert_close(torch.tensor(rows), torch.tensor(sorted(row.tolist() for row in alone)))
    k = made_by_hand({1: [0.2, 0.8, 0.6], 2: [0.1, 0.5]}, [[2, 1]], moles=1)
    images = torch.stack([torch.full((1, 1, 3), 9.0, dtype=torch.float64), log_odds(0.8, 1)])
    torch.testing.assert_close(moles(k, AttackState()).updates[0], k.model.gradient(k.theta, images, torch.tensor([2, 1])))


def test_the_pair_of_the_first_round_stays() -> None:
    k = made_by_hand({1: [0.8], 2: [0.5]}, [[0]])
    state = moles(k, AttackState()).state
    assert state.scalars == {"attacked": 0, "confounding": 1}
    later = made_by_hand({1: [0.3], 2: [0.7]}, [[0]])
    assert moles(later, state).metrics["confounding"] == 1.0
    assert moles(later, AttackState()).metrics["confounding"] == 2.0


def test_members_choose_from_their_own_shares() -> None:
    shares = {0: [(0.2, 1), (0.7, 1)], 1: [(0.4, 2), (0.6, 2)], 2: [(0.3, 1)]}

    def share(member: int) -> Batch:
        return Batch(torch.stack([log_odds(*image) for image in shares[member]]), torch.tensor([label for _, label in shares[member]]))

    k = dataclasses.replace(made_by_hand({1: [0.9]}, [[2], [2], [2]], data="members", moles=1, attacked=0, confounding=1), share=share)
    sent = moles(k, AttackState()).updates
    for row, p in ((0, 0.7), (2, 0.3)):
        torch.testing.assert_close(sent[row], k.model.gradient(k.theta, log_odds(p, 1)[None], torch.tensor([1])))
    honest = k.model.gradient(k.theta, k.batches.inputs[1, 0], k.batches.labels[1, 0])
    torch.testing.assert_close(sent[1], honest), "a member without the class is honest"
    nobody = dataclasses.replace(k, settings=k.settings.model_copy(update={"confounding": 0, "attacked": 2}))
    assert torch.equal(moles(nobody, AttackState()).updates, k.updates)


def test_a_share_is_a_members_and_nobody_elses(configure: Configure) -> None:
    config = configure(attack__name="moles")
    federation = load_federation(config)
    module = new_module(config, federation)
    inputs = RoundInputs(config, federation, FlatModel(module), flat_parameters(module), 1, None, stacked=False)
    member, *_ = malicious_clients(config)
    honest = next(client for client in range(12) if client not in malicious_clients(config))
    share = member_share(inputs, member)
    expected = federation.dataset.train.labels[torch.from_numpy(federation.splits.shares[member])]
    assert torch.equal(share.labels, expected.to(share.labels))
    with pytest.raises(LookupError, match=f"client {honest} is no member"):
        member_share(inputs, honest)


@pytest.mark.parametrize("data", ["own-set", "members"])
def test_a_run_is_the_same_bytes_with_any_number_of_workers_and_repeats_its_pair(configure: Configure, tmp_path: Path, data: str) -> None:
    config = configure(attack__name="moles", attack__data=data, attack__malicious_fraction=0.25, twin=False)
    first = run(config, tmp_path / "one")[1]
    assert fingerprint(run(config, tmp_path / "three", Workers(3))[1]) == fingerprint(first)
    assert fingerprint(run(config, tmp_path / "encoded", InlineTransport(encoded_answer))[1]) == fingerprint(first)
    acting = [line["attack"] for line in lines(first) if "attack" in line]
    assert len(acting) == 4
    assert len({(figures["attacked"], figures["confounding"]) for figures in acting}) == 1
    assert all(figures["moles"] >= 3 for figures in acting)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("attack.attacked", -2, "expected attack.attacked >= -1, got -2"),
        ("attack.confounding", -2, "expected attack.confounding >= -1, got -2"),
        ("attack.moles", -1, "expected attack.moles >= 0, got -1"),
        ("attack.choice", "most", "expected attack.choice to be one of 'moles', 'random', 'highest-loss', got 'most'"),
    ],
)
def test_bad_values_are_refused(configure: Configure, key: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(**{key.replace(".", "__").replace("-", "_"): value})
    assert caught.value.problems == [says]


def test_a_class_cannot_look_like_itself(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="to be different classes, got 3 for both"):
        configure(attack__attacked=3, attack__confounding=3)
