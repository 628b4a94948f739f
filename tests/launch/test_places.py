"""Places that cannot be written, or are full: one clear error, nothing half-written, nothing lost."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from experiments.cli import main
from experiments.records.folder import is_complete, run_folder
from fl_sim.atomic_files import CannotWriteError, load_tensors, save_tensors, whole_file, write_whole
from fl_sim.config.keys import Config
from fl_sim.config.resolve import resolve
from fl_sim.data.datasets import load_dataset
from fl_sim.data.federation import load_federation
from fl_sim.model.burn_in import burn_in
from tests.support.runs import run
from tests.support.small_run import ALONE, LEAN, SETTINGS, SMALL, words

Configure = Callable[..., Config]
CALIBRATED = {**SETTINGS, **ALONE, "strategy.name": "dgc", "strategy.calibration-rounds": 10, "attack.name": "none"}

# Python ignores SIGXFSZ: a file that grows beyond the limit raises OSError, as on a full disk.
FULL = """
import resource, sys
from experiments.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("key", ["output-dir", "data.cache-dir"])
@pytest.mark.parametrize("place", ["file", "/proc", "/tmp/" + 300 * "x", "/tmp/a\0b"])
def test_a_place_that_cannot_be_written_is_named(key: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if place == "file":
        (tmp_path / "file").touch()
        place = str(tmp_path / "file")
    where = f"{place}/runs"
    assert main(["run", "digits", "--transport", "inline", "-o", str(tmp_path / "out"), *SMALL, "-c", f"{key}={where}"]) == 2
    stderr = capsys.readouterr().err
    assert f"expected {key} to be a folder that can be written, got {where!r}" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["output-dir", "data.cache-dir"])
def test_an_empty_place_is_named(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "digits", "--transport", "inline", *SMALL, "-c", f"{key}="]) == 2
    assert capsys.readouterr().err == f"error: expected {key} to be a folder that can be written, got ''\n"


@pytest.mark.parametrize("key", ["output-dir", "data.cache-dir", "data.root"])
def test_a_home_of_nobody_is_named(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "digits", *SMALL, "-c", f"{key}=~nobody-of-this-name/x"]) == 2
    assert f"expected {key} to be a path, got '~nobody-of-this-name/x'" in capsys.readouterr().err


def in_little_room(limit: int, line: list[str]) -> subprocess.CompletedProcess[str]:
    """The command in a process that can write no file of more than so many bytes; it ends with one error."""
    done = subprocess.run([sys.executable, "-c", FULL, str(limit), *line], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("could not be written: ") == 1
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.mark.slow
@pytest.mark.usefixtures("empty_figures")
@pytest.mark.parametrize(("limit", "what", "every"), [(100, ".json", 2), (5000, "rounds.jsonl", 100), (30_000, ".safetensors", 2)])
def test_a_disk_that_is_full_in_mid_run(limit: int, what: str, every: int, tmp_path: Path, cache_dir: Path) -> None:
    """Once there is room the same command ends as if nothing had been."""
    keys = {"schedule.recovery-rounds": 12, "checkpoint.every": every, "data.cache-dir": str(cache_dir), **LEAN}
    line = ["run", "digits", "--transport", "inline", *SMALL, *words(keys), "-o"]
    assert main([*line, str(tmp_path / "whole")]) == 0  # which also fills the cache
    assert what in in_little_room(limit, [*line, str(tmp_path / "full")]).stderr
    assert not any(name.endswith((".part", "summary.json")) for name in files(tmp_path / "full"))
    assert main([*line, str(tmp_path / "full")]) == 0
    assert files(tmp_path / "full") == files(tmp_path / "whole")
    (one,), (other,) = ((tmp_path / name).iterdir() for name in ("full", "whole"))
    assert (one / "final.safetensors").read_bytes() == (other / "final.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("empty_figures")
def test_a_sweep_on_a_full_disk_ends_with_one_error(tmp_path: Path, cache_dir: Path) -> None:
    spec = tmp_path / "two.toml"
    spec.write_text('base = "digits"\n[axes]\nseed = [1, 2]\n')
    keys = [*SMALL, *words({**LEAN, "data.cache-dir": str(cache_dir)})]
    line = ["sweep", str(spec), "--transport", "inline", *keys, "-o", str(tmp_path / "out")]
    load_dataset("digits", "", download=False, cache_dir=cache_dir)  # the cache has its room
    in_little_room(30_000, line)
    assert main(line) == 0
    assert sum(name.endswith("summary.json") for name in files(tmp_path / "out")) == 2


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "first")
    with suppress(ZeroDivisionError), whole_file(tmp_path / "a") as part:
        part.write_text("second")
        raise ZeroDivisionError
    assert (files(tmp_path), (tmp_path / "a").read_text()) == (["a"], "first")
    with pytest.raises(CannotWriteError, match=r"nowhere/b could not be written: No such file"):
        write_whole(tmp_path / "nowhere" / "b", "")
    with pytest.raises(CannotWriteError, match="No space left on device"), whole_file(tmp_path / "c"), Path("/dev/full").open("w") as full:
        full.write("x")
    assert files(tmp_path) == ["a"]


@pytest.mark.parametrize("bit", range(0, 8 * 400, 97))
def test_tensors_with_a_turned_bit_are_damaged(bit: int, tmp_path: Path) -> None:
    path = tmp_path / "tensors"
    held = {"theta": torch.arange(40.0), "velocity": torch.zeros(3, 4)}
    save_tensors(path, held, {"round": "7"})
    tensors, texts = load_tensors(path)
    assert texts == {"round": "7"}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in held.items())
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_tensors(path)


def test_a_damaged_burn_in_is_trained_again(configure: Configure, tmp_path: Path) -> None:
    config = configure(data__cache_dir=str(tmp_path))
    federation = load_federation(config)
    first = burn_in(config, federation, lambda *_: None)
    assert burn_in(config, federation, lambda *_: None).cached
    (path,) = (tmp_path / "burn-in").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    again = burn_in(config, federation, lambda *_: None)
    assert not again.cached
    assert torch.equal(again.theta, first.theta)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds a calibration."""
    cache = tmp_path_factory.mktemp("calibrated")
    run(resolve({**CALIBRATED, "data.cache-dir": str(cache)}), tmp_path_factory.mktemp("runs"))
    return cache


def again(calibrated: Path, tmp_path: Path) -> tuple[Config, Path]:
    """The configuration over a copy of the cache, and its calibration there."""
    shutil.copytree(calibrated, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("calibration-*/*.json")
    return resolve({**CALIBRATED, "data.cache-dir": str(tmp_path / "cache")}), path


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"record": 3', "one digit"])
@pytest.mark.slow
def test_a_damaged_calibration_is_measured_again(calibrated: Path, tmp_path: Path, content: str) -> None:
    config, path = again(calibrated, tmp_path)
    before = path.read_text()
    changed = re.sub(r"(\d)(,|\n)", lambda match: f"{(int(match[1]) + 1) % 10}{match[2]}", before, count=1)
    assert changed != before
    path.write_text(changed if content == "one digit" else content)
    run(config, tmp_path)
    assert path.read_text() == before
    assert is_complete(run_folder(tmp_path, config))


def test_a_calibration_of_another_version_is_not_read(calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = again(calibrated, tmp_path)
    path.write_text("not looked at")
    monkeypatch.setattr("strategies.calibration.VERSION", -1)
    run(config, tmp_path)
    assert len(list(path.parent.parent.glob("calibration-*/*.json"))) == 2
    assert path.read_text() == "not looked at"
