"""Clean twins shared by the cells of a sweep. Cells that differ only in their attack have the same twin, if they have the same number of
rounds and compare in the same round. The folder exists only during the command, so code, PyTorch and device are the same for all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from clients.catalogue import attacks
from clients.success import success_test_of
from experiments.records.identity import run_hash
from experiments.run.history import Line, TrackHistory
from experiments.run.phases import accumulate_rounds
from fl_sim.atomic_files import write_whole
from fl_sim.config.keys import Config
from fl_sim.config.resolve import resolve

DATA = ("data", "set_size")  # keys of the attack that matter to a twin: the coalition's own set is taken from the clients' data
SAMPLING = ("name", "poison_ratio", "malicious_fraction")  # and these, if not all clients are sampled in every round
TWINS = ".twins"  # their folder, in an output folder
SUCCESS = ("name", "options", "class_", "to_class", "edge_data", "edge_root", "edge_class")


def stored_twin(folder: Path, config: Config, attacked: TrackHistory) -> list[Line]:
    """The lines of the twin of an attacked track, if another run has stored them; else none."""
    path = folder / twin_key(config, attacked)
    try:
        return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):  # none, or damaged
        return []


def store_twin(folder: Path, config: Config, attacked: TrackHistory, lines: Sequence[Line]) -> None:
    """Store the lines of a twin for other runs."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / twin_key(config, attacked), "".join(json.dumps(line) + "\n" for line in lines))


def _measured(config: Config) -> tuple[str, ...]:
    """The keys of the attack on which its success test depends, if it has one: the twin's lines have its rates."""
    return SUCCESS if success_test_of(attacks.find(config.attack.name)) else ()


def twin_key(config: Config, attacked: TrackHistory) -> str:
    """A file name for what a twin depends on within one command: the configuration without the attack, the data, the number of
    rounds, and the round of comparison."""
    return "-".join(map(str, [_key_before(config), attacked.rounds, *attacked.fired[:1]])) + ".jsonl"


def twins_for(folder: Path, config: Config) -> list[Path]:
    """The files of all stored twins that this configuration may need, whatever its attacked track will be."""
    return sorted(folder.glob(f"{_key_before(config)}-*.jsonl"))


def _key_before(config: Config) -> str:
    """The part of `twin_key` that does not depend on the attacked track."""
    all_sampled = config.clients_per_round == config.data.num_clients
    names = DATA + (() if all_sampled else SAMPLING) + _measured(config)
    attack = resolve({}).attack.model_copy(update={name: getattr(config.attack, name) for name in names})
    clean = config.model_copy(update={"attack": attack, "twin": False, "control": False, "control_honest": False})
    return f"{run_hash(clean)}-{accumulate_rounds(config)}"
