"""The shares of clients after a purifier, which goes over each share once: stored as 8-bit pixels beside the other caches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clients.cleaning.cohort import Cleaner
from fl_sim.atomic_files import load_tensors, save_tensors
from fl_sim.config.keys import Config
from fl_sim.data.batches import CohortBatches, Indices
from fl_sim.data.federation import Federation
from fl_sim.waits import locked

VERSION = 1  # caches of other versions are ignored
PART = 500  # images that are purified at once
FIRST = 10_000_000  # beside the draws for the batches of rounds, which attackers have altered


class PurifiedShares:
    """The training images with purified ones in the place of those of some clients: uint8 (e, C, H, W), a copy of its own."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self._train = federation.dataset.train._replace(inputs=federation.dataset.train.inputs.clone())
        dataset = replace(federation.dataset, train=self._train)
        self.purified = Federation(dataset, federation.splits, federation.device, federation.seed, federation.streams)
        self._clients = set[int]()

    def of(self, cleaner: Cleaner, key: str, clients: Sequence[int]) -> Federation:
        """A federation in which the shares of these clients are purified."""
        for client in clients:
            if client not in self._clients:
                share = self.federation.splits.shares[client]
                where = torch.from_numpy(share).to(self._train.inputs.device)
                self._train.inputs[where] = _pixels(cleaner, key, client, share).to(self._train.inputs.device)
                self._clients.add(client)
        return self.purified


@lru_cache(maxsize=2)
def _shares(federation: Federation, key: str) -> PurifiedShares:
    """A process-wide cache by the data and what purifies them."""
    return PurifiedShares(federation)


def purified(cleaner: Cleaner, clients: Sequence[int]) -> Federation:
    """A federation in which the shares of these clients are purified; from the cache, or purified now and stored."""
    config = cleaner.config
    key = hashlib.sha256(repr((config.cleaning.name, config.cleaning.options, config.seed, _digest(cleaner.fitted))).encode()).hexdigest()
    return _shares(cleaner.federation, key[:16]).of(cleaner, key[:16], clients)


def _pixels(cleaner: Cleaner, key: str, client: int, share: Indices) -> Tensor:
    """The purified images of a share, uint8 (e, C, H, W)."""
    content = hashlib.sha256(f"{VERSION} {key} {client} {cleaner.federation.dataset.fingerprint} {cleaner.federation.device}".encode())
    content.update(np.ascontiguousarray(share).data)
    path = _folder(cleaner.config) / f"{content.hexdigest()[:16]}.safetensors"
    if (before := _load(path)) is not None:
        return before
    with locked(path.with_suffix(".lock"), "purifies the same share") as alive:
        if (before := _load(path)) is not None:
            return before
        parts: list[Tensor] = []
        for start in range(0, len(share), PART):
            parts.append(_purify(cleaner._replace(round=FIRST + start), client, share[start : start + PART]))
            alive()
        pixels = torch.cat(parts)
        save_tensors(path, {"pixels": pixels})
    return pixels


def _purify(cleaner: Cleaner, client: int, share: Indices) -> Tensor:
    batch = cleaner.federation.batch(cleaner.federation.dataset.train, share)
    size = len(share)
    batches = CohortBatches(
        batch.inputs.view(1, 1, size, *batch.inputs.shape[1:]),
        batch.labels.view(1, 1, size),
        torch.full((1, 1, size), 1.0 / size, device=batch.inputs.device),
        [size],
    )
    cleaned = cleaner([client], batches).batches.inputs[0, 0]
    dataset = cleaner.federation.dataset
    mean, std = (cleaned.new_tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    return (cleaned * torch.where(std > 0, std, 1) + mean).round().clamp(0, 255).to(torch.uint8).cpu()


def _folder(config: Config) -> Path:
    return Path(config.data.cache_dir).expanduser() / "purified"


def _load(path: Path) -> Tensor | None:
    try:
        return load_tensors(path)[0]["pixels"]
    except (OSError, ValueError, KeyError):
        return None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()
