"""A round of honest clients with a cleaning, for tests."""

from __future__ import annotations

import torch

from clients.cleaning.cohort import Cleaner
from clients.cleaning.fitted import fitted
from clients.honest import RoundInputs
from fl_sim.config.keys import Config
from fl_sim.data.batches import CohortBatches
from fl_sim.data.federation import load_federation
from fl_sim.model.burn_in import burn_in
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module

QUICK = {"data__public_size": 200, "cleaning__calibration_rounds": 3, "schedule__burn_in_epochs": 3}
OPTIONS = dict.fromkeys(("ebm", "ddpm"), '{"iterations": 2, "steps": 2}')


def round_of(config: Config, *, stacked: bool = False) -> RoundInputs:
    """The first round of a configuration, from its burnt-in model."""
    federation = load_federation(config)
    start = burn_in(config, federation, lambda *_: None)
    model = FlatModel(new_module(config, federation), start.buffers)
    return RoundInputs(config, federation, model, start.theta, 1, None, stacked, fitted(config, federation).tensors)


def cleaner_of(inputs: RoundInputs) -> Cleaner:
    return Cleaner(inputs.config, inputs.federation, inputs.model, inputs.theta, inputs.round, inputs.fitted)


def one_client(batches: CohortBatches) -> CohortBatches:
    """The images of n clients with one image each, as the batch of one client."""
    count = len(batches.sizes)
    return CohortBatches(
        batches.inputs.view(1, 1, count, *batches.inputs.shape[3:]),
        batches.labels.view(1, 1, count),
        torch.full((1, 1, count), 1.0 / count),
        [count],
    )
