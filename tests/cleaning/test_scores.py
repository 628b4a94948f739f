"""The scores, steps and thresholds of cleanings against slow loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clients.cleaning.calibration import bin_edges, fit_threshold
from clients.cleaning.correction import adversarial, correct_all, dsc
from clients.cleaning.images import Context, Images
from clients.cleaning.outliers import RIDGE, Features, intrinsic_dimension, kernel_density, mahalanobis, mixture, references_of
from clients.pixels import PixelScale
from fl_sim.config.keys import Cleaning
from fl_sim.data.batches import Batch
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.vectors import flat_parameters

SCALE = PixelScale(torch.full((1, 1, 1), 4.0), torch.full((1, 1, 1), -2.0), torch.full((1, 1, 1), 2.0))
CLASSES, FEATURES = 3, 4


def small_model() -> tuple[FlatModel, Tensor]:
    """Its features are the inputs times a fixed matrix, through tanh: smooth, in float64."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, FEATURES), nn.Tanh(), nn.Linear(FEATURES, CLASSES)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    return FlatModel(module), flat_parameters(module)


def images(count: int, seed: int = 1) -> Images:
    generator = torch.Generator().manual_seed(seed)
    inputs = 1.5 * torch.randn(count, 1, 2, 3, generator=generator, dtype=torch.float64).clamp(-1.3, 1.3)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return Images(inputs, labels, torch.ones(count, dtype=torch.bool), torch.arange(count) // 3)


def context(*, start: float = 0.0, growth: float = 0.0, **settings: object) -> Context:
    model, theta = small_model()
    earlier = theta + 0.3 * torch.randn(len(theta), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    fitted = {"history": earlier, "start": torch.tensor(start), "growth": torch.tensor(growth)}
    return Context(model, theta, 4, Cleaning.model_validate(settings), SCALE, fitted, seeds=(0, 1, 2, 3))


def probabilities(model: FlatModel, theta: Tensor, image: Tensor) -> np.ndarray:
    logits = model.logits(theta, image[None])[0].detach().numpy()
    values = np.exp(logits - logits.max())
    return values / values.sum()


def divergence(c: Context, image: Tensor) -> float:
    p, q = probabilities(c.model, c.history, image), probabilities(c.model, c.theta, image)
    return float(sum(p[y] * (np.log(p[y]) - np.log(q[y])) for y in range(CLASSES)))


def one_step(c: Context, image: Tensor, label: Tensor, original: Tensor, sign: float) -> Tensor:
    leaf = image[None].clone().requires_grad_(True)
    F.cross_entropy(c.model.logits(c.theta, leaf), label[None]).backward()
    assert leaf.grad is not None
    moved = image + sign * c.settings.step * 4.0 * leaf.grad[0].sign()
    return torch.clamp(torch.clamp(moved, original - c.settings.epsilon * 4.0, original + c.settings.epsilon * 4.0), -2.0, 2.0)


def test_dsc_corrects_each_image_until_its_discrepancy_is_below_the_threshold() -> None:
    """Against a loop over single images; the threshold of round 4 is 0.01 + 0.0075 * 4."""
    batch, c = images(12), context(start=0.01, growth=0.0075, steps=6, step=0.05, epsilon=0.2)
    expected, corrected = [], []
    for image, label in zip(batch.inputs, batch.labels, strict=True):
        x, steps = image.clone(), 0
        while steps < 6 and divergence(c, x) > 0.01 + 0.0075 * 4:
            x, steps = one_step(c, x, label, image, -1.0), steps + 1
        expected.append(x)
        corrected.append(steps)
    assert {0, 6} < set(corrected), "some images are left alone, some stop on the way, some never get there"
    result = dsc(batch, c)
    torch.testing.assert_close(result.inputs, torch.stack(expected))
    assert result.scores is not None
    np.testing.assert_allclose(result.scores.numpy(), [divergence(c, image) for image in batch.inputs])


def test_dsc_by_batch_stops_at_the_mean() -> None:
    """Local batches of three images; each is corrected as a whole."""
    batch, c = images(12), context(start=0.02, steps=3, step=0.05, unit="batch")
    expected = batch.inputs.clone()
    counts = []
    for owner in range(4):
        rows, steps = (batch.owners == owner).nonzero().flatten().tolist(), 0
        while steps < 3 and np.mean([divergence(c, expected[row]) for row in rows]) > 0.02:
            for row in rows:
                expected[row] = one_step(c, expected[row], batch.labels[row], batch.inputs[row], -1.0)
            steps += 1
        counts.append(steps)
    assert len(set(counts)) > 1
    torch.testing.assert_close(dsc(batch, c).inputs, expected)


@pytest.mark.parametrize(("clean", "sign"), [(correct_all, -1.0), (adversarial, 1.0)])
def test_all_images_are_moved_down_or_up_the_loss(clean: object, sign: float) -> None:
    batch, c = images(5), context(steps=4, step=0.03, epsilon=0.08)
    expected = batch.inputs.clone()
    for row in range(5):
        for _ in range(4):
            expected[row] = one_step(c, expected[row], batch.labels[row], batch.inputs[row], sign)
    result = clean(batch, c).inputs  # type: ignore[operator]
    torch.testing.assert_close(result, expected)
    losses = [float(c.model.loss(c.theta, inputs, batch.labels)) for inputs in (batch.inputs, result)]
    assert (losses[1] - losses[0]) * sign > 0.1


def public() -> tuple[Batch, dict[str, Tensor], np.ndarray, np.ndarray, Features]:
    model, theta = small_model()
    batch = images(60, seed=2)
    labels = model.logits(theta, batch.inputs).argmax(dim=1)
    labels[:6] = (labels[:6] + 1) % CLASSES  # six that are wrong, and do not count
    fitted = references_of(model, theta, Batch(batch.inputs, labels), CLASSES)
    right = model.module[1](batch.inputs.flatten(1)).tanh().detach().numpy()  # type: ignore[index]
    seen = images(9, seed=3)
    f = model.module[1](seen.inputs.flatten(1)).tanh().detach()  # type: ignore[index]
    return Batch(batch.inputs, labels), fitted, right[6:], labels[6:].numpy(), Features(f, model.logits(theta, seen.inputs).argmax(dim=1))


def test_kernel_density() -> None:
    _, fitted, references, labels, f = public()
    pairs = [
        np.linalg.norm(a - b) for c in range(CLASSES) for i, a in enumerate(references[labels == c]) for b in references[labels == c][:i]
    ]
    sigma = np.sort(pairs)[(len(pairs) - 1) // 2]  # torch's median is the lower one
    for value, cls, score in zip(f.values.numpy(), f.predicted.tolist(), kernel_density(f, fitted).tolist(), strict=True):
        density = np.mean([np.exp(-np.sum((value - r) ** 2) / sigma**2) for r in references[labels == cls]])
        assert score == pytest.approx(-np.log(density), rel=1e-9)


def test_intrinsic_dimension() -> None:
    _, fitted, references, _, f = public()
    k = max(2, round(0.06 * len(references)))
    for value, score in zip(f.values.numpy(), intrinsic_dimension(f, fitted).tolist(), strict=True):
        r = np.sort([np.linalg.norm(value - reference) for reference in references])[:k]
        assert score == pytest.approx(-1.0 / (np.mean(np.log(r)) - np.log(r[-1])), rel=1e-9)


def test_mahalanobis_and_mixture() -> None:
    _, fitted, references, labels, f = public()
    means = [references[labels == c].mean(axis=0) for c in range(CLASSES)]
    common = np.mean([np.outer(r - means[c], r - means[c]) for r, c in zip(references, labels, strict=True)], axis=0)
    own = [np.mean([np.outer(r - means[c], r - means[c]) for r in references[labels == c]], axis=0) for c in range(CLASSES)]

    def inverse(covariance: np.ndarray) -> np.ndarray:
        return np.linalg.inv(covariance + RIDGE * np.trace(covariance) / FEATURES * np.eye(FEATURES))

    gda, gmm = mahalanobis(f, fitted).tolist(), mixture(f, fitted).tolist()
    for row, (value, cls) in enumerate(zip(f.values.numpy(), f.predicted.tolist(), strict=True)):
        assert gda[row] == pytest.approx(min((value - m) @ inverse(common) @ (value - m) for m in means), rel=1e-8)
        assert gmm[row] == pytest.approx((value - means[cls]) @ inverse(own[cls]) @ (value - means[cls]), rel=1e-8)


@pytest.mark.parametrize("slope", [0.0, 0.5, -0.5])
def test_the_threshold_leaves_the_asked_share_of_clean_scores_above_it(slope: float) -> None:
    """Of scores that grow with the rounds; a threshold never falls."""
    draws = np.random.default_rng(0)
    rounds = [torch.from_numpy(slope * t + draws.exponential(size=50)) for t in range(1, 21)]
    start, growth = fit_threshold(rounds, 0.05)
    assert growth == pytest.approx(max(0.0, np.polyfit(range(1, 21), [float(r.mean()) for r in rounds], 1)[0]), abs=1e-9)
    above = [float(score) > start + growth * t for t, scores in enumerate(rounds, start=1) for score in scores]
    assert np.mean(above) == 0.05


def test_bins_hold_the_clean_quantiles_and_reach_far_beyond() -> None:
    scores = torch.arange(1000.0, dtype=torch.float64)
    edges = bin_edges(scores)
    assert (edges.diff() > 0).all()
    counts = torch.bincount(torch.bucketize(scores, edges), minlength=len(edges) + 1)
    assert int(counts.sum()) == 1000
    assert int(counts.max()) == 100
    assert float(edges[-1]) > 100 * 1000
