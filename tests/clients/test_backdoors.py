"""Backdoors: patterns pixel by pixel, which examples are poisoned, and the boosters in closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clients.backdoors.attacks import badnets, blended, dba, edge_case, label_flip_pair
from clients.backdoors.edge_images import edge_images, in_the_form_of
from clients.backdoors.patterns import bars, blended_with, noise, parts_of, square, stamped
from clients.backdoors.poisoning import poisoned, unchanged
from clients.backdoors.training import constrained_updates, rare_coordinates, replacement_factor, trained
from clients.catalogue import ATTACKS
from clients.knowledge import Knowledge, PixelRange, pixel_range
from clients.success import SuccessView, success_test_of
from fl_sim.config.keys import Client, Config
from fl_sim.config.resolve import ConfigError
from fl_sim.data.batches import Batch
from fl_sim.data.federation import load_federation
from fl_sim.training.local import block_updates
from fl_sim.wire.messages import AttackState
from tests.support.small_knowledge import knowledge_of

BACKDOORS = ("badnets", "blended", "dba", "edge-case", "label-flip-pair")
RANGE = PixelRange(torch.tensor([[[-1.0]], [[2.0]]]), torch.tensor([[[3.0]], [[4.0]]]))


def drawn(mask: Tensor) -> list[str]:
    return ["".join("#" if pixel else "." for pixel in row) for row in mask]


def test_the_square_covers_exactly_its_pixels() -> None:
    assert drawn(square((1, 4, 5), 2)) == [".....", ".....", "...##", "...##"]
    assert drawn(square((1, 4, 5), 2, "top-left")) == ["##...", "##...", ".....", "....."]
    assert drawn(square((1, 4, 6), 2, "centre")) == ["......", "..##..", "..##..", "......"]
    assert [int(square(shape).sum()) for shape in ((1, 28, 28), (3, 32, 32), (1, 8, 8), (1, 1, 5))] == [16, 16, 4, 2]


def test_the_bars_are_those_of_the_paper_and_part_the_pattern() -> None:
    parts = bars((1, 28, 28))
    rows, columns = torch.nonzero(parts.any(dim=0)).T
    assert sorted({*rows.tolist()}) == [0, 3], "two rows, gap 2"
    assert sorted({*columns.tolist()}) == [0, 1, 2, 3, 6, 7, 8, 9], "two bars of 4 pixels, gap 2"
    assert drawn(bars((1, 4, 6), 2, 1).any(dim=0)) == ["##.##.", "......", "##.##.", "......"]
    assert int(parts.sum()) == int(parts.any(dim=0).sum()), "no pixel belongs to two parts"


@pytest.mark.parametrize("coalition", range(1, 10))
def test_a_coalition_of_any_size_trains_on_the_whole_pattern(coalition: int) -> None:
    hands = [parts_of(rank, coalition) for rank in range(coalition)]
    assert sorted({part for hand in hands for part in hand}) == [0, 1, 2, 3]
    if coalition <= 4:
        assert sum(len(hand) for hand in hands) == 4, "dealt like cards"
    else:
        assert {len(hand) for hand in hands} == {1}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 4 x 5 pixels, the size of an image, got 6 x 6"):
        square((1, 4, 5), 6)
    with pytest.raises(ValueError, match=r"place to be one of top-left, .*, got 'middle'"):
        square((1, 4, 5), 2, "middle")
    with pytest.raises(ValueError, match=r"at most 1 x 9 pixels"):
        bars((1, 1, 9))


def test_stamped_images_differ_in_the_pattern_alone() -> None:
    images = torch.rand(3, 2, 4, 5)
    marked = stamped(images, square((2, 4, 5), 2), RANGE, 0.5)
    mask = square((2, 4, 5), 2).expand(3, 2, -1, -1)
    assert torch.equal(marked[~mask], images[~mask])
    assert {float(v) for v in marked[:, 0][mask[:, 0]]} == {1.0}, "half way from -1 to 3"
    assert {float(v) for v in marked[:, 1][mask[:, 1]]} == {3.0}, "half way from 2 to 4"


def test_blending_in_closed_form() -> None:
    images, pattern = torch.rand(3, 2, 4, 5), noise((2, 4, 5), RANGE)
    torch.testing.assert_close(blended_with(images, pattern, 0.25), 0.75 * images + 0.25 * pattern)
    assert torch.equal(blended_with(images, pattern, 0.0), images)
    assert bool(((pattern >= RANGE.black) & (pattern <= RANGE.white)).all())
    assert not torch.equal(pattern, noise((2, 4, 5), RANGE, seed=1))
    with pytest.raises(ValueError, match=r"blend from 0 to 1, got 1.5"):
        blended(knowledge_of(), AttackState(), blend=1.5)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 1), (0.3, 2), (0.5, 2), (1.0, 4)])
def test_the_first_examples_up_to_the_share_are_poisoned(share: float, count: int) -> None:
    k = knowledge_of(poison_share=share, to_class=2)
    batches = poisoned(k, lambda images, rows: images + rows.view(-1, 1, 1, 1) + 1.0)
    for row in range(3):
        torch.testing.assert_close(batches.inputs[row, 0, :count], k.batches.inputs[row, 0, :count] + row + 1.0)
        assert batches.labels[row, 0, :count].tolist() == [2] * count
        assert torch.equal(batches.inputs[row, 0, count:], k.batches.inputs[row, 0, count:])
        assert torch.equal(batches.labels[row, 0, count:], k.batches.labels[row, 0, count:])


def test_only_the_source_class_is_poisoned_and_no_padding() -> None:
    k = knowledge_of(poison_share=1.0, class_=1, to_class=0)
    labels = torch.tensor([[[1, 0, 1, 2]], [[2, 2, 2, 2]], [[1, 1, 1, 1]]])
    weights = k.batches.weights.clone()
    weights[2, 0, 3] = 0.0
    k = dataclasses.replace(k, batches=k.batches._replace(labels=labels, weights=weights, sizes=[4, 4, 3]))
    assert poisoned(k, unchanged).labels.tolist() == [[[0, 0, 0, 2]], [[2, 2, 2, 2]], [[0, 0, 0, 1]]]
    with pytest.raises(ValueError, match=r"expected attack.class < 3, the number of classes of the data, got 3"):
        poisoned(knowledge_of(class_=3), unchanged)
    with pytest.raises(ValueError, match=r"expected attack.to-class < 3"):
        poisoned(knowledge_of(to_class=7), unchanged)


def gradient(k: Knowledge, row: int, inputs: Tensor, labels: list[int]) -> Tensor:
    return k.model.gradient(k.theta, inputs, torch.tensor(labels))


def test_members_send_the_gradient_on_poisoned_batches() -> None:
    k = knowledge_of(poison_share=1.0, to_class=1)
    inputs = k.batches.inputs[:, 0]
    mask = square((1, 2, 3))
    sent = badnets(k, AttackState()).updates
    torch.testing.assert_close(sent[1], gradient(k, 1, inputs[1].masked_fill(mask, 1.0), [1] * 4))
    flipped = label_flip_pair(k, AttackState()).updates
    torch.testing.assert_close(flipped[2], gradient(k, 2, inputs[2], [1] * 4))
    parts = bars((1, 2, 3))
    shared = dba(k, AttackState()).updates  # three members: the first has the parts 0 and 3
    for row, mask in enumerate([parts[0] | parts[3], parts[1], parts[2]]):
        torch.testing.assert_close(shared[row], gradient(k, row, inputs[row].masked_fill(mask, 1.0), [1] * 4))
    mixed = blended(k, AttackState(), blend=0.5).updates
    pattern = noise((1, 2, 3), k.pixels)
    torch.testing.assert_close(mixed[0], gradient(k, 0, 0.5 * inputs[0] + 0.5 * pattern, [1] * 4))


def test_edge_case_examples_replace_own_ones() -> None:
    k = knowledge_of(poison_share=1.0, to_class=1)
    one = dataclasses.replace(k, edge_images=lambda: torch.full((1, 1, 2, 3), 7.0, dtype=torch.float64))
    expected = gradient(k, 0, torch.full((4, 1, 2, 3), 7.0, dtype=torch.float64), [1] * 4)
    torch.testing.assert_close(edge_case(one, AttackState()).updates, expected.expand(3, -1))


def test_the_part_of_a_member_does_not_depend_on_who_else_is_sampled() -> None:
    k = dataclasses.replace(knowledge_of(poison_share=1.0), coalition=(0, 4, 5, 7), members=(0, 4, 7))
    other = dataclasses.replace(k, members=(0, 5, 7))
    one, two = dba(k, AttackState()).updates, dba(other, AttackState()).updates
    assert torch.equal(one[[0, 2]], two[[0, 2]])
    assert not torch.equal(one[1], two[1])


def test_model_replacement_against_the_combined_model() -> None:
    """theta' = the members' weighted mean model, less what the honest clients added; no momentum."""
    k = dataclasses.replace(knowledge_of(boost=0.0), client=Client.model_validate({"learning-rate": 0.3}))
    honest = block_updates(k.model, k.theta, k.batches, k.client)
    sent = trained(k, k.batches, AttackState()).updates
    local_models = k.theta - 0.3 * honest
    mean_model = (k.weights @ local_models) / k.weights.sum()
    combined = (k.honest_sum + k.weights @ sent) / k.total_weight
    expected = mean_model - k.server_lr * k.honest_sum / k.total_weight
    torch.testing.assert_close(k.theta - k.server_lr * combined, expected)
    single = dataclasses.replace(k, weights=torch.ones(3, dtype=torch.float64), seen=None, server_lr=0.3)
    assert replacement_factor(single) == pytest.approx(10 / 3), "n / m at equal weights and rates"


def test_a_factor_multiplies() -> None:
    k = knowledge_of()
    plain = trained(k, k.batches, AttackState()).updates
    boosted = dataclasses.replace(k, settings=k.settings.model_copy(update={"boost": 7.5}))
    assert torch.equal(trained(boosted, k.batches, AttackState()).updates, 7.5 * plain)


def two_steps(k: Knowledge) -> Knowledge:
    twice = k.batches._replace(
        **{
            name: torch.cat([value, value.flip(2)], dim=1)
            for name, value in k.batches._asdict().items()
            if name in ("inputs", "labels", "weights")
        }
    )
    return dataclasses.replace(k, batches=twice, client=Client.model_validate({"local-steps": 2, "learning-rate": 0.2}))


def test_projection_after_each_step() -> None:
    """Against a plain loop: step, project the local model onto the ball around the global one, step, project."""
    k = two_steps(knowledge_of(project_norm=0.4))
    sent = trained(k, k.batches, AttackState()).updates
    for row in range(3):
        local = k.theta.clone()
        for step in range(2):
            local = local - 0.2 * k.model.gradient(local, k.batches.inputs[row, step], k.batches.labels[row, step])
            away = local - k.theta
            local = k.theta + away * min(1.0, 0.2 * 0.4 / float(away.norm()))
        torch.testing.assert_close(sent[row], (k.theta - local) / 0.2)
    assert float(sent.norm(dim=1).max()) <= 0.4 * (1 + 1e-12)
    free = constrained_updates(k, k.batches, torch.ones_like(k.theta), float("inf"))
    torch.testing.assert_close(free, block_updates(k.model, k.theta, k.batches, k.client))


def test_neurotoxins_mask_spares_what_the_last_update_changed_most() -> None:
    k = two_steps(knowledge_of(mask_share=0.1))
    move = torch.linspace(-1.0, 2.0, len(k.theta), dtype=torch.float64)
    state = AttackState({"theta": k.theta + move})
    most = set(np.argsort(-np.abs(move.numpy()))[: int(0.1 * len(move))].tolist())
    mask = rare_coordinates(k, state)
    assert set(torch.nonzero(mask == 0.0).flatten().tolist()) == most
    action = trained(k, k.batches, state)
    assert not bool(action.updates[:, sorted(most)].any())
    assert bool(action.updates[:, mask == 1.0].any())
    assert torch.equal(action.state.arrays["theta"], k.theta)
    first = rare_coordinates(k, AttackState())
    assert set(torch.nonzero(first == 0.0).flatten().tolist()) == set(k.honest_mean.abs().topk(len(most)).indices.tolist())


def test_boosters_combine() -> None:
    k = knowledge_of(mask_share=0.2, project_norm=0.5, boost=4.0)
    sent = trained(k, k.batches, AttackState()).updates
    mask = rare_coordinates(k, AttackState())
    for row, update in enumerate(block_updates(k.model, k.theta, k.batches, k.client)):
        masked = mask * update
        torch.testing.assert_close(sent[row], 4.0 * masked * min(1.0, 0.5 / float(masked.norm())))


def view_of(**settings: Any) -> SuccessView:
    k = knowledge_of(**settings)
    test = Batch(torch.rand(9, 1, 2, 3, dtype=torch.float64), torch.arange(9) % 3)
    return SuccessView(test, k.settings, 3, k.pixels, k.edge_images)


@pytest.mark.parametrize("name", BACKDOORS)
def test_success_is_the_target_class_and_images_of_it_do_not_count(name: str) -> None:
    success = success_test_of(ATTACKS[name])
    assert success is not None

    def labels(**settings: int) -> list[int]:
        batch = success(view_of(**settings))
        assert batch is not None
        return batch.labels.tolist()

    assert labels(to_class=1) == [1] * (2 if name == "edge-case" else 6)
    if name != "edge-case":
        assert labels(class_=2, to_class=1) == [1, 1, 1]
        assert labels(class_=1, to_class=1) == []


def test_other_attacks_name_no_success() -> None:
    assert [name for name, attack in ATTACKS.items() if success_test_of(attack)] == ["accumulative", *BACKDOORS]
    pair = success_test_of(ATTACKS["accumulative"])
    assert pair is not None
    assert (pair(view_of()), pair(view_of(class_=1)), pair(view_of(to_class=1))) == (None, None, None)
    batch = pair(view_of(class_=1, to_class=2))
    assert batch is not None
    assert batch.labels.tolist() == [2, 2, 2]


def test_edge_images_have_the_form_of_the_runs_images(configure: Callable[..., Config], tmp_path: Path) -> None:
    for i in range(5):
        Image.fromarray(np.full((12, 10, 3), 50 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    config = configure(attack__name="edge-case", attack__edge_data="folder", attack__edge_root=str(tmp_path))
    dataset = load_federation(config).dataset
    range_ = pixel_range(dataset, torch.device("cpu"))
    train = edge_images(config, dataset, "train", torch.device("cpu"))
    assert train.shape == (3, 1, 8, 8)
    for image, level in zip(train, (0, 100, 200), strict=True):
        torch.testing.assert_close(image, range_.at(torch.tensor(level / 255.0)).expand(1, 8, 8), atol=1e-5, rtol=1e-5)
    assert edge_images(config, dataset, "test", torch.device("cpu")).shape == (2, 1, 8, 8)
    colour = in_the_form_of(torch.rand(2, 1, 8, 8), (3, 4, 4), RANGE._replace(black=torch.zeros(3, 1, 1), white=torch.ones(3, 1, 1)))
    assert colour.shape == (2, 3, 4, 4)
    assert torch.equal(colour[:, 0], colour[:, 2])


def test_edge_images_of_the_own_data_set_are_not_of_the_target_class(configure: Callable[..., Config]) -> None:
    config = configure(attack__name="edge-case", attack__to_class=3)
    dataset = load_federation(config).dataset
    for part, examples in (("train", dataset.train), ("test", dataset.test)):
        images = edge_images(config, dataset, part, torch.device("cpu"))  # pyright: ignore[reportArgumentType]
        assert len(images) == int((examples.labels != 3).sum())
    same = configure(attack__name="edge-case", attack__to_class=3, attack__edge_class=3)
    with pytest.raises(ValueError, match=r"another class than attack.to-class"):
        edge_images(same, dataset, "train", torch.device("cpu"))


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("edge_data", "cats", "expected attack.edge-data to be folder or one of digits"),
        ("edge_class", 12, "expected attack.edge-class < 10, the number of classes of 'digits', got 12"),
        ("edge_data", "folder", "expected attack.edge-root to be a folder with at least two images"),
    ],
)
def test_bad_sources(configure: Callable[..., Config], key: str, value: Any, problem: str) -> None:
    config = configure(**{"attack__name": "edge-case", f"attack__{key}": value, "attack__edge_root": "/nowhere"})
    with pytest.raises(ValueError, match=problem):
        edge_images(config, load_federation(config).dataset, "train", torch.device("cpu"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("class", -2), ("to_class", -2), ("poison_share", 1.5), ("poison_share", -0.1), ("boost", -1.0), ("project_norm", -1.0),
     ("mask_share", 1.0), ("mask_share", -0.1), ("edge_class", -2)],
)  # fmt: skip
def test_bad_values(configure: Callable[..., Config], key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"attack.{key.replace('_', '-')}"):
        configure(**{f"attack__{key}": value})


def test_an_infinite_budget_needs_no_trigger_scale(configure: Callable[..., Config]) -> None:
    configure(attack__name="badnets", attack__norm_bound=float("inf"))
    with pytest.raises(ConfigError, match=r"trigger-scale"):
        configure(attack__norm_bound=float("inf"))
