"""DGC's thresholds, fit_calibration to clean rounds after the burn-in. The model of these rounds is discarded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fl_sim.atomic_files import write_whole
from fl_sim.config.keys import Config
from fl_sim.data.federation import Federation
from fl_sim.data.sampling import sample_clients
from fl_sim.grid.grid import ClientGrid, RoundResult, play_round
from fl_sim.grid.transports import Transport
from fl_sim.model.burn_in import StartModel, cache_key
from fl_sim.model.flat_model import FlatModel
from fl_sim.waits import locked
from strategies.catalogue import build_strategy
from strategies.dgc.thresholds import Calibration, Threshold, fit_calibration, upper_quartile
from strategies.dgc2.defence import first_memory
from strategies.dgc2.levels import Levels, bound_of, fit_levels, laxness, no_limits
from strategies.dgc2.persistence import no_pushes, persistence
from strategies.rule_strategy import RuleStrategy
from strategies.server_sgd import ServerState

VERSION = 7  # of the calibration's method; caches of other versions are ignored
# The rounds of a calibration are numbered from here. So their samples differ from those of the run's rounds, and so do their batches,
# except for clients whose share is no larger than a batch.
FIRST = 1_000_000
DEPENDS_ON = ("client.", "server.", "strategy.", "fault.")
LEAST_RISE = 0.02  # the largest clean rise counts as at least this share of the burnt-in probe loss: it may have been 0 by luck
SCORES: tuple[str, ...] = ("history", "fixed", "rise", "fragility")


def calibrate(
    config: Config,
    transport: Transport,
    start: StartModel,
    federation: Federation,
    model: FlatModel,
    *,
    max_messages: int,
    progress: Callable[[int, int], None],
) -> tuple[Calibration | Levels, dict[str, Any]]:
    """Thresholds for `strategy.guard`, or the levels of dgc-2, and the record of their calibration.

    `strategy.calibration-rounds` rounds of the federation from the burnt-in model, with every client honest and nothing refused. Then a
    rehearsed probation, and as many rounds after it: when the clip ends, the model catches up in a few large steps, and these must not
    count as an alarm. Then the model is discarded: the run starts from the burnt-in model, as with any other strategy. Cached like the
    burn-in.
    """
    folder = Path(config.data.cache_dir).expanduser() / f"calibration-{VERSION}"
    path = folder / f"{cache_key(config, federation, DEPENDS_ON)}.json"
    if not (record := _load(path)):
        with locked(path.with_suffix(".lock"), "measures the same calibration") as alive:  # cells of a sweep share it

            def on_round(done: int, rounds: int) -> None:
                alive()
                progress(done, rounds)

            if not (record := _load(path)):
                grid = ClientGrid(transport, config, start.buffers, max_messages=max_messages)
                measure = _measure_levels if config.strategy.name == "dgc-2" else _measure
                record = measure(config, grid, start, federation, model, on_round)
                write_whole(path, json.dumps({"record": record, "sha256": _digest(record)}, indent=2) + "\n")
    if config.strategy.name == "dgc-2":
        levels = fit_levels(record, config.data.num_clients, config.strategy)
        names = ("cuts", "most-pushed", "most-pushed-early", "turnout", "usual-losses", "usual-accuracies", "most-risen", "most-lost")
        names += ("usual-confidences", "most-fallen")
        fitted = {name: torch.as_tensor(values).tolist() for name, values in zip(names, levels[1:], strict=True)}
        return levels, record | fitted | {"warnings": laxness(levels, config.strategy)}
    loss = model.score(start.theta.to(federation.device), *federation.probe())[1]
    scores, probation, upper_norm = record["scores"], record["probation"], record["upper-norm"]
    calibration = fit_calibration(config.strategy, scores, probation, least_rise=LEAST_RISE * loss, upper_norm=upper_norm)
    record["thresholds"] = {name: threshold._asdict() for name, threshold in calibration.thresholds.items()}
    record["during-probation"] = {name: threshold._asdict() for name, threshold in calibration.during_probation.items()}
    record["typical"] = {name: threshold._asdict() for name, threshold in calibration.typical.items()}
    record["levels"] = {name: level._asdict() for name, level in calibration.levels.items()}
    record["warnings"] = []
    if (rise := calibration.thresholds.get("rise")) and rise.at(1) > loss:
        record["warnings"] = [
            f"the loss on the probe may rise by {rise.at(1):.2f} nats in a round (that of the burnt-in model is {loss:.2f}), so that a "
            "trigger may pass; a longer burn-in makes it stricter"
        ]
    return calibration, record


def _load(path: Path) -> dict[str, Any] | None:
    """The cached record; None if there is none or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["record"] if content["sha256"] == _digest(content["record"]) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _measure(
    config: Config, grid: ClientGrid, start: StartModel, federation: Federation, model: FlatModel, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """The scores of clean rounds by name, and the upper quartile of the norms of clients' updates before the rehearsed probation."""
    unlimited: dict[str, Threshold] = dict.fromkeys(SCORES, Threshold(float("inf"), 0.0))
    calibration = Calibration(unlimited, unlimited, unlimited, {}, float("inf"))
    strategy = _clean_strategy(config, start, federation, model, calibration)
    scores, norms, norm = dict[str, list[float]](), list[float](), float("inf")
    settings = config.strategy
    probation = settings.probation if settings.scope == "aggregate" else 0
    rounds = settings.calibration_rounds + 2 * probation
    for number in range(1, rounds + 1):
        if number == settings.calibration_rounds + 1:
            norm = upper_quartile(torch.tensor(norms))
            strategy.begin_probation(probation, norm)
        result = _clean_round(strategy, grid, number)
        for name in SCORES:
            if name in result.metrics:
                scores.setdefault(name, []).append(result.metrics[name])
        norms += [report.norm for report in result.outcome.reports if not report.failure]
        progress(number, rounds)
    rehearsal = list(range(settings.calibration_rounds + 1, settings.calibration_rounds + probation + 1))
    return {
        "rounds": rounds,
        "probation": rehearsal,
        "scores": scores,
        "upper-norm": norm if probation else upper_quartile(torch.tensor(norms)),
    }


def _measure_levels(
    config: Config, grid: ClientGrid, start: StartModel, federation: Federation, model: FlatModel, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """What dgc-2 needs of clean rounds: in the first quarter, without any clip, the bound of its clip. In the rest, from the burnt-in model
    again and under this clip: the persistence of each client by id, how far all together pushed apart in one direction, the loss of each
    class and its confidence, and the running means of the accuracy of each class and of all together.
    """
    rounds, clients, theta = config.strategy.calibration_rounds, config.data.num_clients, start.theta.cpu()
    strategy = _clean_strategy(config, start, federation, model, no_limits(clients))
    defence = strategy.defence
    assert defence
    norms, values, joint = list[float](), dict[str, list[float]](), list[float]()
    losses, confidences, means = list[list[float]](), list[list[float]](), list[list[float]]()
    for number in range(1, rounds + 1):
        if number == rounds // 4 + 1:
            defence.levels = no_limits(clients, bound_of(norms, config.strategy.bound_quantile))
            # From the burnt-in model, as the run: without a clip the model may have got far from it.
            strategy.state = ServerState(theta, torch.zeros_like(theta))
            defence.memory = first_memory(theta, defence.by_class(theta), no_pushes(clients, len(theta)), defence.levels)
        result = _clean_round(strategy, grid, number)
        if number <= rounds // 4:
            norms += [report.norm for report in result.outcome.reports if not report.failure]
        else:
            scores = persistence(defence.memory.pushes)
            for client in result.outcome.combined:
                values.setdefault(str(client), []).append(float(scores[client]))
            joint.append(defence.figures["joint_push"])
            losses.append(defence.memory.now.losses.tolist())
            confidences.append(defence.memory.now.confidences.tolist())
            means.append(defence.memory.smooth.tolist())
        progress(number, rounds)
    by_round = {"joint": joint, "losses": losses, "confidences": confidences, "means": means}
    return {"rounds": rounds, "bound": defence.levels.bound, "persistence": values} | by_round


def _clean_strategy(
    config: Config, start: StartModel, federation: Federation, model: FlatModel, calibration: Calibration | Levels
) -> RuleStrategy:
    """The strategy with every client honest and nothing refused."""
    clean = config.model_copy(update={"attack": config.attack.model_copy(update={"name": "none", "poison_ratio": -1.0})})
    strategy = build_strategy(
        config,
        start.theta.cpu(),
        lambda round_: sample_clients(clean, round_),
        model=model,
        federation=federation,
        calibration=calibration,
        calibrating=True,
    )
    assert isinstance(strategy, RuleStrategy)
    return strategy


def _clean_round(strategy: RuleStrategy, grid: ClientGrid, number: int) -> RoundResult:
    try:
        return play_round(strategy, grid, FIRST + number, phase="")
    except RuntimeError as error:
        raise RuntimeError(f"calibration, round {number}: {error}") from error
