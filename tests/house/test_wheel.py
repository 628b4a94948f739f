"""The wheel holds what runs anywhere: the packages with their presets, studies, numbers and report page, and the Flower app's own folder."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from email.message import Message
from email.parser import Parser
from importlib.metadata import packages_distributions
from importlib.util import module_from_spec, spec_from_file_location
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from flwr.common.constant import FAB_MAX_SIZE
from packaging.requirements import Requirement
from packaging.version import Version

from experiments.launch.app_folder import app_folder

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("clients", "experiments", "fl_sim", "strategies")
APP = "experiments/launch/app"
ITS_OWN = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's use of pathspec
NOT_OURS = ("experiments/benchmarks/stock_flower/", "experiments/benchmarks/pfl_leg.py")  # run in environments of their own


def sources() -> dict[str, Path]:
    """The files of the packages, by their names in the wheel."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(ROOT).as_posix(): path for path in files}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as an installer unpacks it."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist"], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = (folder / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def metadata(site: Path) -> Message:
    (path,) = site.glob("fl_sim-*.dist-info/METADATA")
    return Parser().parsestr(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def installed() -> Mapping[str, list[str]]:
    """The distributions that an importable name belongs to."""
    return packages_distributions()


def requirements(metadata: Message) -> list[Requirement]:
    return [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]


@pytest.fixture(scope="module")
def declared(metadata: Message) -> set[str]:
    """The distributions that the wheel requires, as Python names."""
    return {requirement.name.lower().replace("-", "_") for requirement in requirements(metadata)}


def test_it_holds_the_packages_and_nothing_else(site: Path) -> None:
    names = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    packed = {name for name in names if not name.startswith("fl_sim-")}
    assert packed == {*sources(), f"{APP}/pyproject.toml", f"{APP}/LICENSE"}
    assert {Path(name).parent.as_posix() for name in packed if not name.endswith(".py")} >= {
        *(f"experiments/{folder}" for folder in ("presets", "studies", "searches", "results", "sweep", "report/page")), APP
    }  # fmt: skip


def test_it_brings_the_command(site: Path, metadata: Message) -> None:
    (entry_points,) = site.glob("fl_sim-*.dist-info/entry_points.txt")
    assert entry_points.read_text() == "[console_scripts]\nfl-sim = experiments.__main__:main\n"
    assert metadata["Name"] == "fl-sim"
    assert metadata["License-File"] == "LICENSE"
    (flower,) = [requirement for requirement in requirements(metadata) if requirement.name == "flwr"]
    assert flower.extras == {"simulation"}
    assert [flower.specifier.contains(version) for version in ("1.40.0", "1.41.0", "1.42.0", "1.43.0")] == [False, True, True, False]


@pytest.mark.parametrize("name", [name for name in sources() if name.endswith(".py") and not name.startswith(NOT_OURS)])
def test_what_is_imported_is_required(name: str, declared: set[str], installed: Mapping[str, list[str]]) -> None:
    """A package that comes with another one only by chance is missing in somebody's environment."""
    for node in ast.walk(ast.parse(sources()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            tops = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            tops = {node.module.partition(".")[0]}
        else:
            continue
        for top in tops - sys.stdlib_module_names - set(PACKAGES):
            owners = {owner.lower().replace("-", "_") for owner in installed.get(top, [top])}
            assert owners & declared, f"{name}, line {node.lineno}, imports {top} of {sorted(owners)}"


@ITS_OWN
def test_the_app_folder_is_taken_by_flower(site: Path) -> None:
    """Flower's own checks, those of `flwr run`: the table, the two apps, the bundle."""
    spec = spec_from_file_location("packed_app_folder", site / "experiments/launch/app_folder.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = module.app_folder()
    assert folder == site / APP
    assert (folder / "pyproject.toml").read_bytes() == (ROOT / "pyproject.toml").read_bytes()
    _, warnings = load_and_validate(folder / "pyproject.toml")
    assert warnings == []
    with ZipFile(BytesIO(build_fab_from_disk(folder))) as bundle:
        assert set(bundle.namelist()) == {"pyproject.toml", "LICENSE", ".info/CONTENT"}


@ITS_OWN
def test_in_a_checkout_flower_bundles_the_packages(tmp_path: Path) -> None:
    assert app_folder() == ROOT
    _, warnings = load_and_validate(ROOT / "pyproject.toml")
    assert warnings == []
    for name in (
        "pyproject.toml",
        "LICENSE",
        ".gitignore",
        *PACKAGES,
    ):  # without .venv and what else lies in a checkout, which takes seconds
        source = ROOT / name
        subprocess.run(["cp", "-r", source, tmp_path / name], check=True)
    content = build_fab_from_disk(tmp_path)
    with ZipFile(BytesIO(content)) as bundle:
        names = set(bundle.namelist())
    assert names >= {name for name in sources() if name.endswith((".py", ".json")) or name.startswith("experiments/presets/")}
    assert len(content) < FAB_MAX_SIZE / 4


def test_the_app_says_for_which_flower_it_is() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    app, (flower,) = table["tool"]["flwr"]["app"], [text for text in table["project"]["dependencies"] if text.startswith("flwr")]
    assert app["fab-format-version"] == 1
    assert Version(app["flwr-version-target"]) in Requirement(flower).specifier
