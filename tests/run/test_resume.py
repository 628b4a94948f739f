"""A run that was interrupted goes on where it stood and ends as if nothing had been; what it goes on from is no pickle and is checked."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from clients.client_app import answer
from experiments import cli
from experiments.records.folder import run_folder
from experiments.run.checkpoint import latest_checkpoint
from experiments.run.execute import execute_run, run_lock
from experiments.run.history import TRACKS
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.grid.transports import InlineTransport
from fl_sim.wire.object_state import UnsavableError, restore_state, save_state

Configure = Callable[..., Config]


class InterruptedHereError(Exception):
    """Stands for a kill: nothing after it is executed."""


def execute(config: Config, folder: Path, until: tuple[str, int] | None = None, twins: Path | None = None) -> None:
    """Run, or be interrupted after a round of a track."""

    def progress(track: str, round_: int, phase: str, accuracy: float | None) -> None:
        if (track, round_) == until:
            raise InterruptedHereError

    if until:
        with pytest.raises(InterruptedHereError):
            execute_run(config, folder, InlineTransport(answer), progress, twins=twins)
    else:
        execute_run(config, folder, InlineTransport(answer), progress, twins=twins)


def without_timings(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_timings(item) for key, item in value.items() if key != "seconds"}
    return value


def results(folder: Path) -> tuple[bytes, list[Any], Any]:
    lines = [without_timings(json.loads(text)) for text in (folder / "rounds.jsonl").read_text().splitlines()]
    return (folder / "final.safetensors").read_bytes(), lines, without_timings(json.loads((folder / "summary.json").read_text()))


SETTINGS: dict[str, dict[str, Any]] = {
    "clip-after": {"schedule__recovery_rounds": 3},
    "dgc": {"strategy__name": "dgc", "strategy__calibration_rounds": 10, "strategy__lag": 2},
    "rollback": {"strategy__name": "mean", "monitor__action": "rollback", "monitor__drop": 0.5, "attack__stealth_gamma": float("inf")},
    "classes": {"monitor__action": "rollback", "monitor__class_drop": 1.0, "strategy__name": "mean"},
    "images": {"attack__surface": "images", "attack__pgd_steps": 2, "attack__trigger_images": "refreshed", "schedule__triggers": 2},
    "cleaning": {"cleaning__name": "filter-kd", "data__public_size": 200, "attack__surface": "images", "attack__pgd_steps": 2},
    "flwr.FedAdam": {"strategy__name": "flwr.FedAdam"},
    "flwr.FedMedian": {"strategy__name": "flwr.FedMedian"},
    "byzfl.MoNNA": {"strategy__name": "byzfl.MoNNA", "strategy__options": "f = 3"},
    "byzfl.CenteredClipping": {"strategy__name": "byzfl.CenteredClipping", "attack__malicious_fraction": 0.25},
    "foolsgold": {"strategy__name": "foolsgold", "server__clients_per_round": 9},
    "clipped-clustering": {"strategy__name": "clipped-clustering"},
    "backdoor": {
        "attack__name": "dba",
        "attack__mask_share": 0.2,
        "attack__boost": 0.0,
        "attack__every": 2,
        "schedule__accumulate_rounds": 5,
    },
    "poisonedfl": {"attack__name": "poisonedfl", "attack__every": 2, "schedule__accumulate_rounds": 5},
    "erosion": {
        "attack__objective": "erosion",
        "attack__scaling": "exact",
        "attack__retain": 1.0,
        "attack__class": 1,
        "schedule__triggers": 0,
    },
    "partial participation": {"server__clients_per_round": 6, "attack__poison_ratio": 0.5, "attack__trigger_refresh": "accumulate"},
}


MISSING = {"backdoor": ["control"], "poisonedfl": ["control"], "erosion": ["honest-trigger"]}  # no accumulation, no trigger


FAST = ("dgc", "backdoor")  # the others in `make test` only


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS])
def test_it_ends_the_same_wherever_it_was_interrupted(configure: Configure, tmp_path: Path, runs_dir: Path, name: str) -> None:
    config = configure(checkpoint__every=2, control_honest=True, **SETTINGS[name])
    execute(config, runs_dir)
    expected = results(run_folder(runs_dir, config))
    rounds = [(line["track"], line["round"]) for line in expected[1]]
    assert {track for track, _ in rounds} == set(TRACKS) - set(MISSING.get(name, ()))
    # Rounds of the attacked track that the honest-trigger track has from it; the state after them is saved on its own.
    alike = next((i for i, line in enumerate(expected[1]) if line["phase"] == "trigger" or "failures" in line), 0)

    def is_saved(track: str, round_: int) -> bool:
        return round_ == alike or (round_ > alike and round_ % 2 == 0) if track == "honest-trigger" and alike else round_ % 2 == 0

    for number in random.Random(name).sample(range(len(rounds)), 3):  # others for each name
        folder = tmp_path / str(number)
        execute(config, folder, rounds[number])
        latest = latest_checkpoint(run_folder(folder, config), config)
        last = {track: max(round_ for name, round_ in rounds if name == track) for track, _ in rounds}
        due = [i for i, (track, round_) in enumerate(rounds) if is_saved(track, round_) and round_ < last[track] and i < number]
        assert (latest.path is not None) == bool(due)
        if latest.checkpoint:
            position = latest.checkpoint.position
            assert rounds.index((position.track, position.round)) == due[-1]
        execute(config, folder)
        assert results(run_folder(folder, config)) == expected
        meta = json.loads((run_folder(folder, config) / "meta.json").read_text())
        assert meta["sessions"][-1]["resumed_from"] == (latest.path.name if latest.path else None)


@pytest.mark.slow
def test_interrupted_again_and_again(configure: Configure, tmp_path: Path, runs_dir: Path) -> None:
    config = configure(checkpoint__every=1, tracking="tensorboard", schedule__accumulate_rounds=2, schedule__recovery_rounds=1)
    execute(config, runs_dir)
    expected = results(run_folder(runs_dir, config))
    for line in expected[1]:
        execute(config, tmp_path / "often", (line["track"], line["round"]))
    execute(config, tmp_path / "often")
    folder = run_folder(tmp_path / "often", config)
    assert results(folder) == expected
    assert len(list((folder / "tensorboard").iterdir())) == 1, "written anew from the records that stayed"
    meta = json.loads((folder / "meta.json").read_text())
    begun = [session["resumed_from"] for session in meta["sessions"]]
    assert begun[:2] == [None, "attacked-000001.safetensors"], "the round that was interrupted first was not saved: the run began anew"
    assert all(begun[1:]), "and never again"
    assert begun[-1].startswith("control-")
    assert len(begun) == len(expected[1])


def test_a_twin_that_was_shared_is_not_run_again(configure: Configure, tmp_path: Path) -> None:
    config = configure(checkpoint__every=1)
    execute(config, tmp_path / "whole", twins=tmp_path / "twins")
    expected = results(run_folder(tmp_path / "whole", config))
    execute(config, tmp_path / "own", ("twin", 3))  # in a twin of its own; meanwhile another cell has shared the same
    execute(config, tmp_path / "own", twins=tmp_path / "twins")
    assert results(run_folder(tmp_path / "own", config)) == expected
    for until in (("twin", 2), ("control", 2)):
        execute(config, tmp_path / until[0], until, twins=tmp_path / "twins")
        execute(config, tmp_path / until[0], twins=tmp_path / "twins")
        assert results(run_folder(tmp_path / until[0], config)) == expected


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty"])
def test_a_damaged_checkpoint_is_passed_over(configure: Configure, tmp_path: Path, runs_dir: Path, damage: str) -> None:
    config = configure(checkpoint__every=1)
    execute(config, runs_dir)
    execute(config, tmp_path / "run", ("twin", 3))
    folder = run_folder(tmp_path / "run", config)
    newest = folder / "checkpoint" / "twin-000002.safetensors"
    latest = latest_checkpoint(folder, config)
    assert latest.path == newest, "the round that was interrupted was not saved"
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[-5] ^= 1
    elif damage == "text":
        content = bytearray(bytes(content).replace(b"0.7", b"0.8", 1))
    else:
        content.clear()
    newest.write_bytes(content)
    latest = latest_checkpoint(folder, config)
    assert latest.path
    assert latest.path.name == "twin-000001.safetensors"
    execute(config, tmp_path / "run")
    assert results(folder) == results(run_folder(runs_dir, config))
    last = json.loads((folder / "meta.json").read_text())["sessions"][-1]
    assert (last["resumed_from"], last["damaged"]) == ("twin-000001.safetensors", ["twin-000002.safetensors"])


def test_without_a_whole_checkpoint_a_run_begins_anew(configure: Configure, tmp_path: Path, runs_dir: Path) -> None:
    config = configure(checkpoint__every=2)
    execute(config, runs_dir)
    execute(config, tmp_path / "run", ("attacked", 3))
    folder = run_folder(tmp_path / "run", config)
    for path in (folder / "checkpoint").iterdir():
        path.write_bytes(b"")
    execute(config, tmp_path / "run")
    assert json.loads((folder / "meta.json").read_text())["sessions"][-1]["damaged"] == ["attacked-000002.safetensors"]
    assert results(folder) == results(run_folder(runs_dir, config))


@pytest.mark.parametrize("left", [None, 10])
def test_rounds_that_are_not_there_are_not_gone_on_from(configure: Configure, tmp_path: Path, runs_dir: Path, left: int | None) -> None:
    config = configure(checkpoint__every=1)
    execute(config, runs_dir)
    execute(config, tmp_path / "run", ("attacked", 4))
    rounds = run_folder(tmp_path / "run", config) / "rounds.jsonl"
    rounds.unlink() if left is None else rounds.write_bytes(rounds.read_bytes()[:left])
    execute(config, tmp_path / "run")
    assert results(rounds.parent) == results(run_folder(runs_dir, config))


def test_a_checkpoint_of_another_configuration_is_refused(configure: Configure, tmp_path: Path) -> None:
    config, other = configure(checkpoint__every=1), configure(checkpoint__every=1, attack__rho=0.9, seed=5)
    execute(config, tmp_path, ("attacked", 3))
    run_folder(tmp_path, config).rename(run_folder(tmp_path, other))
    with pytest.raises(ConfigError) as caught:
        execute(other, tmp_path)
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["attack.rho = 0.7 there, 0.9 here", "seed = 1 there, 5 here"]
    assert (run_folder(tmp_path, other) / "rounds.jsonl").exists(), "nothing is lost"


class Memory:
    """An object with everything that a strategy may keep."""

    def __init__(self) -> None:
        self.text, self.nothing, self.number, self.infinite = "a", None, 0.1, float("inf")
        self.arrays = {"m": np.arange(3, dtype=np.float32), 2: [torch.ones(2), (1, True)]}
        self.scalar, self.function, self.inner = np.float64(0.25), len, None


def test_objects_take_back_what_they_remembered() -> None:
    first, second = Memory(), Memory()
    first.inner, second.inner = Memory(), Memory()  # pyright: ignore[reportAttributeAccessIssue]
    first.inner.text, first.number, first.arrays["m"][1] = "b", 1 / 3, 7.0  # pyright: ignore
    state = save_state(first)
    first.arrays["m"][1] = 9.0  # pyright: ignore
    state = type(state)(json.loads(json.dumps(state.json, allow_nan=False)), state.tensors)
    assert restore_state(state, second) is second
    assert (second.inner.text, second.text, second.number, second.infinite) == ("b", "a", 1 / 3, float("inf"))  # pyright: ignore
    np.testing.assert_array_equal(second.arrays["m"], [0.0, 7.0, 2.0])
    assert second.arrays["m"].dtype == np.float32  # pyright: ignore
    assert torch.equal(second.arrays[2][0], torch.ones(2))  # pyright: ignore
    assert second.arrays[2][1] == (1, True)  # pyright: ignore
    assert second.scalar == 0.25
    assert isinstance(second.scalar, np.float64)
    assert second.function is len


UNSAVABLE = [
    random.Random(1), torch.nn.Linear(1, 1), {1, 2}, open, object(), np.array(["a"]), np.array([{}]), defaultdict(int), Enum("E", ["A"]).A,  # type: ignore[attr-defined]
    {np.int64(1): 1}, np.random.default_rng(1), torch.device("cpu"),
]  # fmt: skip


@pytest.mark.parametrize("value", UNSAVABLE, ids=lambda value: type(value).__name__)
def test_what_cannot_be_saved_is_said_and_not_forgotten(value: Any) -> None:
    if value is open:
        itself: list[Any] = []
        itself.append(itself)
        value = itself
    with pytest.raises(UnsavableError, match="kept"):
        save_state({"kept": value})


@pytest.mark.slow
def test_the_command_says_where_a_run_stands(
    configure: Configure, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = {
        "name": "test", "data.num-clients": 12, "data.cache-dir": str(cache_dir), "model.name": "mlp", "client.block": 4, "attack.fire": "schedule",
        "attack.malicious-fraction": 0.17, "schedule.burn-in-epochs": 2, "schedule.accumulate-rounds": 3, "schedule.recovery-rounds": 2,
        "checkpoint.every": 1,
    }  # fmt: skip
    preset = tmp_path / "test.toml"
    preset.write_text("".join(f'"{key}" = {json.dumps(value)}\n' for key, value in flat.items()))
    command = ["run", str(preset), "--transport", "inline", "-o", str(tmp_path), "--resume"]
    assert cli.main(command) == 2
    assert "expected an interrupted run with a checkpoint" in " ".join(capsys.readouterr().err.split())
    config = configure(checkpoint__every=1)
    execute(config, tmp_path, ("twin", 3))
    (run_folder(tmp_path, config) / "checkpoint" / "twin-000002.safetensors").write_bytes(b"")
    assert cli.main([*command, "-c", "attack.rho=0.9"]) == 2
    assert "attack.rho = 0.7 there, 0.9 here" in " ".join(capsys.readouterr().err.split())
    assert cli.main(command) == 0
    stderr = " ".join(capsys.readouterr().err.split())
    assert f"{run_folder(tmp_path, config).name} goes on after round 1 of the twin track" in stderr
    assert "warning: twin-000002.safetensors is damaged" in stderr
    assert cli.main(command) == 0
    assert "already complete" in capsys.readouterr().err


def test_two_runs_do_not_write_into_one_folder(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure()
    monkeypatch.setattr("experiments.run.execute.LOCK_WAIT", 0.1)
    with (
        run_lock(run_folder(tmp_path, config), Path(config.data.cache_dir)),
        pytest.raises(RuntimeError, match="another process has been writing into"),
    ):
        execute(config, tmp_path)
    execute(config, tmp_path)
    before = (run_folder(tmp_path, config) / "rounds.jsonl").stat().st_mtime_ns
    execute(config, tmp_path)
    assert (run_folder(tmp_path, config) / "rounds.jsonl").stat().st_mtime_ns == before, "complete while this one waited: nothing to do"


def test_places_that_look_alike_are_kept_apart() -> None:
    value = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1), 1: torch.full((1,), 2.0), "1": torch.full((1,), 3.0)}
    back = restore_state(save_state(value))
    assert [float(item) for item in (back["a"]["b"], back["a.b"], back[1], back["1"])] == [0.0, 1.0, 2.0, 3.0]
    assert list(back) == list(value)


class Point(NamedTuple):
    x: int


@pytest.mark.parametrize("late", [Memory(), Point(1), [Memory()]])
def test_what_was_not_there_when_its_holder_was_made_is_refused(late: Any) -> None:
    holder = Memory()
    holder.inner = late
    with pytest.raises(UnsavableError, match="cannot be restored: a new object of its holder has none"):
        restore_state(save_state(holder), Memory())
