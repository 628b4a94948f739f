"""Specs of sweeps: where they are found, what they hold, and what is said of those that make no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.sweep.search import read_search
from experiments.sweep.spec import PRESETS, STUDIES, preset_path, read_sweep, sweep_of
from fl_sim.config.options import parse_options
from fl_sim.config.resolve import ConfigError, config_hash, resolve


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def problems_of(spec: dict[str, Any], scale: str = "") -> str:
    with pytest.raises(ConfigError) as raised:
        sweep_of("s", spec, scale)
    return str(raised.value)


def test_what_comes_with_fl_sim_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_sweep("first_look") == read_sweep(STUDIES / "first_look.toml")
    assert preset_path("digits") == PRESETS / "digits.toml"
    assert read_search("worst_case_dgc").trials == 40
    own = written(tmp_path / "first_look.toml", "[axes]\nseed = [1]\n")
    assert len(read_sweep("first_look.toml").cells) == 1, "a path is a path"
    assert len(read_sweep(own).cells) == 1


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("first_lok", "expected a study to be one of accumulation_cifar10"),
        ("first_lok", "or the path of a .toml file, got 'first_lok'; did you mean 'first_look'?"),
        ("elsewhere/first_look.toml", "there is no such file; did you mean 'first_look', a study that comes with fl-sim?"),
        ("xyzzy.toml", "cannot read 'xyzzy.toml'"),
    ],
)
def test_a_name_that_is_none(name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        read_sweep(name)
    assert sentence in str(raised.value)


def test_the_nearest_preset_is_named() -> None:
    with pytest.raises(ConfigError, match=r"expected a preset to be one of cifar10-resnet18, digits, .* did you mean 'digits'\?"):
        preset_path("digit")


def test_a_base_is_relative_to_its_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "specs" / "mine.toml", "seed = 7\n")
    spec = written(tmp_path / "specs" / "s.toml", 'base = "mine.toml"\n[axes]\n"attack.rho" = [1.0]\n')
    monkeypatch.chdir(tmp_path)
    assert read_sweep(spec).common["seed"] == 7
    assert read_sweep(str(spec.relative_to(tmp_path))).common["seed"] == 7
    search = written(tmp_path / "specs" / "w.toml", 'base = "mine.toml"\n[space]\n"attack.rho" = [1.0]\n')
    assert read_search(search).common["seed"] == 7
    spec.write_text('base = "other.toml"\n[axes]\n"attack.rho" = [1.0]\n')
    with pytest.raises(ConfigError) as raised:
        read_sweep(spec)
    assert "s.toml: base: cannot read" in str(raised.value)
    assert str(tmp_path / "specs" / "other.toml") in str(raised.value)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    for name, table in (("mine", ""), ("s", 'base = "mine.toml"\n[axes]\n'), ("w", "[space]\n")):
        (tmp_path / f"{name}.toml").write_bytes(b"\xef\xbb\xbf" + f"{table}seed = {7 if name == 'mine' else [1, 2]}\n".encode())
    assert read_sweep(tmp_path / "s.toml").common["seed"] == 7
    assert read_search(tmp_path / "w.toml").space == {"seed": [1, 2]}


@pytest.mark.parametrize(
    "text",
    [
        '[set]\nstrategy.options = "tau = 1.0"',
        "[set]\nstrategy.options = '{\"tau\": 1.0}'",
        "[set.strategy.options]\ntau = 1.0",
        '[set]\n"strategy.options.tau" = 1.0',
        "[axes]\nstrategy.options = [{tau = 1.0}]",
        "[axes]\nstrategy.options = ['tau = 1.0']",
        "[axes]\nstrategy.options.tau = [1.0]",
        "[axes]\nstrategy = [{name = 'byzfl.CenteredClipping', options = {tau = 1.0}}]",
        "[axes]\nstrategy = [{name = 'byzfl.CenteredClipping', options.tau = 1.0}]",
        "[scales.x.axes]\nstrategy.options.tau = [1.0]",
    ],
)
def test_options_are_one_run_in_whatever_way_they_are_written(text: str, tmp_path: Path) -> None:
    spec = written(tmp_path / "s.toml", text + ("\nseed = [1]\n" if "[axes]" in text else "\n[axes]\nseed = [1]\n"))
    sweep = read_sweep(spec, "x" if "scales" in text else "")
    (cell,) = sweep.cells
    config = resolve({"strategy.name": "byzfl.CenteredClipping", **sweep.common, **cell.flat})
    assert config.strategy.options == '{"tau": 1.0}'
    assert config_hash(config) == config_hash(resolve({"strategy.name": "byzfl.CenteredClipping", "strategy.options": "tau = 1.0"}))


def test_later_options_replace_or_go_over_earlier_ones(tmp_path: Path) -> None:
    written(tmp_path / "mine.toml", "[strategy.options]\na = 1\nb = 2\n")

    def options(text: str) -> list[dict[str, Any]]:
        sweep = read_sweep(written(tmp_path / "s.toml", f'base = "mine.toml"\n{text}'))
        return [parse_options(resolve({**sweep.common, **cell.flat}).strategy.options) for cell in sweep.cells]

    assert options("[set.strategy.options]\nb = 3\n[axes]\nseed = [1]") == [{"a": 1, "b": 3}], "a table goes over a table"
    assert options("[set]\nstrategy.options = 'b = 3'\n[axes]\nseed = [1]") == [{"b": 3}], "a text replaces it"
    assert options("[axes.strategy.options]\nb = [3, 4]") == [{"a": 1, "b": 3}, {"a": 1, "b": 4}], "an axis is one option"
    assert options("[axes]\nstrategy.options = [{c = 5}]") == [{"c": 5}], "a choice is all of them"
    assert options("[axes]\nstrategy = [{name = 'mean', options = {c = 5}}, 'mean']") == [{"c": 5}, {"a": 1, "b": 2}]


def test_options_in_labels_have_no_marks() -> None:
    sweep = sweep_of("s", {"axes": {"strategy": [{"name": "flwr.Krum", "options": {"f": 2}}], "data.options": [{"x": 1}, {}]}})
    assert [tuple(cell.labels.values()) for cell in sweep.cells] == [("flwr.Krum f: 2", "x: 1"), ("flwr.Krum f: 2", "none")]


def test_a_mapping_is_a_spec_too() -> None:
    sweep = sweep_of("my_sweep", {"set": {"attack": {"rho": 0.5}}, "axes": {"seed": range(1, 3), "strategy": ("mean", "dgc")}})
    assert sweep.name == "my_sweep"
    assert sweep.common["name"] == "my-sweep"
    assert sweep.common["attack.rho"] == 0.5
    assert [tuple(cell.flat.values()) for cell in sweep.cells] == [(1, "mean"), (1, "dgc"), (2, "mean"), (2, "dgc")]
    assert problems_of({"axes": {"seed": 3}}) == "sweep 's': expected axes.seed to be a list of at least one value, got 3"


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({}, "expected [axes] to be a table with at least one key, got nothing"),
        ({"axes": {}}, "expected [axes] to be a table with at least one key, got {}"),
        ({"axes": [1]}, "expected [axes] to be a table with at least one key, got [1]"),
        ({"axes": {"seed": []}}, "expected axes.seed to be a list of at least one value, got []"),
        ({"axes": {"attack": {"rho": 1.0}}}, "expected axes.attack.rho to be a list of at least one value, got 1.0"),
        ({"axes": {"seed": [1]}, "set": 3}, "expected [set] to be a table, got 3"),
        ({"axes": {"seed": [1]}, "base": 3}, "expected base to be the name of a preset or the path of a .toml file, got 3"),
        ({"axes": {"seed": [1]}, "base": "digit"}, "base: expected a preset to be one of cifar10-resnet18, digits, fashion-mnist"),
        ({"axes": {"seed": [1]}, "exclude": "dgc"}, "expected exclude to be tables of axes and values ([[exclude]]), got 'dgc'"),
        ({"axes": {"seed": [1]}, "exclude": [{}]}, "expected exclude to be tables of axes and values ([[exclude]]), got {}"),
        ({"axes": {"seed": [1]}, "exclude": [{"strategy": "dgc"}]}, "exclude names 'strategy', which is no axis (seed)"),
        ({"axes": {"seed": [1]}, "exclude": [{"seed": 2}]}, "exclude {'seed': 2} leaves out no cell"),
        ({"axes": {"seed": [1]}, "exclude": [{"seed": 1}]}, "exclude leaves out every cell"),
        ({"axes": {"seed": [1]}, "published": "pang"}, "expected published to be one of pang2021-table3"),
        ({"axes": {"seed": [1]}, "published": 3}, "expected published to be the name of published numbers, got 3"),
        ({"axes": {"seed": [1]}, "scales": 3}, "expected scales to be tables ([scales.cpu]), got 3"),
        ({"axes": {"seed": [1]}, "scales": {"cpu": 3}}, "expected scales to be tables ([scales.cpu]), got 3"),
        ({"axes": {"seed": [1]}, "scales": {"cpu": {"sets": 1}}}, "unknown key 'scales.cpu.sets'; a scale has axes, base, set"),
        ({"axes": {"seed": [1]}, "scales": {"cpu": {"axes": 3}}}, "expected [scales.cpu.axes] to be a table, got 3"),
        ({"axes": {"seed": [1]}, "scales": {"cpu": {"axes": {"seed": 3}}}}, "expected scales.cpu.axes.seed to be a list of at least one"),
        ({"axes": {"seed": [1]}, "exlude": 1}, "unknown key 'exlude'; a sweep has axes, base, exclude, published, scales, set"),
    ],
)
def test_specs_that_make_no_sense(spec: dict[str, Any], sentence: str) -> None:
    text = problems_of(spec)
    assert text.startswith("sweep 's': ")
    assert sentence in text


def test_everything_that_is_wrong_is_said_at_once() -> None:
    text = problems_of({"exlude": 1, "set": 3, "axes": {"seed": 3, "attack.rho": []}, "published": 4})
    assert [line.split("got")[0] for line in text.splitlines()] == [
        "sweep 's': expected [set] to be a table, ",
        "sweep 's': expected axes.seed to be a list of at least one value, ",
        "sweep 's': expected axes.attack.rho to be a list of at least one value, ",
        "sweep 's': expected published to be the name of published numbers, ",
        "sweep 's': unknown key 'exlude'; a sweep has axes, base, exclude, published, scales, set",
    ]


@pytest.mark.parametrize(("scales", "known"), [({"gpu": {}}, "one of gpu, got 'cpu'"), ({}, "one of none (it has no [scales]), got 'cpu'")])
def test_a_scale_that_is_not_there(scales: dict[str, Any], known: str) -> None:
    assert f"expected --scale to be {known}" in problems_of({"axes": {"seed": [1]}, "scales": scales}, "cpu")


def test_a_scale_goes_over_the_spec(tmp_path: Path) -> None:
    spec = written(
        tmp_path / "s.toml",
        'base = "cifar10-resnet18"\n[set]\n"server.momentum" = 0.5\n"seed" = 3\n[axes]\n"attack.rho" = [1.0]\n'
        '[scales.cpu]\nbase = "digits"\nset = { seed = 4 }\naxes = { attack.rho = [2.0] }\n',
    )
    sweep = read_sweep(spec, "cpu")
    assert sweep.name == "s-cpu"
    config = resolve({**sweep.common, **sweep.cells[0].flat})
    assert (config.data.name, config.server.momentum, config.seed, config.attack.rho) == ("digits", 0.5, 4, 2.0)
    assert read_sweep(spec).common["seed"] == 3


def test_exclude_takes_a_value_or_the_label_of_a_choice() -> None:
    axes = {"strategy": ["dgc", {"name": "dgc", "rise": False}], "seed": [1, 2]}
    sweep = sweep_of("s", {"axes": axes, "exclude": [{"strategy": "dgc", "seed": 1}]})
    assert [tuple(cell.labels.values()) for cell in sweep.cells] == [("dgc", "2"), ("dgc rise False", "1"), ("dgc rise False", "2")]


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_studies_are_valid(path: Path) -> None:
    sweep = read_sweep(path.stem)
    assert resolve({**sweep.common, **sweep.cells[0].flat}).name == path.stem.replace("_", "-")
