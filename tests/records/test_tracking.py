"""Trackers: what is read back from a viewer's files is what was written into the records."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.records.trackers import Trackers, trackers
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError, config_hash
from fl_sim.registry import how_to_install, offer
from tests.support.pages import examples

Configure = Callable[..., Config]
LINES: list[dict[str, Any]] = [
    {"track": "attacked", "round": 1, "phase": "accumulate", "accuracy": 90.5, "seconds": {"train": 0.25}},
    {"track": "attacked", "round": 2, "phase": "trigger", "accuracy": 12.25, "alarm": True, "seconds": {"train": 0.5}},
    {"track": "twin", "round": 1, "phase": "accumulate", "accuracy": 91.0, "seconds": {"train": 0.125}},
]
SUMMARY = {"accuracy": {"final": 12.25, "by-class": [1.0, 2.0]}, "status": "complete", "clean_twin": None}
WRITTEN = {
    ("accuracy/attacked", 1): 90.5,
    ("accuracy/attacked", 2): 12.25,
    ("alarm/attacked", 2): 1.0,
    ("accuracy/twin", 1): 91.0,
    ("seconds/train/attacked", 1): 0.25,
    ("seconds/train/attacked", 2): 0.5,
    ("seconds/train/twin", 1): 0.125,
}


def write(folder: Path, config: Config, summary: dict[str, Any]) -> None:
    """A session of a run that was interrupted, and then the whole run."""
    folder.mkdir(exist_ok=True)
    interrupted = Trackers(folder, config)
    interrupted.on_round(LINES[0])
    interrupted.close({})
    opened = Trackers(folder, config)
    for line in LINES:
        opened.on_round(line)
    opened.close(summary)
    opened.close({})  # as a run does that has ended: nothing is closed twice


def test_tensorboard(configure: Configure, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path / "run", configure(tracking="tensorboard"), SUMMARY)
    events: Any = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    assert found == WRITTEN


@pytest.mark.slow  # MLflow takes seconds to import
def test_mlflow(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = configure(tracking="mlflow", attack__rho=0.25)
    write(tmp_path / "run", config, SUMMARY)
    from mlflow.tracking import MlflowClient

    client: Any = MlflowClient(tracking_uri=(tmp_path / "run" / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("fl-sim").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["attack.rho"] == "0.25"
    found = {(name, item.step): item.value for name in run.data.metrics for item in client.get_metric_history(run.info.run_id, name)}
    assert found == WRITTEN | {("summary/accuracy/final", 0): 12.25}

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere").as_uri())
    opened = Trackers(tmp_path / "run", config)
    opened.close({})
    client = MlflowClient(tracking_uri=(tmp_path / "elsewhere").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("fl-sim").experiment_id])
    assert run.info.status == "KILLED"


@pytest.mark.slow  # W&B starts a service
def test_wandb(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    write(tmp_path / "run", configure(tracking="wandb", attack__rho=0.25), SUMMARY)
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")  # one: the interrupted session's is gone
    found, summary, config, codes = dict[tuple[str, int], float](), dict[str, Any](), dict[str, Any](), list[int]()
    for record in flushed(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row = {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
            found |= {(key, row["round"]): value for key, value in row.items() if key != "round" and not key.startswith("_")}
        elif kind == "summary":
            summary |= {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "run":
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "exit":
            codes.append(record.exit.exit_code)
    assert found == WRITTEN
    assert summary["summary/accuracy/final"] == 12.25
    assert config["attack.rho"] == 0.25
    assert codes == [0]


def flushed(path: Path) -> list[Any]:
    """The records up to the run's exit. W&B's service writes the last of them after `finish` has returned, within moments."""
    end = time.monotonic() + 30
    while not any(record.WhichOneof("record_type") == "exit" for record in wandb_records(path)):
        assert time.monotonic() < end, "W&B wrote no exit record within 30 s"
        time.sleep(0.05)
    return list(wandb_records(path))


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run of W&B: a LevelDB log after a header of 7 bytes, in blocks of 32 KiB, of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    raw, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(raw):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = int.from_bytes(raw[place + 4 : place + 6], "little"), raw[place + 6]
        if place + 7 + size > len(raw):  # not written to its end yet
            return
        whole += raw[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # all of a record, or its last part
            record: Any = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_the_tracker_of_the_page(configure: Configure, tmp_path: Path) -> None:
    code = examples("tracking.md")["accuracies.py"]
    assert len(code.splitlines()) <= 20
    (tmp_path / "accuracies.py").write_text(code)
    write(tmp_path / "run", configure(tracking=f"{tmp_path / 'accuracies.py'}:Accuracies"), SUMMARY)
    rows = (tmp_path / "run" / "accuracy.csv").read_text().splitlines()
    assert rows == ["round,track,accuracy of test", "1,attacked,90.5", "2,attacked,12.25", "1,twin,91.0"]


OWN = """import json

class Lines:
    def __init__(self, folder, config):
        self.file = open(folder / "own.txt", "w")
        print(config["seed"], file=self.file)

    def on_round(self, line):
        print(json.dumps(line), file=self.file)
        line.clear()  # it has its own copy

    def close(self, summary):
        print(json.dumps(summary), file=self.file)
        self.file.close()
"""


def test_one_of_your_own_beside_others(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    own = f"{tmp_path / 'own.py'}:Lines"
    config = configure(tracking=f"{own}, tensorboard", seed=7)
    write(tmp_path / "run", config, SUMMARY)
    written = (tmp_path / "run" / "own.txt").read_text().splitlines()
    assert written == ["7", *map(json.dumps, LINES), json.dumps(SUMMARY)]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert config_hash(config) == config_hash(configure(seed=7)), "who looks on changes no result"


def test_a_tracker_that_raises_is_left_out_and_the_others_go_on(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = list[tuple[str, Any]]()

    class Good:
        def __init__(self, folder: Path, config: dict[str, Any]) -> None: ...

        def on_round(self, line: dict[str, Any]) -> None:
            told.append(("good", line["round"]))

        def close(self, summary: dict[str, Any]) -> None:
            told.append(("good", summary))

    class Bad(Good):
        def on_round(self, line: dict[str, Any]) -> None:
            told.append(("bad", line["round"]))
            raise ConnectionError("no network")

    opened = Trackers(tmp_path, configure(tracking=f"{offer(Bad)},{offer(Good)}"))
    for line in LINES[:2]:
        opened.on_round(line)
    opened.close({})
    assert told == [("bad", 1), ("good", 1), ("good", 2), ("good", {})]
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "failed and is not called again: ConnectionError: no network" in printed
    assert f"{__file__}, line " in printed


def test_none_writes_nothing(configure: Configure, tmp_path: Path) -> None:
    opened = Trackers(tmp_path, configure())
    opened.on_round(LINES[0])
    opened.close(SUMMARY)
    assert not list(tmp_path.iterdir())


def test_each_name_is_checked(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"expected tracking to be one of tensorboard, wandb, mlflow, none, .*got 'wanbd'; did you mean 'wandb'"
    ):
        configure(tracking="tensorboard,wanbd")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("tensorboard", "wandb", "mlflow"):
        assert trackers.problem(name) == f"expected the optional package {name} with tracking = {name!r}: {how_to_install(name)}"
