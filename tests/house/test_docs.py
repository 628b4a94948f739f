"""The documentation: what it shows runs, what it links and cites exists, and its pages cover every name."""

from __future__ import annotations

import ast
import json
import re
import tokenize
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from clients.catalogue import ATTACKS
from clients.client_app import answer
from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.data.sampling import malicious_clients, sample_clients
from fl_sim.grid.grid import ClientGrid, play_round
from fl_sim.grid.transports import InlineTransport
from fl_sim.model.burn_in import burn_in
from fl_sim.model.flat_model import FlatModel
from fl_sim.model.module import new_module
from strategies.catalogue import build_strategy, strategies
from tests.support.pages import NOTEBOOKS, PAGES, ROOT, examples, text_of

PACKAGES = ("fl_sim", "strategies", "clients", "experiments", "tests")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
OUTSIDE = re.compile(r"\b(DESIGN|MATH|HOUSE|STYLE|IMAGES)\b")  # pages that are not in the repository
SECTION = re.compile(r"docs/(\w+\.md), section (\d+(?:\.\d+)?)")
PLACE = re.compile(r"\b(?:fl_sim|strategies|clients|experiments|tests)/[\w/.-]*\w\.(?:py|toml|json)\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def thetas_of(config: Config, phases: list[str]) -> list[torch.Tensor]:
    """The model before round 1 and after each round, in the phases given."""
    federation = load_federation(config)
    start = burn_in(config, federation, lambda *_: None)
    model = FlatModel(new_module(config, federation), start.buffers)
    strategy = build_strategy(config, start.theta, lambda round_: sample_clients(config, round_), model=model, federation=federation)
    grid = ClientGrid(InlineTransport(answer), config, start.buffers, malicious=malicious_clients(config))
    thetas = [strategy.theta]
    for round_, phase in enumerate(phases, start=1):
        outcome = play_round(strategy, grid, round_, phase).outcome
        assert bool(outcome.metrics.get("fired")) == (phase == "trigger")
        thetas.append(strategy.theta)
    return thetas


def test_the_new_attack_of_the_page_runs(configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file and its line in the table, as printed: the model stands still while the coalition acts, and moves afterwards."""
    page = text_of("attacks.md")
    code, line = re.findall(r"```python\n(.*?)```", page[page.index("## A new attack") :], flags=re.DOTALL)
    assert len(code.splitlines()) <= 15
    module = ModuleType("stall")
    exec(compile(code, "clients/baselines/stall.py", "exec"), module.__dict__)
    name, function = re.fullmatch(r'"(\S+)": (\w+),\s*', line).groups()  # pyright: ignore
    monkeypatch.setitem(ATTACKS, name, getattr(module, function))
    config = configure(attack__name=name, strategy__name="mean")
    start, *acting, after = thetas_of(config, ["accumulate"] * 3 + ["trigger", "recover"])
    assert max(float((theta - start).norm() / start.norm()) for theta in acting) < 1e-6
    assert float((after - start).norm() / start.norm()) > 1e-4
    assert torch.isfinite(after).all()


@pytest.mark.parametrize("name", list(ATTACKS))
def test_the_page_has_every_attack(name: str) -> None:
    page = text_of("attacks.md")
    assert f"`{name}`" in page
    assert f"attack.name={name}" in page or f"| `{name}`" in page or name == "accumulative"


@pytest.mark.parametrize("name", strategies.names())
def test_the_page_of_defences_has_every_strategy(name: str) -> None:
    page, (package, _, rest) = text_of("defences.md"), name.rpartition(".")
    assert f"`{name}`" in page or (package and rest in page and f"`{package}.<" in page)


def test_nothing_is_left_to_be_filled_in() -> None:
    assert not [page.name for page in PAGES if "@@" in page.read_text(encoding="utf-8")]


def anchors_of(path: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings: lower case, spaces as dashes, no other punctuation."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def prose_of(page: Path) -> str:
    """A page without its blocks of code; the texts of a notebook."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n\n".join(cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_links_exists(page: Path) -> None:
    """Files, and headings of pages."""
    text = prose_of(page)
    for link in LINK.findall(text):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if link.partition("#")[0] and (page.parent / link.partition("#")[0]).resolve() != page
    }
    assert [page.name for page in PAGES[1:] if page not in linked] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_exists(page: Path) -> None:
    """Files of the repository, but for the one that the page on attacks invents."""
    named = set(PLACE.findall(page.read_text(encoding="utf-8")))
    assert [place for place in sorted(named) if not (ROOT / place).exists()] in ([], ["clients/baselines/stall.py"])


def cited_in(path: Path) -> str:
    """The docstrings and comments of a file."""
    with tokenize.open(path) as file:
        text = file.read()
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = [ast.get_docstring(node) or "" for node in nodes]
    with path.open("rb") as raw:
        comments = [token.string for token in tokenize.tokenize(raw.readline) if token.type == tokenize.COMMENT]
    return "\n".join([*docstrings, *comments])


@pytest.mark.slow
def test_nothing_cites_what_is_not_in_the_repository() -> None:
    """No page and no docstring names a page outside it; a section that is cited is there."""
    here = Path(__file__).resolve()
    texts = {path: cited_in(path) for path in SOURCES if path != here} | {page: page.read_text(encoding="utf-8") for page in PAGES}
    assert [str(path.relative_to(ROOT)) for path, text in texts.items() if OUTSIDE.search(text)] == []
    for path, text in texts.items():
        for name, number in SECTION.findall(re.sub(r"\s+", " ", text)):
            assert re.search(rf"^#+ {re.escape(number)}\.? ", text_of(name), flags=re.MULTILINE), f"{path.name} cites {name}, {number}"


EXAMPLES = examples("contributing.md")


def test_every_python_block_of_contributing_is_a_file() -> None:
    page = text_of("contributing.md")
    assert page.count("```python\n") == len(EXAMPLES) > 0
    for name, function in re.findall(r"\b(own_\w+\.py):(\w+)", page):
        assert re.search(rf"^(?:(?:def|class) {function}\b|{function} = )", EXAMPLES[name], flags=re.MULTILINE), f"{name}:{function}"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_valid(name: str) -> None:
    """At most 20 lines of Python with a docstring; it is named in a command."""
    code = EXAMPLES[name]
    assert len(code.splitlines()) <= 20
    defined = [node for node in ast.parse(code, name).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert all(ast.get_docstring(node) for node in defined)
    last = ast.parse(code, name).body[-1]
    named = last.targets[0].id if isinstance(last, ast.Assign) and isinstance(last.targets[0], ast.Name) else defined[-1].name
    assert f"={name}:{named}" in text_of("contributing.md")
