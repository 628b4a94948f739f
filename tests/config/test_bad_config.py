"""Whatever a configuration holds, it is a run or one clear error: never a traceback, never a wait, never a file outside the output folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import cli
from fl_sim.config.resolve import default_flat, to_json
from fl_sim.registry import REGISTRIES

KEYS = sorted(set(default_flat()) - {"output-dir", "data.cache-dir", "data.download", "cells", "search"})
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "",
            "../../evil",
            "/etc/passwd",
            "a/b",
            "..",
            "nul\x00l",
            "ünïcode",
            "💥" * 5,
            "x" * 5000,
            "NaN",
            "-0",
            "1e999",
            "True",
            "[]",
            "{}",
        ]
    ),
    st.sampled_from(
        ["byzfl.", "flwr.", "os:system", "/nowhere.py:X", "flwr.Strategy", "byzfl.NNM+", "builtins:eval", ":", "a:b:c", "module:"]
    ),
)
NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**12, 1e-320, 1e308, -0.0]),
)
VALUES = st.one_of(NUMBERS, TEXTS, st.booleans(), st.lists(NUMBERS, max_size=2), st.dictionaries(TEXTS, NUMBERS, max_size=2), st.none())


class StartedError(Exception):
    """The configuration was taken for a run."""


def toml(value: Any) -> str | None:
    """A value as TOML, if it can be one."""
    if isinstance(value, float):
        return "nan" if value != value else "inf" if value == float("inf") else "-inf" if value == float("-inf") else repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(str(toml(item)) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
    return None if value is None else json.dumps(value)


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.one_of(st.sampled_from(KEYS), TEXTS), VALUES, min_size=1, max_size=3))
def test_any_preset_is_a_run_or_a_clear_error(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], chosen: dict[str, Any]
) -> None:
    def started(*_: object, **__: object) -> None:
        raise StartedError

    monkeypatch.setattr(cli, "launch", started)
    preset = tmp_path / "preset.toml"
    written = {key: text for key, value in chosen.items() if (text := toml(value)) is not None}
    lines = "".join(f"{json.dumps(key)} = {text}\n" for key, text in written.items())
    preset.write_text(lines, encoding="utf-8", errors="surrogatepass")
    began = time.monotonic()
    try:
        code = cli.main(
            [
                "run",
                str(preset),
                "-o",
                str(tmp_path / "out"),
                "--transport",
                "inline",
                "-c",
                f"data.cache-dir={to_json({'x': str(cache_dir)})[6:-1]}",
            ]
        )
    except StartedError:
        code = 0
    said = capsys.readouterr().err
    assert time.monotonic() - began < 20.0, lines
    assert code in (0, 2), lines
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    if code == 2:
        flat = " ".join(said.split())
        assert "cannot read" in flat or any(" ".join(key.split()) in flat or repr(key)[1:-1] in flat for key in written), (lines, said)


@pytest.mark.parametrize("key", [key for key in REGISTRIES if key != "tracking"])
@pytest.mark.parametrize("name", ["0", "zzz", "builtin"])
def test_an_unknown_name_is_one_error(key: str, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, cache_dir: Path) -> None:
    words = ["-o", str(tmp_path), "--transport", "inline", "-c", f"data.cache-dir={cache_dir}", "-c", f'{key}="{name}"']
    assert cli.main(["run", "digits", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert f"expected {key} to be one of" in said
