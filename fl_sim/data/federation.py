"""The data of a run: the clients' batches, the coalition's own set, the server's probe set and the test set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fl_sim.config.keys import Config
from fl_sim.config.options import parse_options
from fl_sim.data.batches import Batch, CohortBatches, Indices, draw_batches, stream_batches
from fl_sim.data.datasets import DATASETS, Dataset, Examples, datasets, load_dataset, normalised
from fl_sim.data.readers import Progress
from fl_sim.data.splits import SplitPlan, Splits, make_splits, split_plan
from fl_sim.device import device_of
from fl_sim.rng.member_streams import member_states
from fl_sim.rng.streams import stream

RESIDENT_BYTES = 2**31  # largest training inputs that are copied to the device; larger ones stay in the mapped file


class Federation:
    """Data set and splits of one configuration. The data is on the device if it is not too large. Read-only after construction."""

    def __init__(self, dataset: Dataset, splits: Splits, device: torch.device, seed: int, streams: bool = False) -> None:
        self.streams = streams  # whether a client's batches follow one another in passes over its share (`data.stream`)
        self.dataset, self.splits, self.device, self.seed = dataset, splits, device, seed

    def batch(self, part: Examples, indices: Indices, augment: Callable[[Tensor], Tensor] | None = None) -> Batch:
        """The examples of `part` at `indices` (b,), their inputs augmented and then normalised, on the device."""
        where = torch.from_numpy(indices).to(part.inputs.device)
        inputs, labels = part.inputs.index_select(0, where), part.labels.index_select(0, where)  # inputs[where] takes ten times as long
        inputs = inputs.to(self.device)
        return Batch(normalised(augment(inputs) if augment else inputs, self.dataset), labels.to(self.device))

    def cohort(
        self, clients: list[int], round_: int, steps: int, batch_size: int, weight: Literal["batch", "share", "equal"] = "batch"
    ) -> CohortBatches:
        """The batches of k clients in a round, each drawn from the stream `(seed, "batch", client, round)`, or with `data.stream` the
        next ones of the client's pass over its share. weight: `client.weight`."""
        shares = self.splits.of(clients)
        if self.streams:
            where, sizes = stream_batches(shares, [(self.seed, "pass", client) for client in clients], round_, steps, batch_size)
        else:
            where, sizes = draw_batches(shares, member_states(self.seed, "batch", clients, round_), steps, batch_size)
        real = np.arange(where.shape[2]) < sizes[:, None]
        weights = np.broadcast_to(np.where(real, 1.0 / sizes[:, None], 0.0).astype(np.float32)[:, None], where.shape)
        batch = self.batch(self.dataset.train, where.reshape(-1))
        counts = {"share": [len(share) for share in shares], "equal": [1] * len(clients)}
        return CohortBatches(
            batch.inputs.view(*where.shape, *self.dataset.image_shape),
            batch.labels.view(where.shape),
            torch.from_numpy(weights.copy()).to(self.device),
            sizes.tolist(),
            counts.get(weight),
        )

    def test(self, examples: int = 0) -> Batch:
        """The test set, or `examples` of it, drawn from stream `(seed, "evaluate")` because a test file may be sorted by class."""
        if not examples or examples >= len(self.splits.test):
            return self.batch(self.dataset.test, self.splits.test)
        subset = stream(self.seed, "evaluate").permutation(self.splits.test)[:examples]
        return self.batch(self.dataset.test, np.sort(subset))

    def probe(self) -> Batch:
        """The server's probe set."""
        return self.batch(self.dataset.test, self.splits.probe)


@dataclass(frozen=True)
class DataSource:
    """The arguments of `load_dataset` for a configuration."""

    name: str
    root: str
    options: str
    download: bool
    cache_dir: str
    content: str  # digest of the code of a data set from outside

    def load(self, progress: Progress = lambda done, total: None) -> Dataset:
        """The data set, memory-mapped. Raises what `load_dataset` does."""
        options = parse_options(self.options)
        return load_dataset(self.name, self.root, options=options, download=self.download, cache_dir=self.cache_dir, progress=progress)


_LOADED: dict[DataSource, Dataset] = {}  # memory-mapped data sets of this process, from its first load or last `read_data`


def load_federation(config: Config) -> Federation:
    """The federation of a configuration, from process-wide caches keyed by what it depends on.

    Each call looks again at the code of a data set or partition from outside, and at a file of indices. It does not look again at the
    files of a data set, so that the data stays the same during a run (see `read_data`).
    Raises ValueError (DataError for things from outside) and OSError (DataMissing, CannotWriteError) if the data cannot be used.
    """
    source, device = data_source(config), device_of(config)
    federation = _federation(source, data_fingerprint(config), split_plan(config), str(device), config.data.stream)
    channels, height, width = federation.dataset.image_shape
    if config.schedule.burn_in_augmentation != "none" and channels == height == 1:
        raise ValueError(
            f"expected schedule.burn-in-augmentation = 'none' with data.name = {config.data.name!r}, which holds {width} features and no "
            f"images, got {config.schedule.burn_in_augmentation!r}"
        )
    return federation


def data_fingerprint(config: Config) -> str:
    """The fingerprint of a configuration's data set, as this process has read it. Raises what `load_federation` does for the data."""
    source = data_source(config)
    if source not in _LOADED:
        _LOADED[source] = source.load()
    return _LOADED[source].fingerprint


def read_data(config: Config, progress: Progress) -> None:
    """Read the data set of a configuration, at the start of a run: again, if its files have changed since this process last read them.
    progress: as in `load_dataset`. Raises what `load_federation` does for the data."""
    source = data_source(config)
    _LOADED[source] = source.load(progress)


def data_source(config: Config) -> DataSource:
    """Where the data set of a configuration comes from."""
    data = config.data
    content = "" if data.name in DATASETS else datasets.content(data.name)
    return DataSource(data.name, data.root, data.options, data.download, data.cache_dir, content)


@lru_cache(maxsize=8)
def _federation(source: DataSource, fingerprint: str, plan: SplitPlan, device: str, streams: bool) -> Federation:
    dataset = _resident(source, fingerprint, device)
    splits = make_splits(dataset.train.labels.numpy(force=True), dataset.test.labels.numpy(force=True), plan)
    return Federation(dataset, splits, torch.device(device), plan.seed, streams)


@lru_cache(maxsize=4)
def _resident(source: DataSource, fingerprint: str, device: str) -> Dataset:
    """A data set in the memory of a device, unless it is too large. One copy for all seeds and splits."""
    dataset = _LOADED[source]
    return dataset.on(torch.device(device)) if dataset.train.inputs.nbytes <= RESIDENT_BYTES else dataset
