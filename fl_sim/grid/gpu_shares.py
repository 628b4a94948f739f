"""How many workers there are, and which share of a GPU each reserves. Ray counts in units of 1e-4 of a GPU, and a share is of one GPU."""

from __future__ import annotations

from collections.abc import Sequence

from fl_sim.config.keys import Config
from fl_sim.device import cpu_cores, device_of, gpus_here

UNITS = 10_000  # of a GPU


def places(share: float, gpus: Sequence[float]) -> int:
    """How many workers that reserve `share` > 0 of a GPU (or several whole ones) fit. Args: gpus, of each node."""
    units = max(round(share * UNITS), 1)
    if units > UNITS:
        return sum(int(number * UNITS + 0.5) // units for number in gpus)
    whole = sum(int(number) * (UNITS // units) for number in gpus)
    return whole + sum(round((number - int(number)) * UNITS) // units for number in gpus)


def equal_share(count: int, gpus: Sequence[float]) -> float:
    """The largest share of a GPU, at most 1, with which `count` workers fit; 0 without GPUs."""
    whole = sum(map(int, gpus))
    return UNITS // -(-count // whole) / UNITS if whole else 0.0


def workers_and_share(count: int, share: float, cpus: float, gpus: Sequence[float], *, on_gpu: bool) -> tuple[int, float]:
    """The number of workers and the share of a GPU that each reserves, from `ray.num-workers` and `ray.gpus-per-worker` (0: our choice).

    On a CPU one worker per core. On GPUs one per GPU, because processes take turns on a GPU and each holds a CUDA context and a copy of
    the data; with one of the two keys given, as many workers as have places, or the largest share with which all of them fit.

    Args: cpus, of all nodes; gpus, of each node.
    """
    if on_gpu and sum(gpus):
        share = share or (equal_share(count, gpus) if count else 1.0)
        return count or max(places(share, gpus), 1), share
    return count or max(int(cpus), 1), share


def workers_here(config: Config) -> tuple[int, float]:
    """`workers_and_share` of a Ray of our own on this machine."""
    on_gpu = device_of(config).type == "cuda"
    return workers_and_share(config.ray.num_workers, config.ray.gpus_per_worker, cpu_cores(), [gpus_here()], on_gpu=on_gpu)


def gpu_problem(count: int, share: float, cpus: float, gpus: Sequence[float], where: str) -> str:
    """Why `count` workers that reserve `share` of a GPU each do not fit; empty if they do. Args: where, what has the cores and GPUs."""
    if not share or count <= places(share, gpus):
        return ""
    total, best = sum(gpus), equal_share(count, gpus)
    allowed = f"<= {best:g}" if best else "to be 0"
    fit = f"{cpus:g} cores and {total:g} GPUs have places for {places(share, gpus)} such workers, not for {count}"
    return f"expected ray.gpus-per-worker {allowed} ({where}: {fit}; see --workers), got {share:g}"
