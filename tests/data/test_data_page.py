"""docs/data.md: its data set and its partition are run, and its tables have every name of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fl_sim.config.keys import Config
from fl_sim.data.datasets import DATASETS
from fl_sim.data.federation import load_federation
from fl_sim.data.partitions import PARTITIONS
from fl_sim.model.burn_in import burn_in
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from tests.support.pages import examples, text_of


def written(name: str, folder: Path) -> Path:
    """A file of the page, at most 20 lines long."""
    code = examples("data.md")[name]
    assert len(code.splitlines()) <= 20
    (folder / name).write_text(code)
    return folder / name


def test_the_data_set_of_the_page_is_learned(configure: Callable[..., Config], tmp_path: Path) -> None:
    name = f"{written('rings.py', tmp_path)}:rings"
    config = configure(data__name=name, data__options={"noise": 0.2}, schedule__burn_in_epochs=15)
    federation = load_federation(config)
    assert (federation.dataset.image_shape, federation.dataset.num_classes) == ((1, 1, 2), 3)
    start = burn_in(config, federation, lambda *_: None)
    accuracy, _ = FlatModel(new_module(config, federation), start.buffers).score(start.theta, *federation.test())
    assert accuracy > 60.0, "of three classes"


def test_the_partition_of_the_page_does_what_it_says(configure: Callable[..., Config], tmp_path: Path) -> None:
    name = f"{written('majority.py', tmp_path)}:majority"
    federation = load_federation(configure(data__partition=name, data__partition_options={"share": 0.5}))
    labels = federation.dataset.train.labels.numpy()
    for client, share in enumerate(federation.splits.shares):
        mixture = np.bincount(labels[share], minlength=10) / len(share)
        assert mixture.argmax() == client % 10
        assert mixture.max() >= 0.45


@pytest.mark.parametrize("name", [*DATASETS, *PARTITIONS])
def test_the_page_has_every_name(name: str) -> None:
    rows = [line.split("|")[1] for line in text_of("data.md").splitlines() if line.startswith("|")]
    assert any(f"`{name}`" in row for row in rows)
