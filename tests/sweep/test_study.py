"""What is read back from a study's folder, and what its figures and tables show of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from experiments import cli
from experiments.report.outputs import write_outputs
from experiments.report.tables import accuracy_matrix, worst_cases
from experiments.report.views import FROM_START, FROM_TRIGGER, round_panels
from experiments.sweep.published import Pair, agreement, beside, published_numbers
from experiments.sweep.spec import STUDIES, Cell, read_sweep
from experiments.sweep.study import Run, complete_runs, read_study, write_study
from fl_sim.config.resolve import ConfigError, resolve
from tests.support.small_study import SEEDS, accuracy_left, write_study_records


def test_a_study_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    runs = write_study_records(tmp_path, published="pang2021-table3")
    study = read_study(tmp_path)
    assert study.base == {"name": "small", "model.name": "mlp"}
    assert study.published == "pang2021-table3"
    assert complete_runs(tmp_path, study) == runs
    assert len(runs) == 12
    write_study(tmp_path, study)
    assert read_study(tmp_path) == study
    assert [list(cell.flat) for cell in read_study(tmp_path).cells] == [["strategy.name", "attack.poison-ratio", "seed"]] * 12, "in order"


def test_runs_without_a_study_are_told_apart_by_the_keys_in_which_they_differ(tmp_path: Path) -> None:
    write_study_records(tmp_path)
    (tmp_path / "study.json").unlink()
    study = read_study(tmp_path)
    assert {axis for cell in study.cells for axis in cell.labels} == {"seed", "strategy.name", "attack.poison-ratio"}
    assert study.base["model.name"] == "mlp"
    assert "strategy.name" not in study.base
    assert "output-dir" not in study.base
    one = tmp_path / study.folders[0]
    assert [cell.labels for cell in read_study(one).cells] == [{}], "a folder may be a run itself"


def test_an_incomplete_run_is_left_out(tmp_path: Path) -> None:
    runs = write_study_records(tmp_path)
    (runs[3].folder / "summary.json").unlink()
    assert complete_runs(tmp_path, read_study(tmp_path)) == [*runs[:3], *runs[4:]]


def test_curves_are_of_the_same_moments(tmp_path: Path) -> None:
    found = round_panels(write_study_records(tmp_path))
    assert found.counted == FROM_TRIGGER
    panel = found.panels["0.1"]
    curve = panel.curves["mean"]
    at = dict(zip(curve.rounds, zip(curve.mean, curve.least, curve.most, strict=True), strict=True))
    left = [accuracy_left("mean", 0.1, seed) for seed in SEEDS]
    assert at[0] == (pytest.approx(sum(left) / 2), pytest.approx(min(left)), pytest.approx(max(left))), (
        "both seeds right after their trigger"
    )
    assert at[-1] == pytest.approx((98.5, 98.5, 98.5)), "and right before it, though neither was evaluated there"
    assert at[-6] == pytest.approx((97.0, 97.0, 97.0)), "seed 2 alone starts six rounds before its trigger"
    assert [phase for phase, _, _ in panel.phases] == ["accumulate", "trigger", "recover"]
    assert panel.phases[1][1:] == (0, 0)
    assert found.panels["0"].phases == []
    assert (
        round_panels([run for run in write_study_records(tmp_path / "b") if run.cell.labels["attack.poison-ratio"] == "0"]).counted
        == FROM_START
    )


def test_worst_cases_take_the_mean_over_seeds_and_then_the_least() -> None:
    def run(strategy: str, attack: str, rho: float, seed: int, left: float) -> Run:
        flat = {"strategy.name": strategy, "attack.name": attack, "attack.rho": rho, "seed": seed}
        labels = {"strategy": strategy, "attack.name": attack, "attack.rho": str(rho), "seed": str(seed)}
        return Run(Cell(flat, labels), Path(), {"accuracy": {"after_trigger": left, "final": 0.0}})

    runs = [
        run("mean", "accumulative", 0.5, 1, 10.0), run("mean", "accumulative", 0.5, 2, 90.0),
        run("mean", "accumulative", 1.0, 1, 40.0), run("mean", "accumulative", 1.0, 2, 42.0),
        run("dgc", "accumulative", 0.5, 1, 97.0), run("mean", "ipm", 0.5, 1, 70.0),
    ]  # fmt: skip
    matrix = worst_cases(runs)
    assert matrix is not None
    assert matrix.values == {"accumulative": {"mean": [41.0], "dgc": [97.0]}, "ipm": {"mean": [70.0]}}, "10 is no worst case but one seed's"
    assert worst_cases([run._replace(cell=Cell({}, {"strategy": "mean"})) for run in runs]) is None


def test_published_numbers_stand_beside_the_runs_with_their_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [
        {"at": {"strategy": "mean", "attack.poison-ratio": "0.1"}, "accuracy": 33.0},
        {"at": {"strategy": "dgc", "attack.poison-ratio": "0.1"}, "round": 4, "accuracy": 44.0},
        {"at": {"strategy": "dgc", "attack.poison-ratio": "0.1"}, "round": 5, "accuracy": 44.0},
        {"at": {"strategy": "krum"}, "accuracy": 1.0},
    ]
    entry = {"source": "A", "setting": "B", "numbers": numbers}
    monkeypatch.setattr("experiments.sweep.published.published_numbers", lambda: {"test": entry})
    pairs = beside("test", write_study_records(tmp_path))
    assert [(pair.published, pair.ours) for pair in pairs] == [(33.0, [39.0, 38.0]), (44.0, [98.0, 98.0])], "round 5 was not evaluated"
    assert [pair.setting for pair in pairs] == ["mean · poison-ratio 0.1", "dgc · poison-ratio 0.1 · round 4"]


def test_orders_are_compared_between_neighbours_that_the_paper_tells_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    chains = {"strategy": [["mean", "clip 1", "clip 0.1"], ["mean", "linf"]], "round": [["1", "2"]]}
    monkeypatch.setattr("experiments.sweep.published.published_numbers", lambda: {"test": {"chains": chains}})

    def pair(strategy: str, published: float, *ours: float, round_: int = 1) -> Pair:
        return Pair({"strategy": strategy}, round_, published, ours)

    first = [pair("mean", 10.0, 30.0), pair("clip 1", 20.0, 20.0, 44.0), pair("clip 0.1", 30.0, 31.0), pair("linf", 10.4, 99.0)]
    second = [pair("mean", 50.0, 30.0, round_=2), pair("clip 1", 20.2, 99.0, round_=2)]
    found = agreement("test", first + second)
    # Steps: mean to clip 1 (32 over 30: same), clip 1 to 0.1 (31 under 32: other), mean to linf (not told apart); in round 2 mean to
    # clip 1 (99 over 30, published the other way); from round 1 to 2: mean (equal), clip 1 (not told apart).
    assert found == (1, 2, 1)
    assert str(found) == "same order in 1 of 4 neighbouring pairs (25 %), equal in 1, the other in 2"


@pytest.mark.parametrize("name", ["pang2021-table3", "pang2021-table6", "zhu2023-c10"])
def test_chains_and_rows_name_what_is_published(name: str) -> None:
    entry = published_numbers()[name]
    settings = [{**number["at"], **({"round": str(number["round"])} if "round" in number else {})} for number in entry["numbers"]]
    assert set(entry["rows"]) < set(settings[0])
    for axis, chains in entry["chains"].items():
        assert {value for chain in chains for value in chain} == {setting[axis] for setting in settings}
    itself = [Pair(number["at"], number.get("round"), number["accuracy"], [number["accuracy"]]) for number in entry["numbers"]]
    found = agreement(name, itself)
    assert found.other == found.equal == 0
    assert found.same >= 17


@pytest.mark.parametrize("scale", ["", "cpu", "cpu-cifar10", "ten-images", "batch-norm"])
@pytest.mark.parametrize("name", ["pang_table3", "pang_table6", "zhu_c10"])
def test_every_published_number_has_its_cell(name: str, scale: str) -> None:
    sweep = read_sweep(STUDIES / f"{name}.toml", scale)
    configs = [resolve({**sweep.common, **cell.flat}) for cell in sweep.cells]
    assert {config.data.name for config in configs} == ({"fashion-mnist"} if scale == "cpu" else {"cifar10"})
    assert {config.server.learning_rate for config in configs} == {0.1}, "the papers'"
    assert {config.attack.keep_honest for config in configs if config.attack.objective == "cosine"} == {False}, "the released code's"
    assert {config.model.name for config in configs} == {"cnn" if "cpu" in scale else "resnet18"}
    labels = [cell.labels for cell in sweep.cells]
    for number in published_numbers()[sweep.published]["numbers"]:
        found = [config for config, of in zip(configs, labels, strict=True) if number["at"].items() <= of.items()]
        assert found, number
        rounds = number.get("round")
        if rounds:
            assert all(config.schedule.accumulate_rounds >= rounds and rounds % config.evaluate.every == 0 for config in found)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("published = 'pang'\n[axes]\nseed = [1]", "expected published to be one of pang2021-table3"),
        ("scales = 3\n[axes]\nseed = [1]", "expected scales to be tables"),
        ("[axes]\nseed = [1]\n[scales.gpu]", "expected --scale to be one of gpu, got 'cpu'"),
        ("[axes]\nseed = [1]", "expected --scale to be one of none (it has no [scales]), got 'cpu'"),
        ("[axes]\nseed = [1]\n[scales.cpu]\nsets = 1", "unknown key 'scales.cpu.sets'"),
        ("set = 3\n[axes]\nseed = [1]\n[scales.cpu]", "expected [set] to be a table, got 3"),
        ("[axes]\nseed = [1]\n[scales.cpu]\naxes = 3", "expected [axes] to be a table, got 3"),
    ],
)
def test_scales_and_sources_that_are_not_there(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_sweep(tmp_path / "s.toml", "" if "published" in text else "cpu")
    assert sentence in str(caught.value)


def test_a_scale_goes_over_the_spec(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        'base = "cifar10-resnet18"\n[set]\n"server.momentum" = 0.5\n"seed" = 3\n[axes]\n"attack.rho" = [1.0]\n'
        '[scales.cpu]\nbase = "digits"\nset = { seed = 4 }\naxes = { attack.rho = [2.0] }\n'
    )
    sweep = read_sweep(tmp_path / "s.toml", "cpu")
    assert sweep.name == "s-cpu"
    config = resolve({**sweep.common, **sweep.cells[0].flat})
    assert (config.data.name, config.server.momentum, config.seed, config.attack.rho) == ("digits", 0.5, 4, 2.0)
    assert read_sweep(tmp_path / "s.toml").common["seed"] == 3


def test_report_makes_everything_anew_from_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study_records(tmp_path)
    made = write_outputs(tmp_path, read_study(tmp_path))
    assert {path.name for path in made} == {"results.csv", "accuracy.png", "matrix.png", "poison_ratio.png", "stealth.png", "report.html"}
    before = {path: path.read_bytes() for path in made}
    for path in made:
        path.unlink()
    assert cli.main(["report", str(tmp_path), "--parquet"]) == 0
    assert {path: path.read_bytes() for path in made} == before, "the same bytes"
    assert "report: " in capsys.readouterr().out
    from pyarrow import parquet

    table = parquet.read_table(tmp_path / "results.parquet")
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert table.column_names == list(rows[0])
    assert [str(value) for value in table["attack.poison-ratio"].to_pylist()] == [row["attack.poison-ratio"] for row in rows]


def test_a_report_wants_complete_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "expected DIR to be a folder with runs" in capsys.readouterr().err
    for run in write_study_records(tmp_path):
        (run.folder / "summary.json").unlink()
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "with 12 incomplete" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_infinite_bounds_are_text_in_the_record(tmp_path: Path) -> None:
    write_study_records(tmp_path)
    study = read_study(tmp_path)
    cell = Cell({"strategy.bound": float("inf")}, {"strategy.bound": "inf"})
    write_study(tmp_path, type(study)("s", {"attack.norm-bound": float("inf")}, (cell,), ("x",)))
    record = json.loads((tmp_path / "study.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["base"] == {"attack.norm-bound": "inf"}
    assert record["cells"][0]["flat"] == {"strategy.bound": "inf"}


def test_matrix_of_runs_in_which_nothing_fired(tmp_path: Path) -> None:
    runs = write_study_records(tmp_path)
    for run in runs:
        run.summary["accuracy"]["after_trigger"] = None
    matrix = accuracy_matrix(runs)
    assert "at the end" in matrix.what
    assert matrix.values["0.1"]["mean"] == [99.0, 99.0]
