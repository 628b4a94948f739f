"""Whole cells of a sweep inside a worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from clients.client_app import answer
from experiments import cli
from experiments.launch import serve as serving
from experiments.launch.remote_cell import PREFIX, Step, pieces_of, run_remotely, temporary_folder
from experiments.records import copies
from experiments.records.copies import Changes, Piece, continuation, copy_run
from experiments.records.folder import run_folder
from experiments.run.execute import Progress, execute_run
from fl_sim.config.keys import Config
from fl_sim.config.resolve import to_flat, to_json
from fl_sim.grid.transports import SCRATCH, CellTransport, InlineTransport, Transport, WorkerDiedError
from fl_sim.waits import ProcessError
from tests.support.runs import fingerprint
from tests.support.small_run import LEAN

Configure = Callable[..., Config]


def remote(
    config: Config, output_dir: Path, progress: Progress = lambda *_: None, *, lost_after: int = 0, files: Sequence[Piece] = ()
) -> list[Piece]:
    """A remote cell in this process, and its copy. Returns the pieces. The worker is lost after that many pieces of checkpoints."""
    folder, pieces = run_folder(output_dir, config), list[Piece]()
    earlier = continuation(output_dir, folder)

    def noted() -> Iterator[Piece]:
        with closing(run_remotely(InlineTransport(answer), to_json(to_flat(config)), folder.name, [*earlier, *files])) as stream:
            for piece in pieces_of(stream, progress):
                pieces.append(piece)
                yield piece
                if lost_after and sum("/checkpoint/" in piece.path for piece in pieces) >= lost_after:
                    raise WorkerDiedError("lost")

    copy_run(output_dir, folder, config, continues=bool(earlier), pieces=noted())
    return pieces


def content(folder: Path) -> dict[str, Any]:
    """The files of a run but for times: other files by their bytes, checkpoints (they have the size of the lines so far) by their names."""
    files: dict[str, Any] = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    summary, meta = json.loads(files.pop("summary.json")), json.loads(files.pop("meta.json"))
    del summary["seconds"], files["rounds.jsonl"]
    times = [[session.pop("started") for session in meta["sessions"]], meta.pop("started"), meta.pop("finished")]
    assert all(times)
    files |= {name: b"" for name in files if name.startswith("checkpoint")}
    return {**files, "lines": fingerprint(folder)[1], "summary": summary, "meta": meta}


def test_a_remote_cell_is_the_run_and_yields_every_step(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, steps, copied = configure(), list[Step](), list[Step]()
    execute_run(config, tmp_path / "plain", InlineTransport(answer), lambda *step: steps.append(step))
    monkeypatch.setattr("experiments.launch.remote_cell.INTERVAL", 0.0)
    pieces = remote(config, tmp_path / "copy", lambda *step: copied.append(step))
    assert [step for step in copied if step[0] != "burn-in"] == [step for step in steps if step[0] != "burn-in"]
    rounds = [piece for piece in pieces if piece.path.endswith("rounds.jsonl")]
    assert len(rounds) > 2, "lines are sent while the run goes on"
    (plain,), (copy,) = (tmp_path / "plain").iterdir(), (tmp_path / "copy").glob("test-*")
    assert content(copy) == content(plain)
    assert pieces[-1].path == f"{copy.name}/summary.json"
    assert (tmp_path / "copy" / ".twins").is_dir()


def test_a_remote_cell_raises_what_the_run_raises(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="every client failed"):
        remote(configure(fault__raises=",".join(map(str, range(12)))), tmp_path)
    assert not list(tmp_path.glob("*/summary.json"))


def test_a_lost_cell_goes_on_from_the_checkpoint_that_arrived(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.launch.remote_cell.INTERVAL", 0.0)
    monkeypatch.setattr(copies, "PIECE", 1000)  # so that a checkpoint has several pieces
    config = configure(checkpoint__every=1, twin=False, control=False, schedule__accumulate_rounds=6)
    execute_run(config, tmp_path / "plain", InlineTransport(answer), lambda *_: None)
    (plain,) = (tmp_path / "plain").iterdir()
    folder = run_folder(tmp_path / "copy", config)
    with pytest.raises(WorkerDiedError):
        remote(config, tmp_path / "copy", lost_after=300)
    assert not list(folder.rglob("*.part")), "a file that did not arrive whole is not there"
    arrived = {path.name for path in (folder / "checkpoint").iterdir()}
    assert arrived
    assert not (folder / "summary.json").exists()
    remote(config, tmp_path / "copy")
    resumed = json.loads((folder / "meta.json").read_bytes())["sessions"][1]["resumed_from"]
    assert resumed in arrived
    whole, copy = content(plain), content(folder)
    del whole["meta"], copy["meta"]  # it has the sessions
    assert copy == whole


def test_a_remote_cell_begins_anew_without_a_checkpoint_that_can_be_used(configure: Configure, tmp_path: Path) -> None:
    config = configure(checkpoint__every=1)
    execute_run(config, tmp_path / "plain", InlineTransport(answer), lambda *_: None)
    (plain,) = (tmp_path / "plain").iterdir()
    folder = run_folder(tmp_path / "copy", config)
    (folder / "checkpoint").mkdir(parents=True)
    for name in ("failure.txt", "rounds.jsonl", "checkpoint/attacked-000099.safetensors"):
        (folder / name).write_text("damaged\n")
    remote(config, tmp_path / "copy")
    whole, copy = content(plain), content(folder)
    assert copy["meta"]["sessions"][0].pop("damaged") == ["attacked-000099.safetensors"]
    assert whole["meta"]["sessions"][0].pop("damaged") == []
    assert copy == whole


def test_a_remote_cell_copies_the_twin_that_it_is_sent(configure: Configure, tmp_path: Path) -> None:
    config = configure()
    twins = [piece for piece in remote(config, tmp_path / "first") if piece.path.startswith(".twins")]
    assert len(twins) == 1
    lines = (twins[0].content or b"").splitlines()
    marked = b"".join(json.dumps({**json.loads(line), "copied": True}).encode() + b"\n" for line in lines)
    remote(config, tmp_path / "second", files=[Piece(twins[0].path, marked)])
    (folder,) = (tmp_path / "second").glob("test-*")
    assert [line.get("copied", False) for line in fingerprint(folder)[1] if line["track"] == "twin"] == [True] * len(lines)


def test_a_node_with_other_data_refuses_a_cell(configure: Configure, tmp_path: Path) -> None:
    stream = run_remotely(InlineTransport(answer), to_json(to_flat(configure())), "test-0123456789ab", [])
    with pytest.raises(ProcessError, match="to make the run test-0123456789ab, got test-"):
        list(stream)


def test_trackers_get_the_lines_where_the_copy_is(configure: Configure, tmp_path: Path) -> None:
    tracker = tmp_path / "own.py"
    tracker.write_text(
        "class Names:\n"
        "    def __init__(self, folder, config):\n        self.file = open(folder / 'own.txt', 'w')\n"
        "    def on_round(self, line):\n        print(line['track'], line['round'], file=self.file)\n"
        "    def close(self, summary):\n        print(len(summary), file=self.file)\n        self.file.close()\n"
    )
    config = configure(tracking=f"{tracker}:Names")
    execute_run(config, tmp_path / "plain", InlineTransport(answer), lambda *_: None)
    remote(config, tmp_path / "copy")
    (plain,), (copy,) = (tmp_path / "plain").iterdir(), (tmp_path / "copy").glob("test-*")
    assert content(copy) == content(plain)
    assert len((copy / "own.txt").read_text().splitlines()) == len(fingerprint(copy)[1]) + 1


def test_a_checkpoint_is_sent_after_its_lines_and_only_whole_lines_are(tmp_path: Path) -> None:
    folder = tmp_path / "run-1"
    changes = Changes(tmp_path, folder.name, [])
    (folder / "checkpoint").mkdir(parents=True)
    assert list(changes.pieces()) == []
    (folder / "config.json").write_text("{}")
    (folder / "rounds.jsonl").write_text("1\n2")
    (folder / "checkpoint" / "a").write_text("a")
    (folder / ".b.part").write_text("b")
    (folder / "summary.json").write_text("{}")
    paths = [f"run-1/{name}" for name in ("rounds.jsonl", "checkpoint/a", "config.json", "summary.json")]
    assert list(changes.pieces()) == [Piece(paths[0], b"1\n"), Piece(paths[1], b"a"), Piece(paths[2], b"{}")]
    assert list(changes.pieces()) == []
    with (folder / "rounds.jsonl").open("a") as file:
        file.write("\n3\n")
    (folder / "checkpoint" / "a").unlink()
    assert list(changes.pieces(ended=True)) == [Piece(paths[0], b"2\n3\n", added=True), Piece(paths[3], b"{}"), Piece(paths[1], None)]


def test_what_a_killed_worker_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCRATCH, str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    old, living = tmp_path / f"{PREFIX}{ended.pid}-a", tmp_path / f"{PREFIX}{os.getppid()}-a"
    for folder in (old, living):
        folder.mkdir()
    with temporary_folder() as mine:
        assert set(tmp_path.iterdir()) == {living, mine}
    assert set(tmp_path.iterdir()) == {living}


class DyingTransport(InlineTransport, CellTransport):
    """Its worker dies at the first `deaths` cells."""

    def __init__(self, deaths: int) -> None:
        super().__init__(answer)
        self.deaths = deaths

    def run_cell(self, target: str, *arguments: Any) -> Generator[Any]:
        assert target == serving.REMOTE_CELL
        if self.deaths:
            self.deaths -= 1
            raise WorkerDiedError("worker 0 died")
        yield from run_remotely(InlineTransport(answer), *arguments)


@pytest.mark.parametrize("deaths", [1, 2])
@pytest.mark.slow
def test_a_cell_whose_worker_died_is_run_once_more(
    deaths: int, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "open_transport", lambda *_: DyingTransport(deaths))
    spec = tmp_path / "two.toml"
    spec.write_text('base = "digits"\n[axes]\nseed = [1, 2]\n')
    small = [
        "model.name='mlp'", "data.num-clients=12", f"data.cache-dir='{cache_dir}'", "schedule.burn-in-epochs=0", "attack.name='none'",
        "schedule.accumulate-rounds=2", "schedule.recovery-rounds=0",
    ]  # fmt: skip
    options = [part for key in small for part in ("-c", key)]
    code = cli.main(["sweep", str(spec), "--transport", "inline", "-o", str(tmp_path), *options])
    assert code == (0 if deaths == 1 else 1)
    assert len(list((tmp_path / "two").glob("*/summary.json"))) == (2 if deaths == 1 else 1)
    err = " ".join(capsys.readouterr().err.split())
    assert "worker 0 died; two-" in err
    assert "is run once more" in err
    assert ("WorkerDiedError: worker 0 died" in err) == (deaths == 2)


def talk(transport: Transport, word: str) -> Generator[str]:
    """In place of a cell: yields a word, then does what it says."""
    yield f"{word} {transport.num_workers}"
    if word == "die":
        os._exit(1)
    if word == "raise":
        raise LookupError("nowhere")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_ray_workers_run_a_cell_raise_and_die_and_run_another() -> None:
    from fl_sim.grid.ray_workers import RayTransport

    transport = RayTransport(serving.WORKER, 1, 0.0)
    assert list(transport.run_cell("tests.run.test_remote_cells:talk", "hello")) == ["hello 1"]
    transport.run_cell("tests.run.test_remote_cells:talk", "hello").close()  # the worker ends, another is started
    for word, error in (("raise", LookupError), ("die", WorkerDiedError), ("raise", LookupError)):
        with pytest.raises(error):
            list(transport.run_cell("tests.run.test_remote_cells:talk", word))
    assert list(transport.run_cell("tests.run.test_remote_cells:talk", "again")) == ["again 1"]
    transport.close()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here", "empty_figures")
def test_a_sweep_over_ray_runs_whole_cells_in_workers_and_names_those_that_fail(
    tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "four.toml"
    spec.write_text('base = "digits"\n[axes]\nseed = [1, 2]\n"fault.raises" = ["", "0,1,2,3,4,5,6,7,8,9,10,11,12"]\n')
    keys: dict[str, Any] = {
        "data.num-clients": 13, "client.block": 3, "data.cache-dir": str(cache_dir), "attack.malicious-fraction": 0.16, "model.name": "mlp",
        "attack.fire": "schedule", "schedule.burn-in-epochs": 1, "schedule.accumulate-rounds": 3, "schedule.recovery-rounds": 1, **LEAN,
    }  # fmt: skip

    def sweep(folder: str, *more: str) -> dict[str, Any]:
        options: Sequence[str] = [part for key, value in keys.items() for part in ("-c", f"{key}={json.dumps(value)}")]
        assert cli.main(["sweep", str(spec), "-o", str(tmp_path / folder), *options, *more]) == 1
        assert "every client failed" in " ".join(capsys.readouterr().err.split())
        return {path.parent.name: fingerprint(path.parent) for path in (tmp_path / folder).glob("*/*/summary.json")}

    over_ray, inline = sweep("ray", "--workers", "2"), sweep("inline", "--transport", "inline")
    assert len(inline) == 2
    assert over_ray == inline
    lines = next((tmp_path / "ray").glob("*/*/summary.json")).with_name("rounds.jsonl").read_text().splitlines()
    assert {json.loads(line)["seconds"]["waves"] for line in lines} == {1}, "over messages two workers need two waves under attack"


class FourWorkers(DyingTransport):
    """As a cluster of four, as far as the ServerApp asks."""

    @property
    def num_workers(self) -> int:
        return 4


@pytest.mark.parametrize(
    ("cells", "parallel", "expected"), [(4, 0, "remote"), (5, 0, "remote"), (4, 2, 2), (2, 0, 2), (4, 1, 4), (1, 0, 4)]
)
def test_workers_are_shared_among_the_cells_that_run_at_once(
    cells: int, parallel: int, expected: str | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = set[str | int]()

    def note(config: Config, output_dir: Path, transport: Transport, report: Any, max_messages: int, twins: Path | None) -> None:
        ways.add(max_messages)
        assert (twins is None) == (cells == 1)
        folder = serving.run_folder(output_dir, config)
        folder.mkdir(parents=True)
        (folder / "rounds.jsonl").touch()

    monkeypatch.setattr(serving, "open_transport", lambda *_: FourWorkers(0))
    monkeypatch.setattr(serving, "execute_run", note)
    monkeypatch.setattr(serving._Cells, "_run_remotely", lambda *_: ways.add("remote") or (_ for _ in ()).throw(RuntimeError("remote")))
    seeds = json.dumps([{"seed": seed} for seed in range(cells)])
    flat = {"output-dir": str(tmp_path), "cells": seeds, "ray.parallel": parallel, "model.name": "mlp"}
    if expected == "remote":
        with pytest.raises(RuntimeError, match="remote"):
            serving.serve(flat, None)
    else:
        serving.serve(flat, None)
    assert ways == {expected}
