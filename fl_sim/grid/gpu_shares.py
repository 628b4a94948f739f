"""How many workers the GPUs of a Ray cluster have places for. Ray counts resources in units of 1e-4, and a share of a GPU is of one GPU."""

from __future__ import annotations

from collections.abc import Sequence

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


def gpu_problem(count: int, share: float, gpus: Sequence[float], where: str) -> str:
    """Why `count` workers that reserve `share` of a GPU each do not fit; empty if they do. Args: where, what has the GPUs, in words."""
    if not share or count <= places(share, gpus):
        return ""
    total, best = sum(gpus), equal_share(count, gpus)
    allowed = f"<= {best:g}" if best else "to be 0"
    fit = f"{total:g} GPUs have places for {places(share, gpus)} such workers, not for {count}"
    return f"expected ray.gpus-per-worker {allowed} ({where}: {fit}; see --workers), got {share:g}"
