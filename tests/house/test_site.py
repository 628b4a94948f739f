"""The documentation site: its navigation has every page, it builds without a warning and without a network, and pages keep their sizes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from experiments.sweep.spec import read_preset, read_sweep
from fl_sim.config.resolve import resolve
from tests.support.pages import NOTEBOOKS, ROOT, text_of

DOCS = ROOT / "docs"
HOW_TO = sorted((DOCS / "howto").glob("*.md"))
ELSEWHERE = re.compile(
    r"<(?:script|img|iframe)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*rel=\"?(?:stylesheet|preconnect)[^>]*href=\"?(?:https?:)?//"
)


def blocks(language: str) -> list[tuple[Path, str]]:
    """The blocks of the how-to pages that have a file name."""
    pattern = rf"<!-- \S+ -->\n```{language}\n(.*?)```"
    return [(page, block) for page in HOW_TO for block in re.findall(pattern, page.read_text(encoding="utf-8"), flags=re.DOTALL)]


def test_the_navigation_has_every_page_once() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = re.findall(r"(\S+\.(?:md|ipynb))$", nav, flags=re.MULTILINE)
    assert sorted(named) == sorted(path.relative_to(DOCS).as_posix() for path in [*DOCS.rglob("*.md"), *NOTEBOOKS])


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.name)
def test_a_how_to_page_is_short(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 40


def test_the_readme_is_short_and_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert re.search(r"^make run .*\nmake test ", text, flags=re.MULTILINE)
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        compile(block, "README.md", "exec")


def test_toml_of_how_to_pages_is_valid(tmp_path: Path) -> None:
    """Presets resolve; sweeps make the runs that they promise."""
    kinds = []
    for _, block in blocks("toml"):
        path = tmp_path / "block.toml"
        path.write_text(block, encoding="utf-8")
        if "axes" in tomllib.loads(block):
            plan = read_sweep(path)
            kinds.append(len(plan.cells))
        else:
            resolve(read_preset(path))
            kinds.append(1)
    assert sorted(kinds) == [1, 3 * 4 * 3]


def test_python_of_how_to_pages_compiles() -> None:
    assert blocks("python")
    for page, block in blocks("python"):
        compile(block, page.name, "exec")


def test_the_version_is_one() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"fl_sim-{version}-py3-none-any.whl" in text_of("install.md")
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert set(pages) >= {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in [*DOCS.rglob("*.md"), *NOTEBOOKS]}
    assert [name for name, page in pages.items() if ELSEWHERE.search(page)] == []
    assert "experiments.api.run" in pages["reference/api.html"]
    assert [name for name, page in pages.items() if re.search(r">[\w/]+\.(?:md|ipynb)</a>", page)] == [], "links with titles, not files"
    assert "schedule.accumulate-rounds" in pages["tutorials/first_attack.html"]
