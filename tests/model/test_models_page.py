"""docs/models.md: its model is run, and its table has every model of ours with its size."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.client_app import answer
from experiments.records.folder import read_summary
from experiments.run.execute import execute_run
from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.grid.transports import InlineTransport
from fl_sim.model.architectures import MODELS
from fl_sim.model.burn_in import burn_in
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import initial_module, model_problem, new_module
from fl_sim.model.saved import final_record, load_model, named_state
from fl_sim.model.vectors import flat_parameters
from fl_sim.training.clipping import Clip
from fl_sim.training.local import block_sum, block_updates, weighted_sum
from tests.support.pages import examples, text_of


def test_the_model_of_the_page_learns_and_its_clients_train_it(configure: Callable[..., Config], tmp_path: Path) -> None:
    code = examples("models.md")["net.py"]
    assert len(code.splitlines()) <= 20
    (tmp_path / "net.py").write_text(code)
    config = configure(model__name=f"{tmp_path / 'net.py'}:Patches", model__options={"width": 32}, schedule__burn_in_epochs=3)
    federation = load_federation(config)
    assert model_problem(config, federation) == ""
    start, model = burn_in(config, federation, lambda *_: None), FlatModel(new_module(config, federation))
    accuracy, _ = model.score(start.theta, *federation.test())
    assert accuracy > 50.0, "of ten classes"
    batches = federation.cohort([0, 1, 2], 1, 1, 10)
    updates = block_updates(model, start.theta, batches, config.client)
    clip = Clip("l2", float(updates.norm(dim=1).median()))
    wanted = weighted_sum(updates, [10.0] * 3, clip)
    torch.testing.assert_close(block_sum(model, start.theta, batches, config.client, clip).total, wanted.total)
    assert set(named_state(model, start.theta, start.buffers)) == set(model.module.state_dict())
    assert final_record(config, federation.dataset)["model-source"]


def test_a_run_with_it_leaves_a_model_that_says_what_the_run_measured(configure: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(examples("models.md")["net.py"])
    config = configure(model__name=f"{tmp_path / 'net.py'}:Patches", twin=False, control=False)
    folder = execute_run(config, tmp_path, InlineTransport(answer), lambda *_: None)
    module, (inputs, labels) = load_model(folder), load_federation(config).test()
    with torch.no_grad():
        accuracy = 100.0 * int((module(inputs).argmax(dim=1) == labels).sum()) / len(labels)
    assert accuracy == pytest.approx(read_summary(folder)["accuracy"]["final"], abs=0.5)  # of another batch size


@pytest.mark.parametrize("name", MODELS)
def test_the_page_has_every_model_with_its_size(configure: Callable[..., Config], name: str) -> None:
    config: Any = configure(model__name=name)
    sizes = [len(flat_parameters(initial_module(config, shape, 10))) for shape in ((1, 8, 8), (1, 28, 28), (3, 32, 32))]
    (row,) = re.findall(rf"^\| `{name}` \|.*\| ([\d,· ]+) \|$", text_of("models.md"), flags=re.MULTILINE)
    assert row == " · ".join(f"{size:,}" for size in sizes)
