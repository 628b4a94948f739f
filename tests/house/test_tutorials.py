"""The notebooks of docs/tutorials run from their first cell to their last, and their cells show what their texts say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT

FOLDER = ROOT / "docs" / "tutorials"
HEAD = "import matplotlib\n\nmatplotlib.use('agg')\n\n"
CLAIMS = {
    "backdoors": """
twin = run.rounds.query("track == 'twin'")["attack_success_rate"].dropna().max()
assert lines["attack_success_rate"].max() > 50.0 > twin
assert shot.rounds.query("track == 'attacked'")["attack_success_rate"].iloc[0] > 30.0
""",
    "cluster_and_gpus": """
assert digest(there) == digest(here)
""",
    "first_attack": """
assert summary.drop > 10.0 > 3.0 > summary.stealth_gap
assert summary.gain > 0.0
assert summary.drop > 4.0 * defended.summary.drop
""",
    "images_and_moles": """
assert by_updates.summary.accuracy.after_trigger <= by_images.summary.accuracy.after_trigger
assert 0.0 < moved["attack.image_shift"].max() <= 0.1 + 1e-6
assert chosen["attack.moles"].max() > 0
""",
    "own_attack": """
lowest = {name: run.summary.worst_accuracy_in_phase for name, run in runs.items()}
assert lowest["mean"] < 60.0 < 85.0 < min(lowest["median"], lowest["clip-before"])
attacked, twin = (waited.rounds.query(f"track == '{track}'")["accuracy"].tolist() for track in ("attacked", "twin"))
assert attacked[:8] == twin[:8]  # honest while it waits
assert attacked[8:] != twin[8:]
""",
    "own_defence": """
assert undefended.summary.worst_accuracy_in_phase < 60.0 < 85.0 < defended.summary.worst_accuracy_in_phase
assert defended.summary.filtering is not None
assert careful.summary.clean_twin.final > 80.0
""",
    "own_model_and_data": """
assert isinstance(model, Wide)
assert wide.summary.accuracy.before_trigger > 80.0
assert tables.summary.accuracy.before_trigger > 80.0
""",
    "poison_ratio": """
assert len(frame) == 18
assert (study.folder / "results.tex").is_file()
means = frame.groupby("strategy")["accuracy.final"].mean()
assert means["mean"] < means.drop("mean").min()
assert list(study.folder.glob("*.pdf"))
""",
}


def code_of(name: str) -> str:
    """The code of a notebook."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(cell["source"] for cell in cells if cell["cell_type"] == "code")


def test_every_notebook_has_claims() -> None:
    assert sorted(CLAIMS) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("name", CLAIMS)
def test_it_is_small(name: str) -> None:
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 200_000
    compile(code_of(name), name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_it_runs(name: str, tmp_path: Path) -> None:
    """Without a warning of ours, in a folder of its own."""
    (tmp_path / "notebook.py").write_text(HEAD + code_of(name) + CLAIMS[name], encoding="utf-8")
    command = [sys.executable, "-W", "error::UserWarning", "notebook.py"]
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
