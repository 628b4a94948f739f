"""One run: burn-in, the attacked track, its clean twin and its control, records and summary."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clients.cleaning.fitted import fitted
from experiments.records.cleaning import cleaning_record
from experiments.records.folder import ResumePoint, RunRecords, is_complete, run_folder
from experiments.run.checkpoint import Checkpoint, latest_checkpoint, write_checkpoint
from experiments.run.evaluator import Evaluator
from experiments.run.history import Line, TrackHistory, TrackName, history_of
from experiments.run.phases import has_control, has_honest_trigger, is_attacked
from experiments.run.shared_twins import store_twin, stored_twin
from experiments.run.summary import summarise
from experiments.run.track import Position, RunInputs, TrackRun
from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.grid.transports import Transport
from fl_sim.model.burn_in import burn_in
from fl_sim.model.saved import final_record, named_state
from fl_sim.outside_code import settings_kept
from fl_sim.waits import ProcessError, locked
from fl_sim.wire.object_state import UnsavableError
from strategies.calibration import calibrate
from strategies.catalogue import needs_of

LOCK_WAIT = 60.0  # seconds

Progress = Callable[[str, int, str, float | None], None]  # track, round, phase, accuracy in percent


def execute_run(
    config: Config, output_dir: Path, transport: Transport, progress: Progress, max_messages: int = 0, twins: Path | None = None
) -> Path:
    """Run one configuration into `output_dir/<name>-<hash>`, from its last checkpoint if it was interrupted. Returns the folder.

    Raises ProcessError if another process writes into the folder, and ConfigError if the checkpoint is of another configuration.

    Args: transport, the workers, which outlive the run; progress, called after each round; max_messages, the most orders per wave (0: one
    per worker); twins, a folder for clean twins that other runs may use too.
    """
    folder = run_folder(output_dir, config)
    with run_lock(folder, config.data.cache_dir), settings_kept():  # a model from outside may change them
        if not is_complete(folder):  # another process may have completed it during the wait for the lock
            _Run(config, folder, transport, progress, max_messages).execute(twins)
    return folder


def execute_copied(config: Config, output_dir: Path, transport: Transport, progress: Progress, twins: Path) -> None:
    """`execute_run` into a folder that only this process knows, and that another one copies: without a lock and without trackers."""
    with settings_kept():
        _Run(config, run_folder(output_dir, config), transport, progress, max_messages=0, track=False).execute(twins)


@contextmanager
def run_lock(folder: Path, cache_dir: str | Path) -> Generator[None]:
    """Lock a run's folder for this process. It waits for up to `LOCK_WAIT`, because workers of a killed process may go on for seconds."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    with ExitStack() as stack:
        try:
            stack.enter_context(
                locked(Path(cache_dir).expanduser() / "locks" / f"{folder.name}-{name}.lock", f"writes into {folder}", LOCK_WAIT)
            )
        except ProcessError as error:
            raise ProcessError(
                f"another process has been writing into {folder} for {LOCK_WAIT:.0f} s: {error}, or use another -o DIR"
            ) from None
        yield


class _Run:
    """One run: what its tracks share, its records, and the progress callback."""

    def __init__(
        self, config: Config, folder: Path, transport: Transport, progress: Progress, max_messages: int, *, track: bool = True
    ) -> None:
        self._config, self._progress = config, progress
        start_time = time.perf_counter()
        federation = load_federation(config)
        start = burn_in(config, federation, lambda epoch, epochs: progress("burn-in", epoch, f"epoch {epoch}/{epochs}", None))
        evaluator, burn_in_end = Evaluator(config, federation, start), time.perf_counter()
        latest = latest_checkpoint(folder, config)
        self._position = latest.checkpoint.position if latest.checkpoint else None
        self._before_trigger: Position | None = None  # of the attacked track
        self._are_alike = latest.checkpoint is None  # whether it and the honest-trigger track are, up to the last round
        damaged_names = tuple(path.name for path in latest.damaged)
        size = latest.checkpoint.size if latest.checkpoint else None
        resume = ResumePoint(size, latest.path.name if latest.path else None, damaged_names)
        self._records = RunRecords(folder, config, resume, track=track)
        calibration = None
        if needs_of(config).calibration:
            calibration, record = calibrate(
                config,
                transport,
                start,
                federation,
                evaluator.model,
                max_messages=max_messages,
                progress=lambda done, rounds: progress("calibration", done, f"clean round {done}/{rounds}", None),
            )
            self._records.calibration(record)
            for warning in record["warnings"]:
                print(f"fl-sim: {folder.name}: calibration of {config.strategy.name}: {warning}", flush=True)
        calibration_end = time.perf_counter()
        cleaning = fitted(config, federation, lambda done, steps: progress("cleaning", done, f"fit {done}/{steps}", None))
        self._records.cleaning(cleaning_record(config, cleaning.tensors, federation, evaluator.model, start.theta))
        seconds = {"burn_in": round(burn_in_end - start_time, 6), "calibration": round(calibration_end - burn_in_end, 6)}
        if cleaning.digest:
            seconds["cleaning_fit"] = round(time.perf_counter() - calibration_end, 6)
        self._final = final_record(config, federation.dataset)  # now, because an outside model's file may change during the run
        self._inputs = RunInputs(config, transport, federation, start, evaluator, calibration, max_messages, seconds, cleaning)

    def execute(self, twins: Path | None) -> None:
        """Play the tracks that are not in the records yet, and complete the records."""
        config, records = self._config, self._records
        try:
            for line in records.lines():
                self._show_progress(line)
            if not self._track("attacked").is_complete:
                track = self._play("attacked")
                state = named_state(self._inputs.evaluator.model, track.theta, self._inputs.start.buffers)
                records.model(state, self._final)
            attacked = self._track("attacked")
            if config.twin and is_attacked(config) and not self._track("twin").is_complete:
                self._twin(attacked, twins)
            if has_control(config) and not self._track("control").is_complete:
                self._play("control")
            if has_honest_trigger(config) and not self._track("honest-trigger").is_complete:
                self._honest_trigger()
            records.finish(summarise(config, records.lines()).model_dump(), config)
        finally:
            records.close()

    def _twin(self, attacked: TrackHistory, twins: Path | None) -> None:
        """The clean twin: copied from another run that has stored the same one, unless it has begun here; else played, and stored."""
        folder = None if self._track("twin").lines else twins
        if folder and (lines := stored_twin(folder, self._config, attacked)):
            for line in lines:
                self._records.round(line)
                self._show_progress(line)
            return
        self._play("twin", attacked)
        if folder:
            store_twin(folder, self._config, attacked, self._track("twin").lines)

    def _honest_trigger(self) -> None:
        """The honest-trigger track. Up to the trigger it is the attacked one: if this process played that, its lines are copied and
        the track goes on from its state."""
        before = self._before_trigger
        if before is None or self._track("honest-trigger").lines:
            self._play("honest-trigger")
            return
        for line in self._track("attacked").lines[: before.round]:
            seconds = {name: value for name, value in line["seconds"].items() if name not in self._inputs.seconds}
            copied = {**line, "track": "honest-trigger", "seconds": seconds}
            self._records.round(copied)
            self._show_progress(copied)
        self._position = before._replace(track="honest-trigger")
        if self._config.checkpoint.every:
            self._write(self._position)
        self._play("honest-trigger")

    def _play(self, name: TrackName, reference: TrackHistory | None = None) -> TrackRun:
        """Play a track to its end. Each round's line goes to the records, the progress and the checkpoints."""
        position = self._position if self._position and self._position.track == name else None
        track = TrackRun(self._inputs, name, reference, position, self._track(name))
        listeners: Sequence[Callable[[Line], None]] = (
            self._records.round,
            self._show_progress,
            lambda line: self._checkpoint(track, line),
            lambda line: self._remember(track, line),
        )
        for line in track.play():
            for listener in listeners:
                listener(line)
        return track

    def _remember(self, track: TrackRun, line: Line) -> None:
        """Keep the state of the attacked track before its first trigger, for the honest-trigger track. Where members failed a trigger may
        have been lost that an honest batch would not have been."""
        if track.name != "attacked" or not has_honest_trigger(self._config):
            return
        self._are_alike = self._are_alike and line["phase"] != "trigger" and "failures" not in line
        if not self._are_alike:
            return
        try:
            self._before_trigger = track.position()
        except UnsavableError:  # then that track is played from the start
            self._before_trigger = None

    def _checkpoint(self, track: TrackRun, line: Line) -> None:
        every = self._config.checkpoint.every
        if not every or line["round"] % every or "whole_accuracy" in line:  # none is needed after a track's last round
            return
        try:
            position = track.position()
        except UnsavableError as error:  # a user's strategy may keep anything in its attributes
            print(f"fl-sim: no checkpoint of {self._config.strategy.name}: {error}", flush=True)
            return
        self._write(position)

    def _write(self, position: Position) -> None:
        checkpoint = Checkpoint(self._records.size(), position)
        write_checkpoint(self._records.folder / "checkpoint", self._config, checkpoint, self._inputs.start.buffers)

    def _show_progress(self, line: Line) -> None:
        self._progress(line["track"], line["round"], line["phase"], line.get("accuracy"))

    def _track(self, name: TrackName) -> TrackHistory:
        return history_of(self._records.lines()).get(name, TrackHistory())
