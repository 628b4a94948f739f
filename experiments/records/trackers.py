"""Trackers that get the rounds of a run, on request: TensorBoard, Weights & Biases, MLflow, or the user's own."""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from fl_sim.config.keys import Config
from fl_sim.config.resolve import names_in, to_flat, to_json
from fl_sim.outside_code import OutsideCodeError, error_report, outside_call, place_of, type_and_text, with_place
from fl_sim.registry import Registry

PROJECT = "fl-sim"  # of W&B, the experiment of MLflow


class Tracker(Protocol):
    """What a name in `tracking` returns when it is called with the run's folder and its configuration (flat keys)."""

    def on_round(self, line: dict[str, Any]) -> object:
        """Called with each line of `rounds.jsonl` after it was written. A run that resumes calls it with all earlier lines first."""
        ...

    def close(self, summary: dict[str, Any]) -> object:
        """Called at the end with the content of `summary.json`, or with {} if the run was interrupted."""
        ...


class TensorBoard:
    """Events in `tensorboard/` of the run's folder: every number of a line, with its path in the line and its track as the tag."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # optional, and takes seconds to import

        self._writer: Any = SummaryWriter(str(_without_content(folder / "tensorboard")))

    def on_round(self, line: dict[str, Any]) -> None:
        """One line of `rounds.jsonl`."""
        for tag, number in _tags_of(line):
            self._writer.add_scalar(tag, number, line["round"])

    def close(self, summary: dict[str, Any]) -> None:
        """Write the remaining events."""
        self._writer.close()


class WeightsAndBiases:
    """A run of W&B in `wandb/` of the run's folder, with `round` as its axis; offline unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline means that nothing is sent
        import wandb

        _without_content(folder / "wandb")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            dir=folder,
            config=config,
            mode=os.environ.get("WANDB_MODE", "offline"),  # pyright: ignore[reportArgumentType] - typed as a Literal of the modes
            reinit="create_new",  # cells of a sweep run side by side
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="round")

    def on_round(self, line: dict[str, Any]) -> None:
        """One line of `rounds.jsonl`."""
        self._run.log({**dict(_tags_of(line)), "round": line["round"]})

    def close(self, summary: dict[str, Any]) -> None:
        """The numbers of the summary under `summary/`; a run without one is marked as failed."""
        self._run.summary.update({f"summary/{place}": number for place, number in _numbers(summary)})
        self._run.finish(exit_code=0 if summary else 1)


class MLflow:
    """A run of MLflow in `mlruns/` of the run's folder, or where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions require it
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI", "")
        self._client: Any = MlflowClient(tracking_uri=place or (folder / "mlruns").absolute().as_uri())
        experiment: Any = self._client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        for old_run in [] if place else self._client.search_runs([number]):  # of an interrupted session; its lines come again
            self._client.delete_run(old_run.info.run_id)
        self._run: str = self._client.create_run(number, run_name=folder.name).info.run_id
        params = [Param(key, str(value)) for key, value in config.items()]
        for start in range(0, len(params), 100):  # MLflow's limit per call
            self._client.log_batch(self._run, params=params[start : start + 100])

    def on_round(self, line: dict[str, Any]) -> None:
        """One line of `rounds.jsonl`."""
        self._log(_tags_of(line), line["round"])

    def close(self, summary: dict[str, Any]) -> None:
        """The numbers of the summary under `summary/`; a run without one is marked as killed."""
        self._log(((f"summary/{place}", number) for place, number in _numbers(summary)), 0)
        self._client.set_terminated(self._run, "FINISHED" if summary else "KILLED")

    def _log(self, numbers: Iterator[tuple[str, float]], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(name, number, now, step) for name, number in numbers])


TRACKERS: Mapping[str, Callable[[Path, dict[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def _none(name: str) -> str | None:
    return "" if name == "none" else None


trackers: Registry[Callable[[Path, dict[str, Any]], Tracker]] = Registry(
    "tracker", "tracking", TRACKERS, "fl_sim.trackers", extras={name: name for name in TRACKERS}, family=_none, family_names=("none",)
)


class Trackers:
    """All trackers in `tracking`. If one raises, a line says so and it is not called again: the run and its records go on."""

    def __init__(self, folder: Path, config: Config) -> None:
        """Raises what the constructor of a tracker raises (OutsideCodeError for one from outside), because nothing was computed yet."""
        keys = json.loads(to_json(to_flat(config)))
        self._open = dict[str, Tracker]()
        for name in names_in("tracking", config.tracking):
            if name != "none":
                self._open[name] = _made(name, folder, dict(keys))

    def on_round(self, line: Mapping[str, Any]) -> None:
        """Pass a line of `rounds.jsonl` to each tracker."""
        self._call_each(lambda tracker: tracker.on_round(copy.deepcopy(dict(line))))

    def close(self, summary: Mapping[str, Any]) -> None:
        """Close each tracker, once."""
        self._call_each(lambda tracker: tracker.close(copy.deepcopy(dict(summary))))
        self._open.clear()

    def _call_each(self, what: Callable[[Tracker], object]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                with outside_call(lambda error, tracker=tracker: OutsideCodeError(_words(error, tracker))):
                    what(tracker)
            except OutsideCodeError as words:  # user code, or a network error
                print(f"fl-sim: tracking = {name!r} failed and is not called again: {words}", flush=True)
                del self._open[name]


def _words(error: BaseException, tracker: Tracker) -> str:
    place = place_of(error, tracker)
    return f"{type_and_text(error)} ({place})" if place else type_and_text(error)


def _made(name: str, folder: Path, keys: dict[str, Any]) -> Tracker:
    """A new tracker. Raises what its constructor raises: OutsideCodeError for one from outside."""
    make = trackers.find(name)
    if name in TRACKERS:
        return make(folder, keys)
    with outside_call(lambda error: OutsideCodeError(f"tracking = {name!r} could not be made: {error_report(error, make)}")):
        tracker = make(folder, keys)
    if missing := [method for method in ("on_round", "close") if not callable(getattr(tracker, method, None))]:
        whose = with_place(f"tracking = {name!r}", make)
        raise OutsideCodeError(
            f"expected {whose} to return an object with on_round and close, got {type(tracker).__name__} without {missing[0]}"
        )
    return tracker


def _without_content(folder: Path) -> Path:
    """A tracker's folder, after removing the content of an interrupted session: the tracker gets every line again."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _tags_of(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, number) of every number in a line except its round. The tag is its path in the line and the track: `accuracy/attacked`."""
    return ((f"{place}/{line['track']}", number) for place, number in _numbers(line) if place != "round")


def _numbers(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """(path, number) of every number in a record, nested keys joined by `/`."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _numbers(item, f"{before}{key}/")
        elif isinstance(item, (int, float)):
            yield before + key, float(item)
