"""The search for an attack's worst case: what it proposes, that it finds what is there, and that it goes on where it stopped."""

from __future__ import annotations

import csv
import json
import re
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments import cli
from experiments.launch import serve
from experiments.sweep.search import Search, Settings, evaluated, explore, read_search, search_of
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, resolve

SPACE = {"attack.rho": {"low": 0.01, "high": 1.0}, "attack.stealth-gamma": {"low": 0.1, "high": 10.0, "log": True}}


def summary(left: float, lost: float = 0.0) -> dict[str, Any]:
    return {"accuracy": {"after_trigger": left, "final": 99.0}, "worst_loss_in_phase": lost, "stealth_gap": None}


def without_timings(table: str) -> list[dict[str, str]]:
    """The rows of a results.csv."""
    return [{key: value for key, value in row.items() if not key.startswith("seconds.")} for row in csv.DictReader(table.splitlines())]


def valley(batch: Sequence[Settings]) -> list[Mapping[str, Any] | None]:
    """Accuracy 100 |rho - 0.3|: the least at 0.3. Below 0.5 the phase costs 5 points; so within the limit the least is at 0.5."""
    return [summary(100 * abs(each["attack.rho"] - 0.3), 5.0 if each["attack.rho"] < 0.5 else 1.0) for each in batch]


def test_it_finds_the_worst_case_within_the_stealth_limit() -> None:
    trials = explore(Search(name="s", space=SPACE, trials=60, batch=4), valley)
    within = [settings["attack.rho"] for settings, summary, _ in trials if summary and summary["worst_loss_in_phase"] <= 2.0]
    assert min(within) == pytest.approx(0.5, abs=0.02)
    free = explore(Search(name="s", space=SPACE, trials=60, batch=4, stealth_limit=10.0), valley)
    assert min(abs(settings["attack.rho"] - 0.3) for settings, *_ in free) < 0.01


def test_proposals_depend_on_the_results_alone() -> None:
    first = explore(Search(name="s", space=SPACE, trials=30), valley)
    assert explore(Search(name="s", space=SPACE, trials=30), valley) == first
    assert explore(Search(name="s", space=SPACE, trials=30, seed=2), valley) != first
    longer = explore(Search(name="s", space=SPACE, trials=40), valley)
    assert longer[:28] == first[:28], "more trials continue the same search"


def test_a_failed_run_has_no_summary_and_the_search_goes_on() -> None:
    def broken(batch: Sequence[Settings]) -> list[Mapping[str, Any] | None]:
        return [None if each["attack.rho"] > 0.7 else summary for each, summary in zip(batch, valley(batch), strict=True)]

    trials = explore(Search(name="s", space=SPACE, trials=40), broken)
    assert len(trials) == 40
    assert any(summary is None for _, summary, _ in trials)
    assert all((summary is None) == (settings["attack.rho"] > 0.7) for settings, summary, _ in trials)


def test_corners_hold_every_choice_and_both_ends() -> None:
    space = {"attack.objective": ["lookahead", "cosine", "inner"], "attack.rho": {"low": 0.1, "high": 1.0}}
    corners = Search(name="s", space=space).corners()
    assert [corner["attack.objective"] for corner in corners] == ["lookahead", "cosine", "inner"]
    assert {corner["attack.rho"] for corner in corners} == {0.1, 1.0}
    assert Search.from_json(Search(name="s", space=space, trials=7).to_json()) == Search(name="s", space=space, trials=7)


@pytest.mark.parametrize("path", sorted((Path(cli.__file__).parent / "searches").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_searches_are_valid(path: Path) -> None:
    search = read_search(path)
    assert search.corners()
    for settings in search.corners():
        assert resolve({**search.common, **settings}).name == path.stem.replace("_", "-")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected [space] to be a table with at least one key"),
        ("trials = 0\n[space]\nseed = [1]", "expected trials to be a whole number >= 1, got 0"),
        ("trials = true\n[space]\nseed = [1]", "expected trials to be a whole number >= 1, got True"),
        ("stealth-limit = -1\n[space]\nseed = [1]", "expected stealth-limit to be a number >= 0 (points), got -1"),
        ("stealth_limit = 1\n[space]\nseed = [1]", "unknown key 'stealth_limit'"),
        ("base = 'digit'\n[space]\nseed = [1]", "s.toml: base: expected a preset to be one of"),
        (
            "trails = 3\n[space]\nseed = [1]",
            "unknown key 'trails'; a search has axes, base, batch, measure, seed, set, space, stealth-limit, trials",
        ),
        ("[space]\nattack.rho = []", "expected space.attack.rho to be a list of at least one choice, or {low, high, log} with finite"),
        ("[space]\nattack.rho = 3", "low < high, and low > 0 where log is true, got 3"),
        ("[space]\nattack.rho = {low = 1.0, high = 0.5}", "got {'low': 1.0, 'high': 0.5}"),
        ("[space]\nattack.rho = {low = 0.0, high = 0.5, log = true}", "got {'low': 0.0, 'high': 0.5, 'log': True}"),
        ("[space]\nattack.rho = {low = 'a', high = 0.5}", "got {'low': 'a', 'high': 0.5}"),
        ("[space]\nattack.rho = {low = 0.1, high = inf}", "got {'low': 0.1, 'high': inf}"),
        ("[space]\nattack.rho = {low = 0.1, high = 0.5, step = 1}", "got {'low': 0.1, 'high': 0.5, 'step': 1}"),
        ("[space]\nattack.rho = {high = 0.5}", "got {'high': 0.5}"),
        ("[space", "cannot read"),
    ],
)
def test_specs_that_make_no_sense(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r".") as raised:
        read_search(path)
    assert sentence in str(raised.value)


@pytest.mark.slow
def test_a_search_end_to_end_goes_on_where_it_stopped(
    tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "worst.toml"
    spec.write_text(
        'trials = 5\nbatch = 2\n[set]\n"model.name" = "mlp"\ntwin = false\ncontrol = false\n"data.num-clients" = 12\n'
        '"schedule.burn-in-epochs" = 1\n"schedule.accumulate-rounds" = 3\n"schedule.recovery-rounds" = 1\n"attack.fire" = "schedule"\n'
        '[space]\nattack.rho = {low = 0.1, high = 1.0}\nattack.objective = ["lookahead", "cosine"]\n'
    )
    arguments = ["search", str(spec), "--transport", "inline", "-o", str(tmp_path), "-c", f"data.cache-dir='{cache_dir}'"]
    ran, original = list[str](), serve.execute_run
    monkeypatch.setattr(serve, "execute_run", lambda config, *rest: ran.append(config.name) or original(config, *rest))
    assert cli.main(arguments) == 0
    out, folder = capsys.readouterr().out, tmp_path / "worst"
    assert "the worst of 5 settings" in out
    results = (folder / "results.csv").read_text()
    assert len(ran) == 5
    assert {path.name for path in folder.glob("search.*")} == {"search.pdf", "search.png"}
    ran.clear()
    assert cli.main(arguments) == 0
    assert ran == [], "all is there"
    lost = sorted(path.parent for path in folder.glob("*/summary.json"))[:2]
    for path in lost:
        shutil.rmtree(path)
    assert cli.main(arguments) == 0
    assert len(ran) == 2
    assert without_timings((folder / "results.csv").read_text()) == without_timings(results)
    names = [path.parent.name for path in sorted(folder.glob("*/summary.json"))]
    assert len(names) == 5
    assert all(path.name in names for path in lost), "the same settings again"


def test_settings_that_contradict_each_other_are_no_result(tmp_path: Path) -> None:
    asked = list[Config]()
    batch: list[Settings] = [{"attack.norm-bound": float("inf"), "attack.trigger-scale": 0.0}, {"attack.rho": 0.5}]
    assert evaluated({}, tmp_path, batch, asked.extend) == [None, None]
    assert [config.attack.rho for config in asked] == [0.5]


def test_a_search_plays_as_many_runs_at_once_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, launched = tmp_path / "few.toml", list[dict[str, Any]]()
    spec.write_text('trials = 2\n[space]\n"attack.rho" = {low = 0.1, high = 1.0}\n')
    monkeypatch.setattr(cli, "launch", lambda keys, *_, **__: launched.append(keys) or 1)
    assert cli.main(["search", str(spec), "-o", str(tmp_path), "--parallel", "3"]) == 1
    assert [keys["ray.parallel"] for keys in launched] == [3]


def test_contradictory_settings_are_said_and_start_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "none.toml"
    spec.write_text(
        "trials = 4\n[space]\nattack.poison-ratio = {low = 0.01, high = 0.4}\n"
    )  # of 100 clients: whole numbers alone are valid
    monkeypatch.setattr(cli, "launch", lambda *_: pytest.fail("nothing can be run"))
    assert cli.main(["search", str(spec), "-o", str(tmp_path)]) == 1
    assert "4 of 4 settings contradict each other: expected attack.poison-ratio" in " ".join(capsys.readouterr().err.split())


def test_choices_of_options_are_text() -> None:
    """Optuna takes scalars alone, and a table's cell holds text."""
    search = search_of("s", {"space": {"strategy.options": [{"f": 1}, {"f": 2}]}})
    assert search.space == {"strategy.options": ['{"f": 1}', '{"f": 2}']}
    assert Search.from_json(search.to_json()).corners() == [{"strategy.options": '{"f": 1}'}, {"strategy.options": '{"f": 2}'}]


def test_infinity_travels_to_the_server_app() -> None:
    search = search_of("s", {"space": {"attack.stealth-gamma": [0.1, float("inf")]}})
    assert Search.from_json(search.to_json()).space["attack.stealth-gamma"] == [0.1, float("inf")]


def test_ranges_are_of_their_keys_type() -> None:
    trials = explore(
        Search(
            name="s",
            space={"attack.rho": {"low": 0, "high": 2}, "seed": {"low": 1, "high": 9}, "strategy.options.f": {"low": 1, "high": 3}},
            trials=5,
        ),
        lambda batch: [None] * len(batch),
    )
    assert any(settings["attack.rho"] % 1 for settings, *_ in trials)
    assert all(isinstance(settings[key], int) for settings, *_ in trials for key in ("seed", "strategy.options.f"))


MAP = """
trials = 4
batch = 2
measure = "worst-class"
[set]
"model.name" = "mlp"
twin = false
control = false
"data.num-clients" = 12
"schedule.burn-in-epochs" = 1
"schedule.accumulate-rounds" = 2
"schedule.recovery-rounds" = 0
"schedule.triggers" = 0
[axes]
strategy = ["mean", { name = "clip-before", bound = 0.5 }]
attack.malicious-fraction = [0.1, 0.4]
[space]
attack = ["sign-flip", { name = "ipm", tau = 10.0 }, { name = "accumulative", fire = "schedule", objective = "erosion", scaling = "exact", stealth-gamma = inf }, "none"]
"""


def test_a_search_with_axes_tries_every_section_in_every_case(tmp_path: Path) -> None:
    path = tmp_path / "map.toml"
    path.write_text(MAP)
    search = read_search(path)
    assert (search.total, search.at_once) == (16, 8)
    assert Search.from_json(search.to_json()).cases == search.cases
    asked: list[int] = []

    def evaluate(batch: Sequence[Settings]) -> list[Mapping[str, Any] | None]:
        asked.append(len(batch))
        worst = {"sign-flip": 50.0, "ipm": 20.0, "accumulative": 70.0, "none": 80.0}
        return [{**summary(90.0), "accuracy_by_class": {"final": [99.0, worst[each["attack.name"]]]}} for each in batch]

    trials = explore(Search.from_json(search.to_json()), evaluate)
    assert asked == [8, 8]
    for case in search.cases:
        tried = [trial for trial in trials if case.labels.items() <= trial.labels.items()]
        assert [trial.settings["attack.name"] for trial in tried] == ["sign-flip", "ipm", "accumulative", "none"]
        assert all(case.flat.items() <= trial.settings.items() for trial in tried)
    assert trials[-2].settings["attack.stealth-gamma"] == float("inf")
    assert len(search.corners()) == 16


@pytest.mark.slow
def test_a_map_has_the_least_of_each_case(tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "map.toml"
    spec.write_text(MAP)
    arguments = ["--transport", "inline", "-o", str(tmp_path), "-c", f"data.cache-dir='{cache_dir}'"]
    assert cli.main(["search", str(spec), *arguments]) == 0
    assert "least accuracy of the worst class" in " ".join(capsys.readouterr().out.split())
    folder = tmp_path / "map"
    assert {path.name for path in folder.glob("map*") if path.is_file()} == {
        "map.csv",
        "map.png",
        "map.pdf",
        "map_worst_class.png",
        "map_worst_class.pdf",
    }
    with (folder / "map.csv").open() as file:
        rows = list(csv.DictReader(file))
    runs = [json.loads(path.read_text()) for path in folder.glob("*/summary.json")]
    assert (len(rows), len(runs)) == (4, 16)
    assert min(float(row["worst_class"]) for row in rows) == pytest.approx(
        min(min(run["accuracy_by_class"]["end_of_attack"] or [100.0]) for run in runs), abs=0.01
    )
    assert all(row["settings"] == "3" and row["accuracy_by"] and float(row["clean_accuracy"]) > 50.0 for row in rows)
    assert cli.main(["report", str(folder), "--latex"]) == 0
    assert "clip-before 0.5" in (folder / "results.tex").read_text()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[space]\nattack = {low = 0.0, high = 1.0}", "expected space.attack to be a list of names and tables, got a range"),
        ("[space]\nseed = [1]\n[axes]\nseed = [1]", "expected a key to be in [axes] or in [space], got seed in both"),
        ("measure = 'loss'\n[space]\nseed = [1]", "expected measure to be accuracy or worst-class, got 'loss'"),
        ("[space]\nseed = [1]\n[axes]\nattack.rho = []", "expected axes.attack.rho to be a list of at least one value, got []"),
    ],
)
def test_maps_that_make_no_sense(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        search_of("s", tomllib.loads(text))
