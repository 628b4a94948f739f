"""What the documentation shows is run: the new attack of docs/attacks.md, and the names that the page must cover."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from clients.catalogue import ATTACKS
from clients.client_app import app
from experiments.records.folder import run_folder
from experiments.run.execute import execute_run
from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.grid.transports import InlineTransport
from fl_sim.model.burn_in import burn_in
from strategies.catalogue import strategy_names

DEFENCES = (Path(__file__).parent.parent.parent / "docs" / "defences.md").read_text(encoding="utf-8")
PAGE = (Path(__file__).parent.parent.parent / "docs" / "attacks.md").read_text(encoding="utf-8")


def test_the_new_attack_of_the_page_runs(configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file and its line in the table, as printed: the model stands still while the coalition acts, and moves afterwards."""
    code, line = re.findall(r"```python\n(.*?)```", PAGE[PAGE.index("## A new attack") :], flags=re.DOTALL)
    assert len(code.splitlines()) <= 15
    module = ModuleType("stall")
    exec(compile(code, "clients/stall.py", "exec"), module.__dict__)
    name, function = re.fullmatch(r'"(\S+)": (\w+),\s*', line).groups()  # pyright: ignore
    monkeypatch.setitem(ATTACKS, name, getattr(module, function))
    config = configure(attack__name=name, strategy__name="mean", twin=False, schedule__recovery_rounds=0, checkpoint__every=1)
    summary = execute_run(config, tmp_path, InlineTransport(app), lambda *_: None)
    start = burn_in(config, load_federation(config), lambda *_: None).theta
    final = load_file(run_folder(tmp_path, config) / "final.safetensors")["theta"]
    assert float((final - start).norm() / start.norm()) < 1e-6
    honest = configure(attack__name="none", attack__malicious_fraction=0.0, strategy__name="mean", schedule__recovery_rounds=0)
    execute_run(honest, tmp_path, InlineTransport(app), lambda *_: None)
    moved = load_file(run_folder(tmp_path, honest) / "final.safetensors")["theta"]
    assert float((moved - start).norm() / start.norm()) > 1e-3
    assert summary["trigger_round"] == 4
    assert torch.isfinite(final).all()


@pytest.mark.parametrize("name", list(ATTACKS))
def test_the_page_has_every_attack(name: str) -> None:
    assert f"`{name}`" in PAGE
    assert f"attack.name={name}" in PAGE or f"| `{name}`" in PAGE or name == "accumulative"


@pytest.mark.parametrize("name", strategy_names())
def test_the_page_of_defences_has_every_strategy(name: str) -> None:
    package, _, rest = name.rpartition(".")
    assert f"`{name}`" in DEFENCES or (package and rest in DEFENCES and f"`{package}.<" in DEFENCES)


def test_nothing_is_left_to_be_filled_in() -> None:
    pages = [*(Path(__file__).parent.parent.parent / "docs").glob("*.md"), Path(__file__).parent.parent.parent / "README.md"]
    assert not [page.name for page in pages if "@@" in page.read_text(encoding="utf-8")]
