"""The rules of the house: layers and circles, where Flower and Ray may be known, sizes, and what may be read."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("fl_sim", "strategies", "clients", "experiments")
FLOWER = {
    "fl_sim/wire/arrays.py",
    "fl_sim/wire/object_state.py",
    "fl_sim/grid/grid.py",
    "fl_sim/grid/merging.py",
    "fl_sim/grid/server_strategy.py",
    "fl_sim/grid/transports.py",
    "fl_sim/data/outside_partitions.py",
    "clients/client_app.py",
    "strategies/catalogue.py",
    "strategies/checks.py",
    "strategies/flower_host.py",
    "strategies/rule_strategy.py",
    "strategies/trial.py",
    "experiments/server_app.py",
    "experiments/launch/serve.py",
}
RAY = {"fl_sim/grid/ray_workers.py", "fl_sim/grid/ray_runtime.py"}
STOCK = "stock_flower"  # an app of its own, as a user of Flower writes it
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")) if STOCK not in path.parts]
MOST_FILES = 12  # in a folder


def imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return modules


def packages(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imports(path)}


def test_layers_and_circles() -> None:
    """The contracts of [tool.importlinter] in pyproject.toml, imports for type checking included. In a process of its own: the linter
    sets up logging for itself."""
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_flower_and_ray_are_known_at_the_edge_alone(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    used = packages(path)
    assert not used & {"flwr", "flwr_datasets"} or name in FLOWER
    assert "ray" not in used or name in RAY


def test_the_lists_name_files_that_are_there() -> None:
    assert [name for name in sorted(FLOWER | RAY) if not (ROOT / name).is_file()] == []


def test_a_folder_holds_at_most_twelve_modules() -> None:
    folders = {path.parent for path in FILES}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_no_catch_all_files() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "base", "common", "helpers", "misc")]


def test_no_test_module_imports_another() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    wrong = {
        str(path.relative_to(ROOT)): module for path in tests for module in imports(path) if module.rpartition(".")[2].startswith("test_")
    }
    assert wrong == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_can_carry_code(path: Path) -> None:
    """No pickle of ours, `torch.load` of weights alone, `numpy.load` without pickles, no `eval` or `exec`."""
    assert not packages(path) & {"pickle", "cloudpickle", "dill", "shelve", "joblib", "marshal"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert called not in ("eval", "exec")
        if called == "torch.load":
            assert words.get("weights_only") == "True"
        if called in ("np.load", "numpy.load"):
            assert words.get("allow_pickle") == "False"
