"""Which run a configuration is: its keys, and the content of all that they point at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_sim.config.keys import Config
from fl_sim.config.resolve import NOT_HASHED, Scalar, hashed_keys, to_flat, to_json
from fl_sim.data.federation import data_fingerprint

FINGERPRINT = "data (fingerprint)"
INSTALLED = ("digits",)  # data sets that are part of a package: nothing is read, and their content is their name's


def identity(config: Config) -> dict[str, Scalar]:
    """The keys that can change a result (`fl_sim.config.resolve.hashed_keys`), and the fingerprint of the data set in place of its folder.

    Reads the data set if this process has not. Raises what `fl_sim.data.federation.data_fingerprint` does.
    """
    data = {} if config.data.name in INSTALLED else {FINGERPRINT: data_fingerprint(config)[:16]}
    return {**hashed_keys(config), **data}


def run_hash(config: Config) -> str:
    """The first 12 hex digits of SHA-256 over `identity`: the same for the same data in another folder, another for data that changed."""
    return hashlib.sha256(to_json(identity(config)).encode()).hexdigest()[:12]


def same_keys_other_data(folders: Sequence[Path], configs: Sequence[Config]) -> list[str]:
    """A sentence for each new run beside which lies a run of the same keys but of other data, with both fingerprints."""
    beside: dict[Path, list[tuple[str, str, Path]]] = {}
    sentences: list[str] = []
    for folder, config in zip(folders, configs, strict=True):
        if config.data.name in INSTALLED or folder.exists():
            continue
        if folder.parent not in beside:
            beside[folder.parent] = [entry for path in folder.parent.glob("*-*/meta.json") if (entry := _entry(path.parent))]
        keys, fingerprint = _plain_keys(json.loads(to_json(to_flat(config)))), data_fingerprint(config)
        for theirs, digest, other in beside[folder.parent]:
            if theirs == keys and digest != fingerprint:
                differ = f"(fingerprint {digest[:16]} there, {fingerprint[:16]} here)"
                sentences.append(f"{folder.name} is a new run: {other} has the same keys, but its data was other {differ}")
    return sentences


def fingerprint_of_run(folder: Path) -> str:
    """The fingerprint of the data that a run was made from, by its `meta.json`; empty if it does not say."""
    try:
        return str(json.loads((folder / "meta.json").read_text(encoding="utf-8"))["data"]["fingerprint"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""


def _entry(folder: Path) -> tuple[str, str, Path] | None:
    """Keys, data and folder of a run; None if its records do not say."""
    try:
        keys = _plain_keys(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    fingerprint = fingerprint_of_run(folder)
    return (keys, fingerprint, folder) if fingerprint else None


def _plain_keys(flat: dict[str, Any]) -> str:
    """The keys of a `config.json` that can change a result, and `data.root`, as text."""
    return json.dumps({key: value for key, value in flat.items() if not key.startswith(NOT_HASHED)}, sort_keys=True)
