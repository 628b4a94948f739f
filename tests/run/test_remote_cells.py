"""Whole cells of a sweep inside a worker."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from clients.client_app import answer
from experiments import cli
from experiments.launch import serve as serving
from experiments.launch.remote_cell import run_remotely
from experiments.run.execute import execute_run
from fl_sim.config.keys import Config
from fl_sim.config.resolve import to_flat, to_json
from fl_sim.grid.transports import CellTransport, InlineTransport, Transport, WorkerDiedError
from tests.support.runs import fingerprint
from tests.support.small_run import LEAN

Configure = Callable[..., Config]


def test_a_remote_cell_is_the_run_and_yields_every_step(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, steps = configure(), list[tuple[str, int, str, float | None]]()
    execute_run(config, tmp_path / "plain", InlineTransport(answer), lambda *step: steps.append(step))
    monkeypatch.setattr("experiments.launch.remote_cell.INTERVAL", 0.0)
    batches = list(run_remotely(InlineTransport(answer), to_json(to_flat(config)), str(tmp_path / "remote"), str(tmp_path / "twins")))
    assert [step for batch in batches for step in batch if step[0] != "burn-in"] == [step for step in steps if step[0] != "burn-in"]
    assert len(batches) > 2
    (plain,), (remote,) = (tmp_path / "plain").iterdir(), (tmp_path / "remote").iterdir()
    assert fingerprint(remote) == fingerprint(plain)


def test_a_remote_cell_raises_what_the_run_raises(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="every client failed"):
        list(
            run_remotely(
                InlineTransport(answer),
                to_json(to_flat(configure(fault__raises=",".join(map(str, range(12)))))),
                str(tmp_path),
                str(tmp_path),
            )
        )


class DyingTransport(InlineTransport, CellTransport):
    """Its worker dies at the first `deaths` cells."""

    runs_cells = True

    def __init__(self, deaths: int) -> None:
        super().__init__(answer)
        self.deaths = deaths

    def run_cell(self, target: str, *arguments: str) -> Iterator[Any]:
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
    assert ("worker 0 died" in capsys.readouterr().err) == (deaths == 2)


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
    assert transport.runs_cells
    assert list(transport.run_cell("tests.run.test_remote_cells:talk", "hello")) == ["hello 1"]
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
