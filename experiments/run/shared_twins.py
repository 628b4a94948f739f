"""Clean twins shared by the cells of a sweep: those that differ in their attack alone have the same one, if as many rounds are run and
compared at the same one. The folder lives as long as the command, so code, PyTorch and device are the same for all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from experiments.run.history import Line, TrackHistory
from experiments.run.phases import accumulate_rounds
from fl_sim.atomic_files import write_whole
from fl_sim.config.keys import Config
from fl_sim.config.resolve import config_hash, resolve

DATA = ("data", "set_size")  # of the attack's keys: the coalition's own set is no client's
SAMPLING = ("name", "poison_ratio", "malicious_fraction")  # and where not everybody is sampled, who is


def stored_twin(folder: Path, config: Config, attacked: TrackHistory) -> list[Line]:
    """The lines of the twin of an attacked track, if another run has left them; else none."""
    path = folder / twin_key(config, attacked)
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def store_twin(folder: Path, config: Config, attacked: TrackHistory, lines: Sequence[Line]) -> None:
    """Leave the lines of a twin for the next run that asks."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / twin_key(config, attacked), "".join(json.dumps(line) + "\n" for line in lines))


def twin_key(config: Config, attacked: TrackHistory) -> str:
    """Names what a twin depends on within one command: the configuration without the attack, the length, and the round that is compared."""
    everybody = config.clients_per_round == config.data.num_clients
    kept = DATA + (() if everybody else SAMPLING)
    attack = resolve({}).attack.model_copy(update={name: getattr(config.attack, name) for name in kept})
    clean = config.model_copy(update={"attack": attack, "twin": False, "control": False})
    return "-".join(map(str, [config_hash(clean), accumulate_rounds(config), attacked.rounds, *attacked.fired[:1]])) + ".jsonl"
