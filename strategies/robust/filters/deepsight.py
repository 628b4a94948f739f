"""DeepSight: clusters clients by how their output layers changed, and drops clusters with many models trained on few classes."""

from __future__ import annotations

import torch
from torch import Tensor

from fl_sim.model.flat_model import FlatModel
from strategies.robust.ranges import number, whole
from strategies.robust.vectors import clipped, cosines, lengths, mean_of, median
from strategies.rule import CannotCombineError, RuleView

SEEDS = 3  # sets of random inputs
FEWEST = 5  # clients in a cluster, HDBSCAN's default


def deepsight(updates: Tensor, weights: Tensor, view: RuleView, samples: int = 256, share: float = 1 / 3) -> Tensor:
    """The mean of the updates in clusters with less than `share` of suspicious clients, each clipped at the median length of all.

    Energy of class c: `E_c = |bias_c| + sum |weights_c|` of the update's output layer, `N_c = E_c^2 / sum E^2`. Suspicious: the number of
    classes with `N_c > max(0.01, 1 / classes) max N` is at most half of the median client's. Clusters: HDBSCAN of the mean of three 0-1
    distances, 1 between clients that are not in one cluster of N, of `D` (the mean over the sets of random inputs), or of the cosine
    distances of the output biases. `D_c = mean_x p_c(x; theta_i) / p_c(x; theta)`, `theta_i = theta - client_lr g_i`.

    Args: updates (n, d); samples, random inputs in each of three sets, >= 1; share above 0 and at most 1. Equal weights. Raises
    OptionError, and CannotCombineError if every cluster is dropped.
    Source: Rieger et al. 2022, "DeepSight: Mitigating Backdoor Attacks in Federated Learning Through Deep Model Inspection", section IV.
    There are 20,000 inputs in a set, in [0, 1]; ours are between the smallest and the largest number of the server's probe images, which
    give their shape too. A client that HDBSCAN puts in no cluster is one of its own.
    """
    whole("samples", samples, least=1)
    number("share", share, above=0.0, most=1.0)
    energies, biases = output_changes(updates, view.model)
    suspicious = few_classes(energies)
    shapes = [same_cluster(energies), same_cluster(1.0 - cosines(biases), precomputed=True)]
    ratios = [same_cluster(one) for one in output_ratios(updates, view, samples)]
    shapes.append(torch.stack(ratios).double().mean(dim=0))
    together = same_cluster(1.0 - torch.stack([shape.double() for shape in shapes]).mean(dim=0), precomputed=True, single=True)
    kept = (together.double() @ suspicious.double()) < share * together.double().sum(dim=1)
    bound = median(lengths(updates))
    view.report.update(left_out=~kept, suspicious=int(suspicious.sum()))
    if not bool(kept.any()):
        raise CannotCombineError(f"deepsight drops the clusters of all {len(updates)} updates")
    return mean_of(clipped(updates, bound), kept)


def output_changes(updates: Tensor, model: FlatModel) -> tuple[Tensor, Tensor]:
    """The normalised energies N (n, c), float64, of the output layer, and its bias' part (n, c) of updates (n, d), of the weights' sums
    where it has none."""
    first, position, classes, size = 0, 0, 1, 0
    for shape in model.layout.values():
        if len(shape) >= 2:
            first, classes, size = position, shape[0], shape.numel()
        position += shape.numel()
    weights = updates[:, first : first + size].double().view(len(updates), classes, -1)
    biases = updates[:, first + size :].double()
    has_bias = biases.shape[1] == classes
    energies = weights.abs().sum(dim=2) + (biases.abs() if has_bias else 0.0)
    squares = energies.square()
    shares = squares / squares.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return shares, biases if has_bias else weights.sum(dim=2)


def few_classes(energies: Tensor) -> Tensor:
    """Who changed few classes, bool (n,), by the normalised energies (n, c)."""
    threshold = max(0.01, 1.0 / energies.shape[1]) * energies.amax(dim=1, keepdim=True)
    exceedings = (energies > threshold).sum(dim=1)
    return exceedings <= median(exceedings) / 2.0


@torch.no_grad()
def output_ratios(updates: Tensor, view: RuleView, samples: int) -> Tensor:
    """D (SEEDS, n, c), float64: how the models' probabilities on random inputs differ from the global model's, as mean ratios."""
    images = view.server_data.inputs
    low, high = float(images.min()), float(images.max())
    noise = torch.rand(SEEDS * samples, *images.shape[1:], generator=view.generator)
    inputs = (low + (high - low) * noise).to(images)

    def log_probabilities(theta: Tensor) -> Tensor:
        return view.model.logits(theta.to(images.device), inputs).double().log_softmax(dim=1)

    before = log_probabilities(view.theta)
    ratios = [(log_probabilities(view.theta - view.client_lr * update) - before).clamp(max=50.0).exp() for update in updates]
    return torch.stack([ratio.view(SEEDS, samples, -1).mean(dim=1).cpu() for ratio in ratios], dim=1)


def same_cluster(points: Tensor, *, precomputed: bool = False, single: bool = False) -> Tensor:
    """Whether two clients, bool (n, n), are in one cluster of HDBSCAN, by points (n, k) or distances (n, n); each with itself."""
    from sklearn.cluster import HDBSCAN  # loads pandas, where that is installed: only where it is used

    n = len(points)
    if n < FEWEST:
        return torch.ones(n, n, dtype=torch.bool)
    values = points.clamp(min=0.0).fill_diagonal_(0.0) if precomputed else points
    metric = "precomputed" if precomputed else "euclidean"
    clustering = HDBSCAN(min_cluster_size=FEWEST, metric=metric, allow_single_cluster=single, copy=True)  # pyright: ignore[reportArgumentType] - a bool
    labels = torch.from_numpy(clustering.fit(values.numpy(force=True)).labels_)
    return ((labels.unsqueeze(0) == labels.unsqueeze(1)) & (labels >= 0).unsqueeze(0)) | torch.eye(n, dtype=torch.bool)
