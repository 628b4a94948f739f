"""All images of a round as one batch through one model, and nothing else: what a round on a GPU cannot beat, in the ways that PyTorch has
to make it faster. A script that prints JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fl_sim.config.resolve import resolve
from fl_sim.data.federation import load_federation
from fl_sim.model.module import new_module

WARM_UP = 3  # rounds that are not timed: kernels are chosen, graphs captured, code compiled
VARIANTS = ("float32", "bfloat16", "float32, channels last", "bfloat16, channels last", "float32, compiled", "float32, CUDA graph")


def measure(flat: Mapping[str, Any], variant: str, rounds: int) -> list[float]:
    """Seconds of each gradient of a round's images, all clients together.

    Args: flat, keys of a run, as `resolve` takes them; variant, of `VARIANTS`.
    """
    config = resolve(flat)
    federation = load_federation(config)
    batches = federation.cohort([*range(config.clients_per_round)], 1, 1, config.client.batch_size)
    inputs, labels = batches.inputs.flatten(0, 2), batches.labels.flatten()
    module = new_module(config, federation).eval()
    if "channels last" in variant:
        module, inputs = module.to(memory_format=torch.channels_last), inputs.contiguous(memory_format=torch.channels_last)
    step = one_step(torch.compile(module) if "compiled" in variant else module, inputs, labels, half="bfloat16" in variant)
    if "CUDA graph" in variant:
        step = captured(step)
    seconds: list[float] = []
    for _ in range(WARM_UP + rounds):
        wait(inputs.device)
        clock = time.perf_counter()
        step()
        wait(inputs.device)
        seconds.append(time.perf_counter() - clock)
    return seconds[WARM_UP:]


def one_step(module: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor, *, half: bool) -> Callable[[], None]:
    """The gradient of the mean loss of all images with respect to all parameters."""
    parameters = [*module.parameters()] if isinstance(module, nn.Module) else []

    def step() -> None:
        with torch.autocast(inputs.device.type, torch.bfloat16) if half else nullcontext():
            loss = cross_entropy(module(inputs), labels)
        torch.autograd.grad(loss, parameters)

    return step


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph: its kernels are started together, without Python between them."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(json.dumps({"round": statistics.median(measure(json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])))}))
