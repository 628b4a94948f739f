"""docs/tutorial.ipynb runs from its first cell to its last, in the folder of somebody who has a package `experiments` too; and the map of
the pages has all of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT, text_of

PATH = ROOT / "docs" / "tutorial.ipynb"
CELLS = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
SETTINGS = "SMALL = {\n"
HEAD = "import matplotlib\n\nmatplotlib.use('agg')\n"
TAIL = """
import json
import sys

sys.path.append("experiments")
import my_module

print(json.dumps({
    "own module": my_module.ANSWER,
    "flipped": flipped.summary.worst_accuracy_in_phase,
    "defended": defended.summary.worst_accuracy_in_phase,
    "model": type(wide.model()).__name__,
    "accuracy": [accuracy, clipped.summary.accuracy.final],
    "opened again": again.frame().equals(frame),
    "discrepancy": discrepancy.tolist(),
}))
"""


def test_it_is_stored_without_outputs() -> None:
    assert [cell for cell in CODE if cell["outputs"] or cell["execution_count"]] == []
    assert PATH.stat().st_size < 100_000


def test_what_it_links_exists() -> None:
    links = [link for cell in CELLS for link in re.findall(r"\]\((\w+\.\w+)\)", cell["source"])]
    assert links
    assert [link for link in links if not (PATH.parent / link).is_file()] == []


def test_the_map_of_the_pages_has_every_page() -> None:
    """Those beside it; mkdocs.yml has the others too (tests/house/test_site.py)."""
    links = re.findall(r"\]\((\w+\.\w+)\)", text_of("index.md"))
    assert {PATH.name, *(page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md")} <= set(links)


@pytest.mark.slow
def test_it_runs(tmp_path: Path, cache_dir: Path) -> None:
    """Without a warning, and its cells show what their texts say."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("")
    (tmp_path / "experiments" / "my_module.py").write_text("ANSWER = 42\n")
    source = "\n\n".join(cell["source"] for cell in CODE)
    assert source.count(SETTINGS) == 1
    script = tmp_path / "tutorial.py"
    script.write_text(HEAD + source.replace(SETTINGS, f"{SETTINGS}    'data.cache-dir': {str(cache_dir)!r},\n") + TAIL, encoding="utf-8")
    command = [sys.executable, "-W", "error::UserWarning", str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["own module"] == 42
    assert shown["flipped"] < 60.0 < 90.0 < shown["defended"]
    assert shown["model"] == "Wide"
    assert shown["accuracy"][0] == pytest.approx(shown["accuracy"][1])
    assert shown["opened again"]
    assert min(shown["discrepancy"]) >= -1e-6
    assert max(shown["discrepancy"]) > 0.1
    assert len(list((tmp_path / "runs").rglob("summary.json"))) == 4 + 4
