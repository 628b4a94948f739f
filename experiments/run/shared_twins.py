"""Clean twins shared by the cells of a sweep: those that differ in their attack alone have the same one, if as many rounds are run and
compared at the same one. The folder lives as long as the command, so code, PyTorch and device are the same for all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

from experiments.records.folder import RunRecords
from experiments.run.phases import accumulate_rounds
from experiments.run.track import Progress, Track
from fl_sim.atomic_files import write_whole
from fl_sim.config.keys import Config
from fl_sim.config.resolve import config_hash, resolve

DATA = ("data", "set_size")  # of the attack's keys: the coalition's own set is no client's
SAMPLING = ("name", "poison_ratio", "malicious_fraction")  # and where not everybody is sampled, who is


def shared_twin(folder: Path, config: Config, attacked: Track, records: RunRecords, progress: Progress, run: Callable[[], Track]) -> Track:
    """The twin of the attacked track from `folder`, or from `run`, and then in the folder for the next that asks.

    Either way its rounds are in the records: a run's folder is complete without the others.
    """
    path = folder / f"{twin_key(config, attacked)}.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        for line in found["lines"]:
            records.round(line)
            progress("twin", line["round"], line["phase"], line.get("accuracy"))
        return _track(found["track"])
    twin = run()
    written = [json.loads(line) for line in (records.folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = {name: value for name, value in asdict(twin).items() if name != "theta"}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"track": kept, "lines": [line for line in written if line["track"] == "twin"]}) + "\n")
    return twin


def twin_key(config: Config, attacked: Track) -> str:
    """Names what a twin depends on within one command: the configuration without the attack, the length, and the round that is compared."""
    everybody = config.clients_per_round == config.data.num_clients
    kept = DATA + (() if everybody else SAMPLING)
    attack = resolve({}).attack.model_copy(update={name: getattr(config.attack, name) for name in kept})
    clean = config.model_copy(update={"attack": attack, "twin": False, "control": False})
    return "-".join(map(str, [config_hash(clean), accumulate_rounds(config), attacked.rounds, *attacked.fired[:1]]))


def _track(values: dict[str, Any]) -> Track:
    """A track from JSON, which knows neither integer keys nor tuples."""
    types = get_type_hints(Track)
    for name in (field.name for field in fields(Track) if field.name in values):
        kind = str(types[name])
        if kind.startswith("dict[int"):
            values[name] = {int(round_): value for round_, value in values[name].items()}
        elif kind.startswith("tuple"):
            values[name] = tuple(values[name])
    return Track(**values)
