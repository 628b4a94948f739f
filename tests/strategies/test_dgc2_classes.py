"""DGC's second version by class: attribution, references, help, and the probe's losses and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fl_sim.data.batches import Batch
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.vectors import flat_parameters
from strategies.dgc2.attribution import harmful, harmful_part
from strategies.dgc2.classes import ClassProbe, follow
from strategies.dgc2.helping import MOST, boosts, strength


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_harmful_updates_are_the_largest_until_the_rest_adds_less_than_half_of_what_others_take_away() -> None:
    for seed in range(20):
        harm = draw(15, seed=seed) + 0.5
        left = [*range(15)]
        while (added := sum(float(harm[i]) for i in left if harm[i] > 0)) > 0 and added >= 0.5 * -sum(
            float(harm[i]) for i in left if harm[i] < 0
        ):
            left.remove(max(left, key=lambda i: float(harm[i])))
        assert harmful(harm).tolist() == [i not in left for i in range(15)]
    assert not harmful(torch.tensor([-1.0, 0.4, -0.5])).any(), "others take away more than twice as much"
    assert harmful(torch.tensor([1.0, 0.0])).tolist() == [True, False]


def test_the_harmful_part_of_a_velocity_is_what_climbs() -> None:
    gradient = draw(30)
    climbing = draw(30, seed=2) - gradient
    assert float(torch.dot(climbing - harmful_part(climbing, gradient), gradient)) == pytest.approx(0.0, abs=1e-4)
    assert not harmful_part(-climbing + 2 * gradient, gradient).any(), "a descent stays"


def test_a_reference_is_a_slow_mean_that_is_never_worse_than_usual() -> None:
    usual = torch.tensor([1.0, 1.0, 1.0, 1.0])
    # better than usual, worse than usual, above usual and falling (a model that still learns), above usual and rising
    reference = follow(torch.tensor([0.5, 0.5, 3.0, 3.0]), torch.tensor([0.2, 3.0, 0.7, 4.0]), usual, 100.0)
    torch.testing.assert_close(reference, torch.tensor([0.497, 0.525, 0.997, 3.0]))
    for _ in range(1000):  # a patient attacker
        reference = follow(reference, torch.full((4,), 5.0), usual, 100.0)
    torch.testing.assert_close(reference, torch.tensor([1.0, 1.0, 1.0, 3.0]))


def test_helping_grows_with_the_deficit_up_to_the_largest_of_clean_rounds() -> None:
    falls = torch.tensor([2.0, 8.0])
    assert strength(torch.tensor([0.0, 0.0]), falls) == 0.0
    assert strength(torch.tensor([-3.0, -1.0]), falls) == 0.0
    assert strength(torch.tensor([0.5, 4.0]), falls) == pytest.approx(MOST / 2)
    assert strength(torch.tensor([0.0, 80.0]), falls) == MOST
    assert strength(torch.tensor([0.5, 4.0]), torch.full((2,), float("inf"))) == 0.0, "nothing in the clean rounds of the calibration"
    assert strength(torch.tensor([math.nan, 4.0]), falls) == 0.0


def test_an_update_counts_more_by_its_cosine_with_the_gradient_and_no_update_counts_less() -> None:
    updates, gradient = draw(12, 30), draw(30, seed=2)
    updates[3], updates[4], updates[5] = 2.0 * gradient, -gradient, 0.0
    found = boosts(updates, updates.norm(dim=1), gradient, 3.0)
    for i, update in enumerate(updates):
        cosine = float(torch.nn.functional.cosine_similarity(update, gradient, dim=0))
        assert float(found[i]) == pytest.approx(1.0 + 3.0 * max(cosine, 0.0), rel=1e-5)
    assert float(found[3]) == pytest.approx(4.0)
    assert float(found[4]) == float(found[5]) == 1.0


def probe_of_a_linear_model() -> tuple[ClassProbe, Tensor]:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    return ClassProbe(FlatModel(module), Batch(draw(7, 1, 2, 2), torch.tensor([0, 2, 2, 0, 0, 2, 2]))), flat_parameters(module)


def test_losses_accuracies_and_gradients_by_class() -> None:
    probe, theta = probe_of_a_linear_model()
    now = probe.by_class(theta)
    losses, hits = probe.model.examples(theta, *probe.probe)
    for position, label in enumerate((0, 2)):
        own = [i for i, other in enumerate(probe.probe.labels.tolist()) if other == label]
        assert float(now.losses[position]) == pytest.approx(sum(float(losses[i]) for i in own) / len(own))
        assert float(now.accuracies[position]) == pytest.approx(100.0 * sum(float(hits[i]) for i in own) / len(own))
        probabilities = torch.softmax(probe.model.logits(theta, probe.probe.inputs[own]), dim=1)[:, label]
        assert float(now.confidences[position]) == pytest.approx(100.0 * float(probabilities.mean()))
    own = probe.probe.labels == 2
    expected = probe.model.gradient(theta, probe.probe.inputs[own], probe.probe.labels[own])
    torch.testing.assert_close(probe.gradient(theta, torch.tensor([False, True])), expected)


@pytest.mark.parametrize("reference", [(90.0, 80.0), (90.0, 1.0), (1.0, 90.0)])
def test_the_gradient_of_the_shortfall_is_that_of_finite_differences(reference: tuple[float, float]) -> None:
    probe, theta = probe_of_a_linear_model()

    def deficits(point: Tensor) -> Tensor:
        return (torch.tensor(reference) - probe.by_class(point).confidences).clamp(min=0.0)

    gradient, step = probe.shortfall_gradient(theta, deficits(theta)), 1e-2
    for i in range(len(theta)):
        moved = torch.zeros_like(theta)
        moved[i] = step
        ahead, behind = (0.5 * float(deficits(theta + sign * moved).square().sum()) for sign in (1.0, -1.0))
        assert float(gradient[i]) == pytest.approx((ahead - behind) / (2.0 * step), rel=0.02, abs=0.5)
    assert float(gradient.norm()) > 50.0
