"""Values as people write them: text that looks like a number, options in four spellings, files of other editors, numbers that are too large."""

from __future__ import annotations

import itertools
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fl_sim
from experiments import cli
from experiments.launch.paths import complete_keys
from experiments.sweep.search import read_search
from experiments.sweep.spec import read_sweep
from fl_sim.config.resolve import ConfigError, config_hash, default_flat, parse_assignment, read_toml, resolve

TEXT_KEYS = sorted(key for key, value in default_flat().items() if isinstance(value, str))
LOOKS_LIKE = [
    "5",
    "3,7",
    "42",
    "0123",
    "1e5",
    "1.50",
    "true",
    "nan",
    "inf",
    "2024-01-01",
    "12:30:00",
    "0x10",
    "1_000",
    "[1]",
    "{}",
    "-0",
    "+1",
    "a#b",
]


@pytest.mark.parametrize("key", TEXT_KEYS)
@pytest.mark.parametrize("text", LOOKS_LIKE)
def test_a_key_that_holds_text_takes_the_text(key: str, text: str) -> None:
    value = parse_assignment(f"{key}={text}")[1]
    assert value == ({} if text == "{}" and key.endswith("options") else text)


@pytest.mark.parametrize(("text", "value"), [('"42"', "42"), ("'a b'", "a b"), ("a b", "a b"), ("", ""), (' "x" ', "x"), ('"a', '"a')])
def test_quotes_are_toml(text: str, value: str) -> None:
    assert parse_assignment(f"name={text}") == ("name", value)


@pytest.mark.parametrize("text", ["3\ntwin=false", "3\nvalue=4"])
def test_a_value_of_several_lines_sets_no_other_key(text: str) -> None:
    assert parse_assignment(f"seed={text}") == ("seed", text)


def test_names_of_digits_and_dates_make_runs() -> None:
    for text in ("42", "2024-01-01", "1e5", "true"):
        assert resolve(dict([parse_assignment(f"name={text}")])).name == text
    assert resolve(dict([parse_assignment("fault.raises=5")])).fault.raises == "5"


def test_whole_numbers_and_dates_of_a_toml_file_are_text_too(tmp_path: Path) -> None:
    preset = tmp_path / "p.toml"
    preset.write_text("name = 2024-01-01\n[fault]\nraises = 5\n")
    config = resolve(read_toml(preset))
    assert (config.name, config.fault.raises) == ("2024-01-01", "5")
    with pytest.raises(ConfigError, match=r"expected name to be text \(in a TOML file: in quotes\), got 1\.5"):
        resolve({"name": 1.5})


SPELLINGS = {
    "json": """-c|strategy.options={"num_malicious_nodes": 2, "num_nodes_to_select": 3}""",
    "json in another order": """-c|strategy.options={"num_nodes_to_select":3,"num_malicious_nodes":2}""",
    "toml table": "-c|strategy.options={num_malicious_nodes = 2, num_nodes_to_select = 3}",
    "toml text": "-c|strategy.options='''num_malicious_nodes = 2\nnum_nodes_to_select = 3'''",
    "two keys": "-c|strategy.options.num_malicious_nodes=2|-c|strategy.options.num_nodes_to_select=3",
    "one over the other": "-c|strategy.options={num_malicious_nodes = 2}|-c|strategy.options.num_nodes_to_select=3",
}


def test_the_spellings_of_options_are_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(cli, "launch", lambda flat, *_, **__: seen.append(flat) or 1)
    common = ["-c", "strategy.name=flwr.MultiKrum", "-o", str(tmp_path), "-c", "attack.poison-ratio=0.02", "--transport", "inline"]
    for spelling in SPELLINGS.values():
        assert cli.main(["run", "digits", *common, *spelling.split("|")]) == 1
    preset = tmp_path / "p.toml"
    preset.write_text("[strategy.options]\nnum_malicious_nodes = 2\nnum_nodes_to_select = 3\n")
    assert cli.main(["run", "digits", str(preset), *common]) == 1
    assert len({config_hash(resolve(flat)) for flat in seen}) == 1
    assert len({json.dumps(flat, sort_keys=True) for flat in seen}) == 1


def test_a_table_of_options_in_a_section_axis(tmp_path: Path) -> None:
    spec = tmp_path / "s.toml"
    spec.write_text('[axes]\nstrategy = [{name = "flwr.Krum", options = {num_malicious_nodes = 2}}, {name = "flwr.Krum"}]\n')
    cells = read_sweep(spec).cells
    assert cells[0].flat["strategy.options"] == '{"num_malicious_nodes": 2}'


BYTES = {
    "a byte order mark": b"\xef\xbb\xbfseed = 3\n",
    "lines of Windows": b"seed = 3\r\n[attack]\r\nrho = 0.5\r\n",
    "tabs": b"\tseed\t=\t3\t# three\n",
    "no last line end": b"seed = 3",
    "a comment in unicode": "# ü\nseed = 3".encode(),
}


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
def test_files_of_other_editors(content: bytes, tmp_path: Path) -> None:
    preset, spec, search = (tmp_path / f"{name}.toml" for name in ("p", "spec", "search"))
    preset.write_bytes(content)
    assert read_toml(preset)["seed"] == 3
    bom = content.startswith(b"\xef\xbb\xbf")
    spec.write_bytes(b"\xef\xbb\xbf" * bom + b'base = "p.toml"\n[axes]\nseed = [1]\n')
    search.write_bytes(b"\xef\xbb\xbf" * bom + b'base = "p.toml"\n[space]\nseed = [1]\n')
    assert read_sweep(spec).common["seed"] == read_search(search).common["seed"] == 3


BROKEN = {
    "latin-1": (b'name = "\xfc"\n', r"it is not UTF-8 \(invalid start byte in byte 9\)"),
    "utf-16": ("seed = 3\n".encode("utf-16"), "it is not UTF-8"),
    "twice": (b"seed = 3\nseed = 4\n", "Cannot overwrite a value"),
    "twice in two spellings": (b'"attack.rho" = 0.5\n[attack]\nrho = 0.6\n', r"it sets attack\.rho twice"),
    "half a line": (b"seed = ", "Invalid value"),
    "binary": (bytes(range(1, 256)), "cannot read"),
    "zeros": (bytes(100), "cannot read"),
    "a number of 5,000 digits": (b"seed = " + b"1" * 5000, "Exceeds the limit"),
    "too deep": (b"a = " + b"[" * 100_000, "nested too deep"),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_read_is_named(content: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tmp_path / "p.toml"
    preset.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        read_toml(preset)
    assert cli.main(["run", str(preset), "-o", str(tmp_path / "out")]) == 2
    assert f"error: cannot read {str(preset)!r}: " in capsys.readouterr().err
    spec = tmp_path / "s.toml"
    spec.write_text('base = "p.toml"\n[axes]\nseed = [1]\n')
    assert cli.main(["sweep", str(spec), "-o", str(tmp_path / "out")]) == 2
    assert f"cannot read {str(preset)!r}: " in capsys.readouterr().err


def test_a_folder_in_place_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.toml").mkdir()
    for command in ("run", "sweep", "search"):
        assert cli.main([command, str(tmp_path / "p.toml"), "-o", str(tmp_path / "out")]) == 2
        assert "Is a directory" in capsys.readouterr().err


def test_an_empty_preset_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "p.toml").touch()
    assert read_toml(tmp_path / "p.toml") == {}


def test_a_base_is_beside_its_spec_or_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "p.toml").write_text("seed = 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for base in ("../p.toml", str(tmp_path / "p.toml"), "~/p.toml"):
        for name, rest in (("sweep", "[axes]\nseed = [1]\n"), ("search", "[space]\nseed = [1]\n")):
            spec = tmp_path / "specs" / f"{name}.toml"
            spec.write_text(f'base = "{base}"\n{rest}')
            read = read_sweep if name == "sweep" else read_search
            assert read(Path("specs") / f"{name}.toml").common["seed"] == 7
            assert read(f"~/specs/{name}.toml").common["seed"] == 7
    scaled = tmp_path / "specs" / "scaled.toml"
    scaled.write_text('[axes]\nseed = [1]\n[scales.small]\nbase = "../p.toml"\n')
    assert read_sweep(scaled, "small").common["seed"] == 7


INTEGERS = sorted(key for key, value in default_flat().items() if isinstance(value, int) and not isinstance(value, bool))
FLOATS = sorted(key for key, value in default_flat().items() if isinstance(value, float))


@pytest.mark.parametrize("key", INTEGERS)
@pytest.mark.parametrize("value", [2**63, 122708114349853193876508456328463, -(2**63)])
def test_numbers_that_flower_cannot_carry_are_refused(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"expected {key} [<>]= .*, got {value}"):
        resolve({key: value})


def test_the_largest_seed_is_one() -> None:
    assert resolve({"seed": 2**63 - 1}).seed == 2**63 - 1


@pytest.mark.parametrize("value", [-1, 2**32])
def test_a_seed_of_a_search_is_one_of_optunas(value: int, tmp_path: Path) -> None:
    spec = tmp_path / "s.toml"
    spec.write_text(f"seed = {value}\n[space]\nseed = [1]\n")
    with pytest.raises(ConfigError, match="expected seed to be a whole number from 0 to 4294967295"):
        read_search(spec)


@pytest.mark.parametrize("key", FLOATS)
@pytest.mark.parametrize("value", [math.nan, -math.inf, "nan", 10**400])
def test_no_number_is_nan(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"expected {key} "):
        resolve({key: value})


@pytest.mark.parametrize("key", FLOATS)
def test_a_whole_number_is_a_number(key: str) -> None:
    value = int(default_flat()[key]) or 1
    try:
        one, other = resolve({key: value}), resolve({key: float(value)})
    except ConfigError:
        return
    assert config_hash(one) == config_hash(other)
    assert one == other


@pytest.mark.parametrize("value", [1.0, "1", True, None, [1], 1.5])
def test_only_a_whole_number_is_a_whole_number(value: Any) -> None:
    with pytest.raises(ConfigError, match="expected seed to be a whole number, got"):
        resolve({"seed": value})


@pytest.mark.parametrize("text", ["yes", "1", "True", "on", "'true'", "null"])
def test_true_and_false_are_written_so(text: str) -> None:
    with pytest.raises(ConfigError, match="expected twin to be true or false, got"):
        resolve(dict([parse_assignment(f"twin={text}")]))


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numbers_of_numpy_are_numbers(kind: type[np.generic]) -> None:
    assert resolve({"seed": kind(3)}) == resolve({"seed": 3})
    assert json.dumps(complete_keys({"seed": kind(3), "attack.rho": np.float64(0.5), "twin": np.bool_(False)}))
    assert resolve({"attack.rho": Decimal("0.5")}) == resolve({"attack.rho": 0.5})
    assert resolve({"attack.rho": np.float32(0.5), "twin": np.bool_(False)}) == resolve({"attack.rho": 0.5, "twin": False})


def test_paths_of_python_are_text(tmp_path: Path) -> None:
    assert resolve({"output-dir": tmp_path, "data.root": tmp_path}).output_dir == str(tmp_path)
    assert complete_keys({"data.cache-dir": tmp_path})["data.cache-dir"] == str(tmp_path)


@pytest.mark.parametrize("value", [{1}, b"x", object()], ids=["set", "bytes", "object"])
def test_values_of_other_types_are_refused(value: Any) -> None:
    for key in ("seed", "attack.rho", "name", "twin", "strategy.options"):
        with pytest.raises(ConfigError, match=f"expected {key} to be"):
            resolve({key: value})


def test_a_sweep_in_python_takes_numpys_seeds(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("experiments.api.start", lambda flat, *_: seen.append(flat))
    fl_sim.sweep({"axes": {"seed": list(np.arange(1, 3))}}, {"data.cache-dir": cache_dir}, output_dir=tmp_path, progress=False)
    assert [cell["seed"] for cell in json.loads(seen[0]["cells"])] == [1, 2]
    assert list(
        itertools.chain(*(cell["labels"].values() for cell in json.loads((tmp_path / "sweep" / "study.json").read_text())["cells"]))
    ) == ["1", "2"]
