"""The floor: all images of a round as one batch (one per local step) through one model, and nothing else. A script that prints JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.workloads import Workload, workload_of
from fl_sim.model.architectures import build_model


def measure(workload: Workload, rounds: int) -> tuple[list[float], int, int]:
    """The seconds of each round, the floating-point operations of a round, and the bytes of its images and of the model."""
    torch.set_num_threads(1)
    shape = (1, workload.pixels, workload.pixels)
    model = build_model(workload.model, norm="group", image_shape=shape, num_classes=10, generator=torch.Generator()).eval()
    parameters, count = list(model.parameters()), workload.clients * workload.batch
    images, labels = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(count) % 10

    def one_round() -> None:
        for _ in range(workload.steps):
            gradients = torch.autograd.grad(cross_entropy(model(images), labels), parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(workload.learning_rate * gradient)

    with FlopCounterMode(display=False) as counter:
        one_round()
    seconds: list[float] = []
    for _ in range(rounds):
        clock = time.perf_counter()
        one_round()
        seconds.append(time.perf_counter() - clock)
    numbers = workload.steps * images.numel() + sum(parameter.numel() for parameter in parameters)
    return seconds, counter.get_total_flops(), 4 * numbers


if __name__ == "__main__":
    start_time = time.perf_counter()
    times, operations, size = measure(workload_of(sys.argv[1]), int(sys.argv[2]))
    total = time.perf_counter() - start_time
    line = {"round": statistics.median(times), "rounds": len(times), "startup": total - sum(times)}
    print(json.dumps({**line, "operations": operations, "bytes": size}))
