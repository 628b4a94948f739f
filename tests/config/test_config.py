"""Configuration: one declaration, every problem at once, the hash, and the copy in pyproject.toml."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.sweep.spec import PRESETS, STUDIES, read_sweep
from fl_sim.config.reference import page, values
from fl_sim.config.resolve import (
    NOT_HASHED,
    ConfigError,
    config_hash,
    default_flat,
    describe_keys,
    flatten,
    from_json,
    parse_assignment,
    read_toml,
    resolve,
    resolve_cells,
    to_flat,
    to_json,
)
from strategies.robust.catalogue import ROBUST

ROOT = Path(__file__).parent.parent.parent


def problems_of(flat: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        resolve(flat)
    return error.value.problems


def test_pyproject_repeats_every_key_with_its_default() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert flatten(config) == default_flat()
    assert {key: type(value) for key, value in flatten(config).items()} == {key: type(value) for key, value in default_flat().items()}


def test_every_key_is_described() -> None:
    rows = describe_keys()
    assert {key for key, _ in rows} == set(default_flat())
    assert all(field.description for _, field in rows)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("seed", "whole number >= 0"),
        ("twin", "`true`, `false`"),
        ("server.momentum", "number >= 0, < 1"),
        ("strategy.bound", "number > 0, or `inf`"),
        ("client.engine", "`auto`, `vmap`, `loop`"),
        (
            "strategy.name",
            ", ".join(f"`{name}`" for name in ("mean", "clip-before", "clip-after", "dgc", "dgc-2", *ROBUST, "flwr.…", "byzfl.…"))
            + ", your own",
        ),
        ("model.options", "options"),
        ("data.root", "text"),
    ],
)
def test_the_page_says_what_a_key_takes(key: str, words: str) -> None:
    assert values(key, dict(describe_keys())[key]) == words


@pytest.mark.parametrize(
    ("flat", "sentence"),
    [
        ({"atack.rho": 1.0}, "unknown key 'atack.rho'; the nearest known key is 'attack.rho'"),
        ({"rho": 1.0}, "unknown key 'rho'; the nearest known key is 'attack.rho'"),
        ({"data.num-clients": "many"}, "expected data.num-clients to be a whole number, got 'many'"),
        ({"data.num-clients": 2.5}, "expected data.num-clients to be a whole number, got 2.5"),
        ({"seed": True}, "expected seed to be a whole number, got True"),
        ({"client.threads": 100_000}, "expected client.threads <= 1024, got 100000"),
        ({"strategy.bound": -1.0}, "expected strategy.bound > 0.0, got -1.0"),
        ({"strategy.bound": math.nan}, "expected strategy.bound > 0.0, got nan"),
        ({"attack.rho": math.inf}, "expected attack.rho to be a finite number, got inf"),
        ({"strategy.norm": "l3"}, "expected strategy.norm to be one of 'l2', 'linf', got 'l3'"),
        ({"name": "../x"}, "expected name to be letters, digits, dots, dashes and underscores, at most 64, got '../x'"),
        ({"server.clients-per-round": 200}, "expected server.clients-per-round <= data.num-clients = 100, got 200"),
        ({"attack.poison-ratio": 0.123}, "(12.3 clients); the nearest is 0.12"),
        ({"attack.poison-ratio": 0.01, "server.clients-per-round": 10}, "(0.1 clients); the nearest is 0"),
        ({"attack.poison-ratio": 1.5}, "expected attack.poison-ratio <= 1.0, got 1.5"),
        ({"attack.poison-ratio": -0.5}, "expected attack.poison-ratio to be -1 (off) or from 0 to 1, got -0.5"),
        ({"attack.fire-from": 101}, "expected attack.fire-from <= schedule.accumulate-rounds = 100"),
        ({"attack.set-size": 0}, "expected attack.set-size >= 2 with attack.data = 'own-set', got 0"),
        ({"fault.raises": "3;7"}, "expected fault.raises to be client ids such as '3,7', got '3;7'"),
        ({"fault.nan": "100"}, "expected fault.nan to hold client ids below data.num-clients, got 100"),
        ({"data": 3}, "unknown key 'data'"),
    ],
)
def test_each_problem_names_key_value_and_what_is_allowed(flat: dict[str, object], sentence: str) -> None:
    problems = problems_of(flat)
    assert len(problems) == 1
    assert sentence in problems[0]


def test_all_problems_at_once() -> None:
    problems = problems_of({"sed": 1, "strategy.bound": 0.0, "data.partition": "even", "attack.poison-ratio": 0.005})
    assert len(problems) == 4


@given(
    st.dictionaries(
        st.sampled_from(sorted(default_flat())), st.one_of(st.none(), st.text(), st.floats(), st.integers(), st.lists(st.integers()))
    )
)
def test_whatever_is_given_the_answer_is_a_config_or_sentences(flat: dict[str, object]) -> None:
    problems = []
    try:
        resolve(flat)
    except ConfigError as error:
        problems = error.problems
    assert all(isinstance(problem, str) and problem for problem in problems)


def test_the_hash_covers_what_can_change_a_result_and_nothing_else() -> None:
    base = config_hash(resolve({}))
    same = {
        "output-dir": "/x",
        "grid.transport": "inline",
        "ray.num-workers": 7,
        "name": "other",
        "data.root": "/y",
        "data.cache-dir": "/z",
    }
    assert config_hash(resolve(same)) == base
    skipped = (*NOT_HASHED, "data.root", "device", "fault.", "attack.poison-ratio", "attack.malicious-fraction")
    for key, value in default_flat().items():
        if key.startswith(skipped) or isinstance(value, str):
            continue
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else 0.9 * value or 0.5
        needs = {"cleaning.name": "jpeg"} if key == "cleaning.shrunk" else {}
        assert config_hash(resolve({**needs, key: other})) != config_hash(resolve(needs)), key


def test_json_round_trip_keeps_infinity() -> None:
    config = resolve({"strategy.bound": math.inf, "attack.stealth-gamma": "inf"})
    assert from_json(to_json(to_flat(config))) == config
    assert config.attack.stealth_gamma == math.inf


def test_assignments_are_toml_or_plain_text() -> None:
    given_texts = ["attack.rho=0.5", "twin=false", "seed=3", "strategy.name=mean", 'data.root="/a b"', "strategy.bound=inf"]
    expected = [0.5, False, 3, "mean", "/a b", math.inf]
    assert [parse_assignment(text)[1] for text in given_texts] == expected
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        parse_assignment("seed")


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_presets_resolve_under_their_own_name(preset: Path) -> None:
    assert resolve(read_toml(preset)).name == preset.stem


def test_a_sweep_is_the_product_of_its_axes(tmp_path: Path) -> None:
    spec = tmp_path / "s.toml"
    spec.write_text(
        'base = "digits"\n[set]\ntwin = false\n[axes]\nseed = [1, 2]\nstrategy = ["mean", {name = "clip-after", bound = 1.0}]\n'
    )
    sweep = read_sweep(spec)
    assert [cell.flat for cell in sweep.cells[:2]] == [
        {"seed": 1, "strategy.name": "mean"},
        {"seed": 1, "strategy.name": "clip-after", "strategy.bound": 1.0},
    ]
    assert [cell.labels["strategy"] for cell in sweep.cells] == ["mean", "clip-after 1"] * 2
    assert sweep.common["twin"] is False
    assert len(read_sweep(STUDIES / "first_look.toml").cells) == 12


@pytest.mark.parametrize(
    ("text", "message"), [("base = ", "cannot read"), ("bse = 'digits'", "unknown key 'bse'"), ("[axes]\nseed = 3", "axes.seed")]
)
def test_a_bad_sweep_is_named(tmp_path: Path, text: str, message: str) -> None:
    spec = tmp_path / "s.toml"
    spec.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_sweep(spec)


def test_the_reference_page_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "keys.md").read_text() == page(), "run: python -m fl_sim.config.reference > docs/keys.md"


def test_the_common_keys_of_a_sweep_need_not_be_a_run_by_themselves() -> None:
    common = {"attack.norm-bound": float("inf"), "cells": '[{"attack.trigger-scale": 1.0}, {"attack.trigger-scale": 2.0}]'}
    assert [cell.attack.trigger_scale for cell in resolve_cells(common)] == [1.0, 2.0]
    assert [config.seed for config in resolve_cells({"seed": 3})] == [3]
    with pytest.raises(ConfigError, match=r"attack\.trigger-scale"):
        resolve({"attack.norm-bound": float("inf")})
