"""docs/studies.md: its sweep and its search run as printed, and its table has every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments import cli
from experiments.sweep.search import SearchSpec, read_search
from experiments.sweep.spec import SweepSpec, read_sweep
from tests.support.pages import text_of

PAGE = text_of("studies.md")
SPECS = dict(re.findall(r"<!-- (\S+\.toml) -->\n```toml\n(.*?)```", PAGE, flags=re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in SPECS.items():
        Path(name).write_text(text)
    return tmp_path


def test_every_toml_block_is_a_file_with_a_command() -> None:
    assert PAGE.count("```toml\n") == len(SPECS) == 2
    assert "fl-sim sweep my_sweep.toml\n" in PAGE
    assert "`fl-sim search my_search.toml`" in PAGE


def test_the_page_has_every_key() -> None:
    for spec in (SweepSpec, SearchSpec):
        for field in spec.model_fields.values():
            assert re.search(rf"(^|`|\[){field.alias}( =|`|\]|\.)", PAGE, flags=re.MULTILINE), field.alias


def test_the_sweep_is_what_the_page_says(folder: Path) -> None:
    cells = read_sweep("my_sweep.toml").cells
    assert len(cells) == 2 * 3 * 2 - 2
    assert not [cell for cell in cells if cell.labels["strategy"] == "clip-after 1" and cell.labels["attack.name"] == "none"]
    short = read_sweep("my_sweep.toml", "short")
    assert (short.name, len(short.cells), short.common["schedule.accumulate-rounds"]) == ("my_sweep-short", 5, 2)
    search = read_search("my_search.toml")
    assert (search.trials, search.batch, search.stealth_limit, search.seed) == (6, 2, 2.0, 1)
    assert [type(corner["attack.set-size"]) for corner in search.corners()] == [int, int]


@pytest.mark.slow
def test_the_sweep_and_the_search_run(folder: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["--transport", "inline", "-c", f"data.cache-dir={cache_dir}"]
    assert cli.main(["sweep", "my_sweep.toml", "--scale", "short", "-c", "schedule.burn-in-epochs=1", *keys]) == 0
    assert {"study.json", "results.csv", "report.html"} <= {path.name for path in (folder / "runs" / "my_sweep-short").iterdir()}
    assert cli.main(["search", "my_search.toml", *keys]) == 0
    assert "the worst of 6 settings" in capsys.readouterr().out
