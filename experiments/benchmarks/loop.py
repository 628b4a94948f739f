"""The hand-written loop: the shortest program for these rounds and nothing else. A script that prints its times as JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torchvision.datasets import MNIST

from experiments.benchmarks.workloads import Workload, workload_of
from fl_sim.model.architectures import build_model


def measure(workload: Workload, folder: Path, rounds: int) -> list[float]:
    """Seconds of each round."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = MNIST(folder, train=True)
    images, labels = data.data.float().div(255.0).unsqueeze(1), data.targets
    n, b, steps, rate = workload.clients, workload.batch, workload.steps, workload.learning_rate
    shares = torch.randperm(workload.examples).view(n, workload.share)
    shape = (1, workload.pixels, workload.pixels)
    model = build_model(workload.model, norm="group", image_shape=shape, num_classes=10, generator=torch.Generator()).eval()
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, values, (x,)), y)

    def one_client(values: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        for step in range(steps):
            leaves = {name: value.detach().requires_grad_(True) for name, value in values.items()}
            gradients = torch.autograd.grad(loss(leaves, x[step], y[step]), list(leaves.values()))
            values = {name: value - rate * g for (name, value), g in zip(values.items(), gradients, strict=True)}
        return values

    seconds: list[float] = []
    for _ in range(rounds):
        clock = time.perf_counter()
        positions = shares.gather(1, torch.rand(n, workload.share).argsort(dim=1)[:, : steps * b])
        if workload.model == "mlp":
            gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images[positions], labels[positions])
            parameters = {name: value - rate * gradients[name].mean(dim=0) for name, value in parameters.items()}
        else:
            total = {name: torch.zeros_like(value) for name, value in parameters.items()}
            for rows in positions.view(n, steps, b):
                local_model = one_client(parameters, images[rows], labels[rows])
                total = {name: value + local_model[name].detach() for name, value in total.items()}
            parameters = {name: value / n for name, value in total.items()}
        seconds.append(time.perf_counter() - clock)
    return seconds


if __name__ == "__main__":
    start_time = time.perf_counter()
    times = measure(workload_of(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    total = time.perf_counter() - start_time
    print(json.dumps({"round": statistics.median(times), "rounds": len(times), "startup": total - sum(times)}))
