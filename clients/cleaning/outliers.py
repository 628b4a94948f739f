"""Filters: images are dropped whose features are outliers among those of public, clean images.

Features f (e, q) are the inputs of the model's last linear layer, under the burnt-in model: so the thresholds hold in every round, and no
attack moves the detector. A high score is an outlier. Source: Pang et al. 2021, Fig. 2, and what it names. Where we differ: their features
are of training images and of the model of the moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clients.cleaning.images import Context, Images
from fl_sim.data.batches import Batch
from fl_sim.model.flat_model import FlatModel

NEAREST = 0.06  # of the references: 600 of 10,000 in Pang et al.'s code
MOST_REFERENCES = 1000  # of a class, for the kernel density
RIDGE = 1e-3  # of the mean variance, added to the diagonal of a covariance: some features are always 0

Fitted = Mapping[str, Tensor]


class Features(NamedTuple):
    """Features (e, q), float64, and the predicted classes (e,)."""

    values: Tensor
    predicted: Tensor


@torch.no_grad()
def features(model: FlatModel, theta: Tensor, inputs: Tensor, batch: int = 200) -> Features:
    """The features of inputs (e, C, H, W). Raises ValueError if the model has no linear layer."""
    layers = [layer for layer in model.module.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ValueError("expected a model with a linear layer for a filter of outliers, got one without")
    seen: list[Tensor] = []
    handle = layers[-1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().flatten(1).double()))
    try:
        predicted = [model.logits(theta, part).argmax(dim=1) for part in inputs.split(batch)]
    finally:
        handle.remove()
    return Features(torch.cat(seen), torch.cat(predicted))


def kernel_density(f: Features, fitted: Fitted) -> Tensor:
    """KD (e,): `-log mean_j exp(-|f - f_j|^2 / sigma^2)` over the references of the predicted class, sigma the median distance of two
    references of a class. Infinite for a class without references.

    Source: Feinman et al. 2017; Pang et al. 2021. Where we differ: sigma is fixed there (0.01 as printed, 10 in the code); the logarithm is
    ours, so that nothing underflows.
    """
    references, labels, sigma = fitted["references"], fitted["labels"], fitted["sigma"]
    scores = torch.full_like(f.values[:, 0], float("inf"))
    for label in f.predicted.unique():
        mine, theirs = f.predicted == label, references[labels == label][:MOST_REFERENCES]
        if len(theirs):
            squares = torch.cdist(f.values[mine], theirs, compute_mode="donot_use_mm_for_euclid_dist").square()
            scores[mine] = math.log(len(theirs)) - torch.logsumexp(-squares / sigma**2, dim=1)
    return scores


def intrinsic_dimension(f: Features, fitted: Fitted) -> Tensor:
    """LID (e,): `-1 / mean_i log(r_i / r_K)`, r_1 <= ... <= r_K the distances to the K nearest references, K = 6 % of them, at least 2.

    Source: Ma et al. 2018, Eq. 4; Pang et al. 2021 (K = 600 of 10,000). Distances of 0 count as the smallest number.
    """
    references = fitted["references"]
    distances = torch.cdist(f.values, references, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=torch.finfo(torch.float64).tiny)
    nearest = distances.topk(max(2, round(NEAREST * len(references))), dim=1, largest=False).values
    ratios = (nearest / nearest.max(dim=1, keepdim=True).values).log()
    return -1.0 / ratios.mean(dim=1).clamp(max=-torch.finfo(torch.float64).tiny)


def mahalanobis(f: Features, fitted: Fitted) -> Tensor:
    """GDA (e,): `min_c (f - mu_c)' S^-1 (f - mu_c)`, S the common covariance. Source: Lee et al. 2018, Eq. 2."""
    differences = f.values[:, None] - fitted["means"]  # (e, c, q)
    return torch.einsum("ecq,qr,ecr->ec", differences, fitted["precision"], differences).min(dim=1).values


def mixture(f: Features, fitted: Fitted) -> Tensor:
    """GMM (e,): `(f - mu_c)' S_c^-1 (f - mu_c)` of the predicted class c.

    Source: Zheng and Hong 2018; Pang et al. 2021, whose code has no log-determinant either, so it is no likelihood.
    """
    differences = f.values - fitted["means"][f.predicted]
    return torch.einsum("eq,eqr,er->e", differences, fitted["precisions"][f.predicted], differences)


def references_of(model: FlatModel, theta: Tensor, public: Batch, num_classes: int) -> dict[str, Tensor]:
    """What the scores need of public images: the features of those that the model classifies correctly, their mean and covariance by
    class. A class without such an image has the mean of all. Raises ValueError for less than two images."""
    f = features(model, theta, public.inputs)
    right = f.predicted == public.labels
    references, labels = f.values[right], public.labels[right]
    if len(references) < 2:
        raise ValueError(f"expected at least 2 public images that the model classifies correctly for a filter, got {len(references)}")
    groups = [references[labels == label] for label in range(num_classes)]
    means = torch.stack([group.mean(dim=0) if len(group) else references.mean(dim=0) for group in groups])
    centred = references - means[labels]
    common = centred.T @ centred / len(references)
    covariances = [
        common if len(group) < 2 else (group - mean).T @ (group - mean) / len(group) for group, mean in zip(groups, means, strict=True)
    ]
    distances = torch.cat([torch.pdist(group[:MOST_REFERENCES]) for group in groups])
    sigma = distances.median() if len(distances) else torch.ones((), dtype=torch.float64, device=references.device)
    return {
        "references": references,
        "labels": labels,
        "sigma": sigma.clamp(min=torch.finfo(torch.float64).tiny),
        "means": means,
        "precision": _inverse(common),
        "precisions": torch.stack([_inverse(covariance) for covariance in covariances]),
    }


def _inverse(covariance: Tensor) -> Tensor:
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.linalg.inv(covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device))


def _dropping(score: Callable[[Features, Fitted], Tensor]) -> Callable[[Images, Context], Images]:
    """The cleaning that drops images whose score is not at most the threshold."""

    def drop(batch: Images, context: Context) -> Images:
        scores = score(features(context.model, context.fitted["model"], batch.inputs), context.fitted)
        return batch._replace(kept=batch.kept & (scores <= context.limit), scores=scores)

    return drop


SCORES: Mapping[str, Callable[[Features, Fitted], Tensor]] = {
    "filter-kd": kernel_density,
    "filter-lid": intrinsic_dimension,
    "filter-gda": mahalanobis,
    "filter-gmm": mixture,
}
filter_kd, filter_lid, filter_gda, filter_gmm = (_dropping(score) for score in SCORES.values())
