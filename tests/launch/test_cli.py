"""The command line: bad input ends with exit code 2 and one sentence a problem, before any process is started."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from experiments import cli
from experiments.launch import launch
from experiments.launch.paths import FILES
from experiments.launch.progress import display
from experiments.launch.progress.lines import ProgressLines, parse
from fl_sim.config.resolve import config_hash, resolve
from fl_sim.registry import how_to_install
from tests.support.small_run import SMALL


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Flower nor Ray may be started by these tests."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(launch, "run_in_flower", refuse)


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (["-c", "atack.rho=1.0"], ["unknown key 'atack.rho'; the nearest known key is 'attack.rho'"]),
        (["-c", "data.num-clients=many"], ["expected data.num-clients to be a whole number, got 'many'"]),
        (["-c", "strategy.bound=-1.0"], ["expected strategy.bound > 0.0, got -1.0"]),
        (["-c", "strategy.name=krumm"], ["expected strategy.name to be one of mean, clip-before, clip-after, dgc, dgc-2, signguard"]),
        (["-c", "data.name=cifar10", "-c", "data.root=/nowhere"], ["data.name = 'cifar10'", "data.root", "/nowhere"]),
        (["-c", "attack.poison-ratio=0.01", "-c", "server.clients-per-round=10"], ["attack.poison-ratio", "0.01 (0.1 clients)"]),
        (["-c", "attack.poison-ratio=1.2"], ["expected attack.poison-ratio <= 1.0, got 1.2"]),
        (["-c", "data.num-clients=5000"], ["data.num-clients", "5000"]),
        (["-c", "strategy.probe-size=5000"], ["strategy.probe-size", "5000"]),
        (["-c", "device=cuda"], ["expected device to be 'auto' or 'cpu'", "got 'cuda'"]),
        (["-c", "attack.name=acumulative"], ["expected attack.name to be one of none, accumulative", "did you mean 'accumulative'?"]),
        (["-c", "attack.name=alie"], ["expected at least 2 malicious clients", "attack.name = 'alie'", "got 1"]),
        (["-c", "strategy.name=dgc", "-c", "strategy.guard=both", "-c", "strategy.bound=inf"], ["expected a finite strategy.bound"]),
        (["-c", "attack.norm-bound=inf"], ["expected attack.trigger-scale > 0 with attack.norm-bound = inf"]),
        (["--gpus-per-worker", "nan"], ["expected ray.gpus-per-worker to be a finite number, got nan"]),
        (["-c", "seed"], ["expected KEY=VALUE, got 'seed'"]),
        (["nosuchpreset"], ["expected a preset to be one of", "digits", "nosuchpreset"]),
        (["-o", "/proc/nowhere"], ["expected output-dir to be a folder that can be written"]),
        (["-c", "sed=1", "-c", "strategy.norm=l3", "-c", "seed=-1"], ["'sed'", "strategy.norm", "expected seed >= 0, got -1"]),
        (["-c", "seed", "-c", "twin"], ["got 'seed'", "got 'twin'"]),
        (
            ["-c", "strategy.norm=l3", "-c", "attack.set-size=5000", "-c", "server.clients-per-round=200"],
            ["strategy.norm", "attack.set-size", "server.clients-per-round"],
        ),
        (
            ["-c", "attack.name=moles", "-c", "attack.confounding=77"],
            ["expected attack.confounding < 10, the number of classes of the data"],
        ),
        (["-c", "attack.name=badnets", "-c", "attack.class=0"], ["attack.class and attack.to-class (-1: class 0) to be different classes"]),
        (["-c", "attack.class=3", "-c", "attack.to-class=3"], ["attack.class and attack.to-class to be different classes, got 3 for both"]),
        (["-c", "fault.kill-round=2", "--transport", "inline"], ["expected grid.transport = 'ray' with fault.kill-round"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input(arguments: list[str], sentences: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["run", "-o", str(tmp_path / "out"), *arguments]) == 2
    captured = capsys.readouterr()
    assert all(sentence in captured.err for sentence in sentences), captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not (tmp_path / "out").exists(), "nothing half-written is left behind"


def test_images_are_not_moved_in_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("a,label\n" + "".join(f"{row},{row % 2}\n" for row in range(400)))
    keys = {"data.name": "table", "data.root": tmp_path / "all.csv", "attack.set-size": 20, "attack.surface": "images", "model.name": "mlp"}
    words = [word for key, value in keys.items() for word in ("-c", f"{key}={value}")]
    words += ["-c", f"data.cache-dir={tmp_path}", "-c", "strategy.probe-size=20"]
    assert cli.main(["run", "-o", str(tmp_path / "out"), *words]) == 2
    assert "expected a data set of images with attack.surface = 'images', got features" in " ".join(capsys.readouterr().err.split())


def test_more_classes_than_a_confusion_matrix_can_have(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("experiments.launch.preflight.CELL_MEMORY", 1e12)
    assert cli.main(["run", "-o", str(tmp_path / "out")]) == 2
    assert "for a confusion matrix), got 10" in " ".join(capsys.readouterr().err.split())


def test_an_attack_of_a_package_that_is_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fl_sim.registry.importlib.util.find_spec", lambda name: None)
    assert cli.main(["run", "-o", str(tmp_path / "out"), "-c", "attack.name=ipm"]) == 2
    assert how_to_install("byzfl") in capsys.readouterr().err


def test_a_bad_sweep_is_bad_input_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    spec = tmp_path / "s.toml"
    spec.write_text('[axes]\n"attack.rho" = [0.5, -1.0]\n')
    assert cli.main(["sweep", str(spec), "-o", str(tmp_path / "out")]) == 2
    assert "expected attack.rho >= 0.0, got -1.0" in capsys.readouterr().err


def test_a_sweep_with_two_equal_cells_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    spec = tmp_path / "s.toml"
    spec.write_text("[axes]\nseed = [1, 1]")
    assert cli.main(["sweep", str(spec), "-o", str(tmp_path / "out")]) == 2
    assert "two cells are the same run" in capsys.readouterr().err


def test_paths_are_made_absolute_because_the_run_has_another_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(cli, "launch", lambda flat, *_, **__: seen.append(flat) or 1)
    assert cli.main(["run", "-o", "out", "-c", "data.cache-dir=here"]) == 1
    assert {key: seen[0][key] for key in FILES if seen[0].get(key)} == {
        "output-dir": str(tmp_path / "out"),
        "data.root": str(tmp_path / "data"),
        "data.cache-dir": str(tmp_path / "here"),
    }


@pytest.mark.slow
def test_an_inline_run_and_sweep_end_to_end(capsys: pytest.CaptureFixture[str], tmp_path: Path, cache_dir: Path) -> None:
    options = [*SMALL, "-c", f"data.cache-dir={cache_dir}", "--transport", "inline", "-o", str(tmp_path)]
    assert cli.main(["run", *options]) == 0
    out = capsys.readouterr().out
    folder = Path(out.split("records: ")[1].splitlines()[0])
    assert (folder / "summary.json").is_file()
    assert "attacked" in out
    assert "control" in out
    changed = (folder / "summary.json").stat().st_mtime_ns
    assert cli.main(["run", *options]) == 0
    assert (folder / "summary.json").stat().st_mtime_ns == changed, "a complete run is not run again"
    spec = tmp_path / "two.toml"
    spec.write_text(
        'base = "digits"\n[axes]\n"attack.name" = ["none", "accumulative"]\nstrategy = ["mean", {name = "clip-after", bound = 1.0}]\n'
    )
    assert cli.main(["sweep", str(spec), *options]) == 0
    results = (tmp_path / "two" / "results.csv").read_text().splitlines()
    assert len(results) == 5
    assert results[0].startswith("attack.name,strategy.name,")
    assert {"accuracy.png", "matrix.png"} <= {path.name for path in (tmp_path / "two").glob("*.png")}
    assert "clip-after 1" in capsys.readouterr().out
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_bytes((folder / "config.json").read_bytes())
    (half / "rounds.jsonl").write_text('{"track": "attacked"}\n{"tra')
    assert cli.main(["list", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "6 runs, 5 complete" in out
    assert "1 so far" in out
    assert out.count("two/") == 4


def test_a_plan_names_every_cell_with_its_hash_and_runs_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, cache_dir: Path
) -> None:
    spec = tmp_path / "plan.toml"
    spec.write_text(
        'base = "digits"\n[set]\n"model.name" = "mlp"\n[axes]\n"attack.poison-ratio" = [0.0, 0.1]\nstrategy = ["mean", "dgc", {name = "clip-after", '
        'bound = 1.0}]\n[[exclude]]\nstrategy = "clip-after 1"\n"attack.poison-ratio" = 0.0\n[[exclude]]\nstrategy = "dgc"\n'
    )
    options = ["--transport", "inline", "-o", str(tmp_path / "out"), "-c", f"data.cache-dir='{cache_dir}'"]
    assert cli.main(["sweep", str(spec), "--plan", *options]) == 0
    out = capsys.readouterr().out
    assert "3 cells, 3 to run: about" in out
    assert not (tmp_path / "out").exists()
    configs = [
        resolve({"model.name": "mlp", "strategy.name": name, "attack.poison-ratio": ratio} | ({"strategy.bound": 1.0} if bound else {}))
        for name, bound, ratio in (("mean", False, 0.0), ("mean", False, 0.1), ("clip-after", True, 0.1))
    ]
    assert all(config_hash(config) in out for config in configs)


def test_list_wants_a_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["list", str(tmp_path / "nowhere")]) == 2
    assert "expected DIR to be a folder with runs" in " ".join(capsys.readouterr().err.split())


def test_a_failing_run_says_why_and_exits_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.launch import serve as serving

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(serving, "execute_run", broken)
    assert cli.main(["run", "--transport", "inline", "-o", str(tmp_path), "-c", f"data.cache-dir='{cache_dir}'"]) == 1
    assert "the disk is on fire" in capsys.readouterr().err


@pytest.mark.parametrize("pause", [0.0, math.inf])
@pytest.mark.slow
def test_a_log_file_gets_lines_of_progress(
    pause: float, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)  # with it rich takes a file for a terminal
    monkeypatch.setattr(display, "LINE_EVERY", pause)
    options = ("-o", str(tmp_path), "-c", f"data.cache-dir={cache_dir}", *SMALL)
    assert cli.main(["run", "--transport", "inline", *options]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if " rounds · " in line]
    (records,) = tmp_path.glob("*/rounds.jsonl")
    planned = len(records.read_text().splitlines())
    assert lines[-1] == f"digits · accumulative against clip-after · {planned} of {planned} rounds · {records.parent.name}, complete"
    ends = [line for line in lines if f" {planned} of {planned} rounds" in line]
    assert len(lines) == len(ends) if pause == math.inf else len(lines) > len(ends), "between the ends a line each `LINE_EVERY` seconds"


def test_progress_lines_can_be_read_back() -> None:
    import io

    stream = io.StringIO()
    lines = ProgressLines(total=5, interval=0.0, stream=stream)
    report = lines.of_run("digits-1", 4)
    report("burn-in", 1, "epoch 1/3", None)
    report("calibration", 1, "clean round 1/60", None)
    report("attacked", 1, "accumulate", 98.76)
    report("attacked", 1, "accumulate", 98.76)  # again, after a worker died
    lines.finish("digits-1", 4)
    lines.finish("digits-2", 1, "failed | for a reason")
    events = [parse("INFO : " + line) for line in stream.getvalue().splitlines()]
    assert [(event.whole, event.own, event.what) for event in events if event] == [
        ((0, 5), (0, 4), "burn-in, epoch 1/3"),
        ((0, 5), (0, 4), "calibration, round 1, clean round 1/60"),
        ((1, 5), (1, 4), "attacked, round 1, accumulate, accuracy 98.8 %"),
        ((1, 5), (1, 4), "attacked, round 1, accumulate, accuracy 98.8 %"),
        ((4, 5), (4, 4), "complete"),
        ((5, 5), (1, 1), "failed | for a reason"),
    ]
    assert parse("something else") is None
    assert parse("fl-sim | nonsense") is None
