"""The arguments of `fl_sim.run` and `fl_sim.sweep`: none is ignored, and a wrong one is named with what it should be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import fl_sim
from experiments.objects import flat_settings
from fl_sim.config.resolve import ConfigError
from tests.support.small_run import ALONE, SETTINGS

CALL: Any = fl_sim.run


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("seed", r"has no argument 'seed'; it takes attack, .*; a key goes into the second argument: \{'seed': \.\.\.\}"),
        ("output-dir", r"'output-dir'; .* a key goes into the second argument"),
        ("stratgy", r"'stratgy'; .*; did you mean 'strategy'\?"),
        ("dataset", r"'dataset'; it takes "),
        ("tracker", r"'tracker'; .*; did you mean 'tracking'\?"),
        ("settings", r"'settings'; .*; its first two arguments have no names: fl_sim\.run\('digits', \{'seed': 3\}\)"),
        ("scale", r"'scale'"),
    ],
)
def test_an_argument_that_run_does_not_have(argument: str, sentence: str) -> None:
    with pytest.raises(TypeError, match=r"fl_sim\.run has no argument " + sentence.removeprefix("has no argument ")):
        CALL("digits", **{argument: 1})


@pytest.mark.parametrize("argument", ["scael", "seeds"])
def test_an_argument_that_sweep_does_not_have(argument: str) -> None:
    call: Any = fl_sim.sweep
    with pytest.raises(TypeError, match=rf"fl_sim\.sweep has no argument '{argument}'; it takes scale, attack"):
        call({"axes": {"seed": [1]}}, **{argument: 3})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"attack": None}, r"expected attack to be a name or a function \(knowledge, state\) -> Action, got None"),
        ({"objective": 3}, r"expected objective to be a name or a function .* got a int"),
        ({"model": nn.Sequential()}, r"\(image_shape, num_classes\) that makes an nn\.Module, got the module itself \(Sequential\)"),
        ({"data": ([], [])}, r"expected data to be a name or a function \(root\) -> \(train, test\), got a tuple"),
    ],
    ids=str,
)
def test_an_object_of_another_form(given: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        CALL("digits", **given)


def test_a_function_in_an_axis_of_a_sweep() -> None:
    with pytest.raises(ConfigError, match=r"expected strategy\.name to be text .*, a function by its place: file\.py:name, got <function"):
        fl_sim.sweep({"axes": {"strategy.name": [flat_settings]}}, progress=False)


def test_sections_may_be_tables() -> None:
    assert flat_settings({"strategy": {"name": "mean", "options": {}}, "attack.options": {"a": 1}, "seed": 1}) == {
        "strategy.name": "mean",
        "attack.options": {"a": 1},
        "seed": 1,
    }


@pytest.mark.slow
def test_settings_and_objects_make_the_run_and_a_study_is_shown_in_a_line(tmp_path: Path, cache_dir: Path) -> None:
    """NumPy numbers and paths are taken; a function with other numbers is another run."""

    def made(strength: float) -> fl_sim.Run:
        def flip(knowledge: Any, state: Any) -> fl_sim.Action:
            return fl_sim.Action(-strength * knowledge.updates)

        settings = {**SETTINGS, **ALONE, "data": {"cache-dir": cache_dir}, "strategy": {"name": "mean"}, "seed": np.int64(3)}
        return fl_sim.run("digits", settings, attack=flip, output_dir=tmp_path, progress=False)

    run = made(2.0)
    assert (run.config.seed, run.config.strategy.name) == (3, "mean")
    assert made(2.0).folder == run.folder
    assert made(4.0).folder != run.folder
    study = fl_sim.open_study(tmp_path)
    assert repr(study) == f"Study({str(tmp_path)!r}, 2 runs, 2 complete)"
    assert "results.tex" in {path.name for path in study.report(latex=True)}
