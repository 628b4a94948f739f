"""docs/tutorial.ipynb runs from its first cell to its last; docs/records.md names everything that a run writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import ROOT, text_of

NOTEBOOK = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_stored_without_outputs() -> None:
    assert [cell for cell in CELLS if cell["outputs"] or cell["execution_count"]] == []


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """The folder in which the notebook's cells were run, one after the other, beside a folder `experiments/` of its own."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "__init__.py").write_text("")
    source = "\n".join(cell["source"] for cell in CELLS).replace("SMALL = {", f"SMALL = {{ 'data.cache-dir': {str(cache_dir)!r},")
    script = folder / "tutorial.py"
    script.write_text("import matplotlib\nmatplotlib.use('agg')\n" + source)
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "runs"


@pytest.mark.slow
def test_the_notebook_runs(records: Path) -> None:
    assert len(list(records.rglob("summary.json"))) == 4 + 4


def keys(value: Any) -> Iterator[str]:
    """The keys of a record, nested ones too, but those by client or block."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from keys(item) if key not in ("failures", "retried") else ()


@pytest.mark.slow
def test_every_key_of_a_line_and_of_a_summary_is_on_the_page(records: Path) -> None:
    page = text_of("records.md")
    for run in (path.parent for path in records.rglob("summary.json")):
        lines = [json.loads(text) for text in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
        written = {*keys(lines[0]), *(key for line in lines for key in keys(line)), *keys(json.loads((run / "summary.json").read_text()))}
        assert [key for key in sorted(written) if f"`{key}`" not in page] == []
        assert {path.name for path in run.iterdir()} <= set(page.split("`")) | {"checkpoint"}
