"""Settings of the whole process, and global seeds, that a file of the user changes: they change no number of ours."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.model.burn_in import burn_in
from fl_sim.outside_code import OutsideCodeError, changed_settings, error_words, outside_call, settings_now
from fl_sim.registry import load_outside
from tests.support.runs import lines, run, theta
from tests.support.small_run import ALONE

Configure = Callable[..., Config]
CUDNN, ONEDNN = torch.backends.cudnn, torch.backends.mkldnn
# What a file may run, and how to see whether it still holds.
SETTINGS: dict[str, Callable[[], Any]] = {
    "torch.set_default_dtype(torch.float64)": torch.get_default_dtype,
    "torch.set_default_device('meta')": torch.get_default_device,
    "torch.set_num_threads(torch.get_num_threads() + 1)": torch.get_num_threads,
    "torch.use_deterministic_algorithms(True)": torch.are_deterministic_algorithms_enabled,
    "torch.set_grad_enabled(False)": torch.is_grad_enabled,
    "torch.set_flush_denormal(True)": lambda: torch.full((1,), 1e-40).mul(1.0).item(),
    "torch.autocast('cpu').__enter__()": lambda: torch.ones(2, 2).mm(torch.ones(2, 2)).dtype,
    "torch.set_autocast_dtype('cpu', torch.float16)": lambda: torch.get_autocast_dtype("cpu"),
    "torch.set_anomaly_enabled(True)": torch.is_anomaly_enabled,
    "torch.backends.mkldnn.set_flags(False)": lambda: ONEDNN.enabled,
    "torch.backends.cudnn.benchmark = True": lambda: CUDNN.benchmark,
    "torch.backends.cudnn.deterministic = True": lambda: CUDNN.deterministic,
    "torch.backends.cudnn.enabled = False": lambda: CUDNN.enabled,
}


@pytest.mark.parametrize("code", SETTINGS)
@pytest.mark.parametrize("raises", [False, True])
def test_a_setting_of_the_process_is_set_back_after_the_import_and_after_a_call(code: str, raises: bool, tmp_path: Path) -> None:
    seen = SETTINGS[code]
    before, path = seen(), tmp_path / "mine.py"
    path.write_text(f"import torch\ndef thing():\n    {code}\n{code}\n")
    thing = load_outside(f"{path}:thing")
    assert seen() == before
    inside: list[Any] = []
    with contextlib.suppress(OutsideCodeError), outside_call(lambda error: OutsideCodeError(error_words(error))):
        thing()
        inside.append(seen())
        if raises:
            raise ZeroDivisionError
    assert inside[0] != before, "the code does something"
    assert seen() == before


SEEDS = """
import random
import numpy as np
import torch
import fl_sim

def seed():
    torch.manual_seed({0}), np.random.seed({0}), random.seed({0})

seed()

def attack(knowledge, state):
    seed()
    return fl_sim.Action(-knowledge.updates)
"""


def test_global_seeds_change_no_number(configure: Configure, tmp_path: Path) -> None:
    """Neither those that are set before a run, nor those that a file sets when it is imported and in every call."""
    runs: list[tuple[list[float], Any]] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "mine.py").write_text(SEEDS.format(seed))
        config = configure(attack__name=f"{folder / 'mine.py'}:attack", data__cache_dir=str(folder / "cache"), **ALONE)
        _, place = run(config, folder)
        runs.append((theta(place).tolist(), lines(place)))
    assert runs[0] == runs[1]


TRAINED = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, images):
        if self.training:
            torch.set_flush_denormal(True)
            torch.use_deterministic_algorithms(True)
        return self.layer(images.flatten(1))
"""


def test_a_model_that_changes_settings_when_it_is_trained_leaves_none(configure: Configure, tmp_path: Path) -> None:
    """Else the rounds after a burn-in would differ from those after a cached one."""
    (tmp_path / "mine.py").write_text(TRAINED)
    before = settings_now()
    config = configure(model__name=f"{tmp_path / 'mine.py'}:Model", data__cache_dir=str(tmp_path / "cache"))
    burn_in(config, load_federation(config), lambda *_: None)
    assert changed_settings(before) == []
