"""What a newcomer types wrong: one sentence that names the right word, once, without a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments import cli
from experiments.launch.launch import error_console
from experiments.launch.preflight import notes
from fl_sim.config.idle_keys import READERS, idle_key_notes
from fl_sim.config.resolve import default_flat, resolve
from tests.support.small_run import ALONE, SETTINGS, SMALL, words

MINE = """
import torch
from fl_sim import Aim, Clip, Rule
sloped = Rule(before=lambda updates: updates)
clipped = Rule(before=Clip("l2", 1.0))
def rulemaker():
    return Rule()
def median(updates, weights):
    return updates.median(dim=0)
def nothing():
    return None
def objective(knowledge, theta, trigger):
    return Aim(theta.sum())
class Quits:
    def __init__(self, folder, config):
        pass
    def on_round(self, line):
        raise OSError("no network")
    def close(self, summary):
        pass
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def said(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """The exit code, and the errors, each on a line."""
    code = cli.main(list(arguments))
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    return code, [line.removeprefix("error: ") for line in stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("model.name=resnet50", "did you mean 'resnet20'?"),
        ("strategy.name=clip-befor", "did you mean 'clip-before'?"),
        ("strategy.name=krum", "did you mean 'flwr.Krum' or 'byzfl.Krum'?"),
        ("strategy.name=krumm", "did you mean 'flwr.Krum' or 'byzfl.Krum'?"),
        ("attack.name=math:sqrt", "cannot load attack.name = 'math:sqrt': math has no source file"),
        ("strategy.name=mine.py:missing", "mine.py has no 'missing'"),
        ("strategy.name=mine.py:sloped", "expected Rule.before to be a fl_sim.Clip(norm, bound) or None, got function"),
        ("strategy.name=mine.py:rulemaker", "expected a function (updates, weights, **options), a fl_sim.Rule or a Flower Strategy, got rulemaker()"),
        ("model.start=nothere.pt", "expected model.start to be a file with a state_dict"),
        ("data.options.x=1", "data.name = 'digits' has no option x; it takes none"),
    ],
)  # fmt: skip
def test_a_wrong_thing_is_named_once(setting: str, sentence: str, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, errors = said(["run", "digits", "--transport", "inline", *SMALL, "-c", setting], capsys)
    assert (code, len(errors)) == (2, 1)
    assert sentence in errors[0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"data.partition": "dirichlet", "data.partition-options": {"alhpa": 1}}, "has no option alhpa; it takes alpha"),
        ({"strategy.name": "flwr.Krum", "strategy.options": {"ff": 1}}, "it has no option ff; it takes fraction_train, "),
        ({"strategy.name": "byzfl.TrMean", "strategy.options": {"ff": 1}}, "TrMean has no option ff; it takes f"),
        (
            {"attack.objective": "mine.py:objective", "attack.options.weight": 2},
            "an objective takes no options: it reads knowledge.settings",
        ),
        ({"attack.fire": "rehearsed"}, "lower attack.fire-from, or set attack.fire = 'schedule'"),
    ],
)
def test_a_wrong_option_is_answered_by_what_there_is(
    settings: dict[str, object], sentence: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, errors = said(["run", "digits", "--transport", "inline", *SMALL, *words(settings)], capsys)
    assert (code, len(errors)) == (2, 1)
    assert sentence in errors[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("sweep worst_case_dgc", "'worst_case_dgc' is a search: fl-sim search worst_case_dgc"),
        ("search attack_on_digits", "'attack_on_digits' is a study: fl-sim sweep attack_on_digits"),
        ("sweep digits", "'digits' is a preset: fl-sim run digits"),
        ("run study.toml", "'study.toml' is a study: fl-sim sweep study.toml"),
        ("sweep search.toml", "'search.toml' is a search: fl-sim search search.toml"),
        ("search preset.toml", "'preset.toml' is a preset: fl-sim run preset.toml"),
        ("run digits --strategy dgc", "unknown argument '--strategy'; set keys with -c: -c strategy.name=dgc"),
        ("run --num-clients=3", "unknown argument '--num-clients=3'; set keys with -c: -c data.num-clients=3"),
        ("run digits strategy.name=dgc", "expected a preset, got 'strategy.name=dgc'; set keys with -c: -c strategy.name=dgc"),
        ("run --transport inline -c grid.transport=inlin", "grid.transport is set twice: 'inlin' with -c, 'inline' with --transport"),
    ],
)
def test_another_command_or_another_way(
    arguments: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("study", "[axes]\nseed = [1]"), ("search", "[space]\nseed = [1]"), ("preset", "[model]\nname = 'mlp'")):
        (tmp_path / f"{name}.toml").write_text(text)
    assert said(arguments.split(), capsys) == (2, [sentence])


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("strategy.name=mine.py:median", "round 1 of the attacked track: expected "),
        ("tracking=mine.py:nothing", "mine.py:nothing' could not be made: TypeError: nothing() takes 0 positional arguments"),
    ],
)
def test_a_failed_run_ends_with_its_reason(
    setting: str, sentence: str, mine: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [*SMALL, "-c", f"data.cache-dir={cache_dir}", "-c", setting]
    code, errors = said(["run", "digits", "--transport", "inline", *keys], capsys)
    assert (code, len(errors)) == (1, 1)
    assert sentence in errors[0]
    assert cli.main(["list", "runs"]) == 0
    out = capsys.readouterr().out
    assert "failed" in out
    assert str(tmp_path) not in out, "names of files without their folder"


@pytest.mark.slow
def test_failed_cells_are_named_after_the_table(mine: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And once; a cell that goes on is not failed any more."""
    Path("four.toml").write_text('[axes]\n"strategy.name" = ["mean", "mine.py:median", "mine.py:clipped"]\n')
    keys = [*SMALL, *words(ALONE), "-c", f"data.cache-dir={cache_dir}", "--transport", "inline"]
    assert cli.main(["sweep", "four.toml", *keys]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 1
    last = captured.err.strip().splitlines()[-1]
    assert "failed: round 1 of the attacked track: expected" in last
    assert len(list(Path("runs/four").glob("*/summary.json"))) == 2
    mine.write_text(MINE.replace("median(dim=0)", "median(dim=0).values"))
    assert cli.main(["sweep", "four.toml", *keys]) == 0
    assert "failed" not in capsys.readouterr().err
    assert len(list(Path("runs/four").glob("*/failure.txt"))) == 1, "of the run with the old file"


@pytest.mark.slow
def test_a_tracker_that_fails_is_named_once_and_the_run_succeeds(mine: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [*SMALL, *words(ALONE), "-c", f"data.cache-dir={cache_dir}", "-c", "tracking=mine.py:Quits"]
    assert cli.main(["run", "digits", "--transport", "inline", *keys]) == 0
    assert capsys.readouterr().err.count("failed and is not called again: OSError: no network") == 1


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"attack.tau": 1.0}, "attack.tau = 1.0 has no effect here: it is read by gaussian and ipm and alie"),
        ({"data.dirichlet-alpha": 0.1}, "data.dirichlet-alpha = 0.1 has no effect here: it is read by data.partition = dirichlet, "),
        ({"client.learning-rate": 0.1}, "client.learning-rate = 0.1 has no effect here: it is read by client.local-steps > 1, "),
        ({"attack.boost": 2.0}, "attack.boost = 2.0 has no effect here: it is read by badnets and blended and dba and edge-case"),
        ({"attack.edge-class": 2}, "attack.edge-class = 2 has no effect here: it is read by edge-case"),
        ({"attack.step": 2.0}, "attack.step = 2.0 has no effect here: it is read by accumulative with attack.scaling = 'exact'"),
        ({"attack.margin": 2.0}, "attack.margin = 2.0 has no effect here: it is read by accumulative with attack.objective = 'erosion'"),
        ({"attack.name": "label-flip", "attack.class": 2}, "attack.class = 2 has no effect here: it is read by accumulative and badnets"),
        ({"attack.fire-from": 2}, "attack.fire-from = 2 has no effect here: it is read by accumulative with attack.fire = 'rehearsed'"),
        ({"strategy.name": "mean", "strategy.bound": 1.0}, "strategy.bound = 1.0 has no effect here: it is read by clip-before, "),
        ({"attack.malicious-fraction": 0.0}, "no client is malicious (attack.malicious-fraction = 0.0): attack.name = 'accumulative' does"),
        ({"attack.poison-ratio": 0.0}, "no client is malicious (attack.poison-ratio = 0.0): attack.name = 'accumulative' does nothing"),
    ],
)
def test_a_key_without_effect_is_noted(settings: dict[str, object], note: str, tmp_path: Path, cache_dir: Path) -> None:
    config = resolve({**SETTINGS, "data.cache-dir": str(cache_dir), **settings})
    assert [text for text in notes([config], [tmp_path / "none"], error_console(quiet=True)) if text.startswith(note)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attack.name": "gaussian", "attack.tau": 1.0},
        {"client.local-steps": 2, "client.learning-rate": 0.1},
        {"strategy.name": "flwr.FedMedian", "client.learning-rate": 0.1},
        {"data.partition": "quantity-skew", "data.dirichlet-alpha": 0.1},
    ],
)
def test_a_key_that_is_read_is_not_noted(settings: dict[str, object]) -> None:
    assert idle_key_notes([resolve({**SETTINGS, **settings})]) == []


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys\nsys.argv[1:] = ['--help']\nfrom experiments.__main__ import main\ntry:\n    main()\nfinally:\n    print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "usage: fl-sim" in done.stdout
    assert not {"torch", "flwr", "numpy", "pydantic", "rich"} & set(done.stdout.split())


def test_a_key_that_one_cell_reads_is_not_noted() -> None:
    cells = [resolve({"attack.name": name, "attack.tau": 1.0}) for name in ("none", "gaussian")]
    assert idle_key_notes(cells[:1])
    assert idle_key_notes(cells) == []
    assert set(READERS) <= set(default_flat())
