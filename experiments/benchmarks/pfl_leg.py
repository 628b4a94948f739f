"""pfl-research's leg, after `pip install 'pfl[pytorch]'`: federated averaging in its simulator. A script that prints JSON."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.datasets import MNIST

from experiments.benchmarks.workloads import Workload, workload_of
from fl_sim.model.architectures import build_model


def measure(workload: Workload, folder: Path, rounds: int) -> list[float]:
    """The seconds from the end of one round to the end of the next, without the first round."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    data = MNIST(folder, train=True)
    images, labels = data.data.float().div(255.0).unsqueeze(1), data.targets
    shares = torch.randperm(workload.examples).view(workload.clients, workload.share)
    shape = (1, workload.pixels, workload.pixels)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build_model(workload.model, norm="group", image_shape=shape, num_classes=10, generator=torch.Generator())

        def loss(self, x: Tensor, y: Tensor, is_eval: bool = False) -> Tensor:
            self.train(not is_eval)
            return cross_entropy(self.inner(x), y)

        def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
            return {}

    def user(number: int) -> Any:
        rows = shares[number][torch.randperm(workload.share)]
        return PyTorchTensorDataset((images[rows], labels[rows]), user_id=str(number))

    ends: list[float] = []

    class Clock(TrainingProcessCallback):
        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> tuple[bool, Any]:
            ends.append(time.perf_counter())
            return False, Metrics()

    network, users = Network(), list(range(workload.clients))
    model = PyTorchModel(
        network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )
    federated = FederatedDataset(user, get_user_sampler("minimize_reuse", users))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds + 1, evaluation_frequency=10**6, train_cohort_size=workload.clients, val_cohort_size=0
        ),
        SimulatedBackend(training_data=federated, val_data=federated),
        model,
        NNTrainHyperParams(
            local_num_epochs=None,
            local_num_steps=workload.steps,
            local_learning_rate=workload.learning_rate,
            local_batch_size=workload.batch,
        ),
        NNEvalHyperParams(local_batch_size=None),
        [Clock()],
    )
    return [after - before for before, after in itertools.pairwise(ends)]


if __name__ == "__main__":
    start_time = time.perf_counter()
    times = measure(workload_of(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    total = time.perf_counter() - start_time
    print(json.dumps({"round": statistics.median(times), "rounds": len(times), "startup": total - sum(times)}))
