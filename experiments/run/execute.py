"""One run: burn-in, the attacked track, its clean twin and its control, records and summary."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.records.folder import Continued, RunRecords, is_complete, run_folder
from experiments.run.checkpoint import Checkpoint, latest_checkpoint, write_checkpoint
from experiments.run.evaluator import Evaluator
from experiments.run.history import Line, TrackHistory, TrackName, history_of
from experiments.run.phases import has_control, is_attacked
from experiments.run.shared_twins import store_twin, stored_twin
from experiments.run.summary import summarise
from experiments.run.track import RunInputs, TrackRun
from fl_sim.atomic_files import writing
from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.grid.transports import Transport
from fl_sim.model.burn_in import burn_in
from fl_sim.model.saved import final_record, named_state
from fl_sim.wire.object_state import UnsavableError
from strategies.calibration import calibrate
from strategies.catalogue import needs_of

LOCK_WAIT = 60.0  # seconds

Progress = Callable[[str, int, str, float | None], None]  # track, round, phase, accuracy in percent


def execute_run(
    config: Config, output_dir: Path, transport: Transport, progress: Progress, max_messages: int = 0, twins: Path | None = None
) -> Path:
    """Run one configuration into `output_dir/<name>-<hash>`, from its last checkpoint if it was interrupted; the folder.

    Raises RuntimeError if another process writes into the folder, and ConfigError if the checkpoint is of another configuration.

    Args: transport, the workers, which outlive the run; progress, called after each round; max_messages, how many orders a wave
    may be split into (0: one per worker); twins, a folder for clean twins that other runs may use too.
    """
    folder = run_folder(output_dir, config)
    with run_lock(folder, Path(config.data.cache_dir).expanduser()):
        if not is_complete(folder):  # another process may have completed it while this one waited
            _Run(config, folder, transport, progress, max_messages).execute(twins)
    return folder


@contextmanager
def run_lock(folder: Path, cache_dir: Path) -> Generator[None]:
    """Hold a run's folder for this process. One that was killed may leave workers that write on for some seconds: that is waited for."""
    locks = cache_dir / "locks"
    with writing(locks):
        locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    try:
        with FileLock(locks / f"{folder.name}-{name}.lock", timeout=LOCK_WAIT):
            yield
    except Timeout:
        raise RuntimeError(f"another process has been writing into {folder} for {LOCK_WAIT:.0f} s; end it, or use another -o DIR") from None


class _Run:
    """A run under way: what its tracks share, its records, and who is told of each round."""

    def __init__(self, config: Config, folder: Path, transport: Transport, progress: Progress, max_messages: int) -> None:
        self._config, self._progress = config, progress
        began = time.perf_counter()
        federation = load_federation(config)
        start = burn_in(config, federation, lambda epoch, epochs: progress("burn-in", epoch, f"epoch {epoch}/{epochs}", None))
        evaluator, burnt = Evaluator(config, federation, start), time.perf_counter()
        latest = latest_checkpoint(folder, config)
        self._position = latest.checkpoint.position if latest.checkpoint else None
        damaged = tuple(path.name for path in latest.damaged)
        size = latest.checkpoint.size if latest.checkpoint else None
        self._records = RunRecords(folder, config, Continued(size, latest.path.name if latest.path else None, damaged))
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
        seconds = {"burn_in": round(burnt - began, 6), "calibration": round(time.perf_counter() - burnt, 6)}
        self._final = final_record(config, federation.dataset)  # now: an outside model's file may change while the run goes on
        self._inputs = RunInputs(config, transport, federation, start, evaluator, calibration, max_messages, seconds)

    def execute(self, twins: Path | None) -> None:
        """Run the tracks that are not in the records yet, and end the records."""
        config, records = self._config, self._records
        try:
            for line in records.lines():
                self._tell(line)
            if not self._track("attacked").ended:
                theta = self._play("attacked")
                state = named_state(self._inputs.evaluator.model, theta.theta, self._inputs.start.buffers)
                records.model(state, self._final)
            attacked = self._track("attacked")
            if config.twin and is_attacked(config) and not self._track("twin").ended:
                self._twin(attacked, twins)
            if has_control(config) and not self._track("control").ended:
                self._play("control")
            records.finish(summarise(config, records.lines()).model_dump(), config)
        finally:
            records.close()

    def _twin(self, attacked: TrackHistory, twins: Path | None) -> None:
        """The clean twin: another run's, if it has left the same one and this one's is not begun."""
        shared = None if self._track("twin").lines else twins
        if shared and (lines := stored_twin(shared, self._config, attacked)):
            for line in lines:
                self._records.round(line)
                self._tell(line)
            return
        self._play("twin", attacked)
        if shared:
            store_twin(shared, self._config, attacked, self._track("twin").lines)

    def _play(self, name: TrackName, reference: TrackHistory | None = None) -> TrackRun:
        """Play a track to its end, telling the records, the progress and the checkpoints of each round."""
        position = self._position if self._position and self._position.track == name else None
        track = TrackRun(self._inputs, name, reference, position, self._track(name))
        listeners: Sequence[Callable[[Line], None]] = (self._records.round, self._tell, lambda line: self._checkpoint(track, line))
        for line in track.play():
            for listener in listeners:
                listener(line)
        return track

    def _checkpoint(self, track: TrackRun, line: Line) -> None:
        every = self._config.checkpoint.every
        if not every or line["round"] % every or "whole_accuracy" in line:  # after the last round there is nothing to go on with
            return
        try:
            position = track.position()
        except UnsavableError as error:  # a strategy of the user's may keep anything
            print(f"fl-sim: no checkpoint of {self._config.strategy.name}: {error}", flush=True)
            return
        checkpoint = Checkpoint(self._records.size(), position)
        write_checkpoint(self._records.folder / "checkpoint", self._config, checkpoint, self._inputs.start.buffers)

    def _tell(self, line: Line) -> None:
        self._progress(line["track"], line["round"], line["phase"], line.get("accuracy"))

    def _track(self, name: TrackName) -> TrackHistory:
        return history_of(self._records.lines()).get(name, TrackHistory())
