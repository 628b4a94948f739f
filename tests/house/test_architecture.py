"""The arrows of the layout: experiments -> {strategies, clients} -> fl_sim, and where Flower and Ray may be known."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ALLOWED = {
    "fl_sim": {"fl_sim"},
    "strategies": {"strategies", "fl_sim"},
    "clients": {"clients", "fl_sim"},
    "experiments": {"experiments", "strategies", "clients", "fl_sim"},
}
FLOWER = {
    "fl_sim/params.py",
    "fl_sim/object_state.py",
    "fl_sim/messages.py",
    "fl_sim/grid.py",
    "fl_sim/merging.py",
    "fl_sim/transports.py",
    "fl_sim/ray_workers.py",
    "clients/client_app.py",
    "strategies/catalogue.py",
    "strategies/flower_host.py",
    "strategies/rule_strategy.py",
    "experiments/calibration.py",
    "experiments/plan.py",
    "experiments/server_app.py",
    "experiments/track.py",
}
RAY = {"fl_sim/ray_workers.py", "experiments/warm.py"}
STOCK = "stock_flower"  # an app of its own, as a user of Flower writes it
FILES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py")) if STOCK not in path.parts]


def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    package = name.split("/")[0]
    used = imports(path)
    assert used & set(ALLOWED) <= ALLOWED[package]
    assert "flwr" not in used or name in FLOWER or name.startswith("experiments/warm")
    assert "ray" not in used or name in RAY


def test_no_catch_all_files() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "base", "common", "helpers", "misc")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_can_carry_code(path: Path) -> None:
    """No pickle of ours, no `torch.load`, `numpy.load` without pickles, no `eval` or `exec`; a shelf, a joblib or a dill is a pickle too."""
    assert not imports(path) & {"pickle", "cloudpickle", "dill", "shelve", "joblib", "marshal"}
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in ("torch.load", "eval", "exec")
        if called in ("np.load", "numpy.load"):
            assert {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg == "allow_pickle"} == {"allow_pickle": "False"}
