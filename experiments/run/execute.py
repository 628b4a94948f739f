"""One run: burn-in, the attacked track, its clean twin and its control, records and summary."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.records.folder import RunRecords, is_complete, read_rounds, read_summary, run_folder
from experiments.report.run_figures import accuracy_figure, attack_figure, guard_figure
from experiments.run.checkpoint import Checkpoint, find_checkpoint, write_checkpoint
from experiments.run.phases import planned_rounds
from experiments.run.shared_twins import shared_twin
from experiments.run.summary import summarise
from experiments.run.track import Evaluator, Position, Progress, Track, TrackName, run_track
from fl_sim.atomic_files import writing
from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.data.sampling import malicious_clients
from fl_sim.grid.transports import Transport
from fl_sim.model.burn_in import burn_in
from strategies.calibration import calibrate

LOCK_WAIT = 60.0  # seconds


def execute_run(
    config: Config, output_dir: Path, transport: Transport, progress: Progress, orders: int = 0, twins: Path | None = None
) -> dict[str, Any]:
    """Run one configuration into `output_dir/<name>-<hash>` and return its summary; from its last checkpoint, if it was interrupted.

    Raises RuntimeError if another process writes into the folder, and ConfigError if the checkpoint is of another configuration.

    Args: transport, the workers, which outlive the run; progress, called after each round; orders, how many orders a wave
    may be split into (0: one a worker); twins, a folder for clean twins that other runs may use too.
    """
    folder = run_folder(output_dir, config)
    with run_lock(folder, Path(config.data.cache_dir).expanduser()):
        if is_complete(folder):  # while this process waited
            return read_summary(folder)
        return _execute(config, folder, transport, progress, orders, twins)


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


def _execute(config: Config, folder: Path, transport: Transport, progress: Progress, orders: int, twins: Path | None) -> dict[str, Any]:
    began = time.perf_counter()
    federation = load_federation(config)
    start = burn_in(config, federation, lambda epoch, epochs: progress("burn-in", epoch, f"epoch {epoch}/{epochs}", None))
    evaluator = Evaluator(config, federation, start)
    burnt = time.perf_counter()
    found = find_checkpoint(folder, config)
    resumed = found.checkpoint
    records = RunRecords(folder, config, found)
    tracks: dict[str, Track] = dict(resumed.done) if resumed else {}
    for line in records.kept():
        progress(line["track"], line["round"], line["phase"], line.get("accuracy"))
    earlier = resumed.seconds if resumed else 0.0
    calibration = None
    if config.strategy.name == "dgc":
        calibration, record = calibrate(
            config,
            transport=transport,
            orders=orders,
            start=start,
            federation=federation,
            model=evaluator.model,
            progress=lambda done, rounds: progress("calibration", done, f"clean round {done}/{rounds}", None),
        )
        records.calibration(record)

    def save(position: Position) -> None:
        checkpoint = Checkpoint(records.size(), time.perf_counter() - began + earlier, tracks, position)
        write_checkpoint(folder / "checkpoint", config, checkpoint, start.buffers, config.checkpoint.keep)

    def run(name: TrackName, length: int | None = None, reference: Track | None = None) -> Track:
        return run_track(
            name,
            config,
            position=resumed.position if resumed and resumed.position.track.name == name else None,
            save=save,
            transport=transport,
            orders=orders,
            start=start,
            evaluator=evaluator,
            federation=federation,
            calibration=calibration,
            records=records,
            progress=progress,
            length=length,
            reference=reference,
        )

    try:
        acts = bool(malicious_clients(config))
        attacked = tracks["attacked"] = tracks.get("attacked") or run("attacked")
        twin = tracks.get("twin")
        if config.twin and acts and not twin:
            fresh = partial(run, "twin", attacked.rounds, attacked)
            begun = resumed is not None and resumed.position.track.name == "twin"  # then its first rounds are in the records
            shared = None if begun else twins
            tracks["twin"] = twin = shared_twin(shared, config, attacked, records, progress, fresh) if shared else fresh()
        control = run("control") if config.control and acts and config.attack.name == "accumulative" else None
        total, before = time.perf_counter() - began + earlier, burnt - began
        seconds = {"total": total, "burn_in": before, "rounds": total - before}
        summary = summarise(config, evaluator.whole(start.theta), attacked, twin, control, seconds)
        with writing(folder / "*.png"):
            draw_figures(folder, config)
        assert attacked.theta is not None
        records.finish({"theta": attacked.theta, "buffers": start.buffers}, summary, config)
        return summary
    finally:
        records.close()


def draw_figures(folder: Path, config: Config) -> None:
    """`accuracy.png`, `attack.png` where there was a coalition and `guard.png` under DGC, from the records in a run's folder."""
    tracks = read_rounds(folder)
    title = f"{config.name}: {config.attack.name} against {config.strategy.name}"
    accuracy_figure(folder / "accuracy.png", tracks, title)
    if malicious_clients(config):
        attack_figure(folder / "attack.png", tracks, title, config.attack.stealth_gamma)
    if config.strategy.name == "dgc":
        guard_figure(folder / "guard.png", tracks, title)


def expected_rounds(config: Config) -> int:
    """How many rounds of all tracks a run has at most, for a progress bar."""
    acts = bool(malicious_clients(config))
    tracks = 1 + (config.twin and acts) + (config.control and acts and config.attack.name == "accumulative")
    return tracks * planned_rounds(config)
