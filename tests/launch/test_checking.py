"""The checks of many cells before the first round: their progress, and what they do once for all cells."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments import cli
from experiments.launch.launch import error_console
from experiments.launch.preflight import preflight
from experiments.launch.progress import counted, display
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.data.federation import DataSource
from tests.support.small_data import write_image_folder
from tests.support.small_run import ALONE, SMALL, words

Configure = Callable[..., Config]
SPEC = '[axes]\nseed = [1, 2, 3]\n"strategy" = ["mean", "byzfl.TrMean"]\n'


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is shown after every step."""
    monkeypatch.setattr(counted, "UPDATE_EVERY", 0.0)
    monkeypatch.setattr(display, "LINE_EVERY", 0.0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("plan", [True, False])
def test_a_sweep_shows_how_many_cells_it_has_checked(
    plan: bool, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "launch", lambda *_, **__: 1)
    spec = tmp_path / "mine.toml"
    spec.write_text(SPEC)
    more = [*SMALL, *words(ALONE), "-c", f"data.cache-dir={cache_dir}"]
    cli.main(["sweep", str(spec), "--transport", "inline", "-o", str(tmp_path), *["--plan"] * plan, *more])
    lines = capsys.readouterr().err.splitlines()
    assert "checking the cells: 5 of 6" in lines
    assert "looking at the cells once more: 5 of 6" in lines
    assert any(line.startswith("checking the cells: 0 of 6 · reading digits") for line in lines)


@pytest.mark.usefixtures("at_once")
def test_of_one_cell_only_a_long_step_is_shown() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with counted.counted(console, "checking the cells", 1) as on_step:
        on_step(0, "reading digits: 3/9")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "reading digits: 3/9\n"


def test_a_quick_check_shows_nothing_in_a_log_file() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with counted.counted(console, "checking the cells", 3) as on_step:
        for done in range(3):
            on_step(done)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders of the data sets that are read."""
    load, roots = DataSource.load, list[str]()

    def counting(self: DataSource, *progress: Any) -> Any:
        roots.append(self.root)
        return load(self, *progress)

    monkeypatch.setattr(DataSource, "load", counting)
    return roots


def test_data_that_many_cells_share_is_read_once(configure: Configure, tmp_path: Path, reads: list[str]) -> None:
    """Else every file of it would be looked at once for each cell."""
    roots = [tmp_path / "one", tmp_path / "two"]
    for root in roots:
        write_image_folder(root)
    small = {"data__name": "image-folder", "data__cache_dir": str(tmp_path / "cache"), "data__num_clients": 2, "strategy__probe_size": 1}
    small |= {"attack__data": "members", "output_dir": str(tmp_path), "model__name": "mlp"}
    preflight([configure(**small, data__root=str(root), seed=seed) for seed in (1, 2, 3) for root in roots], error_console(quiet=True))
    assert reads == [str(root) for root in roots]


def test_data_that_cannot_be_read_is_tried_once_and_named_once(configure: Configure, tmp_path: Path, reads: list[str]) -> None:
    configs = [
        configure(data__name="image-folder", data__root=str(tmp_path / "none"), output_dir=str(tmp_path), seed=seed) for seed in (1, 2)
    ]
    with pytest.raises(ConfigError) as caught:
        preflight(configs, error_console(quiet=True))
    assert len(caught.value.problems) == 1
    assert len(reads) == 1
