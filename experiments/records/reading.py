"""Reads a run's records, which may be cut, damaged, of another version, or not there. Each error names the file."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from fl_sim.config.resolve import ConfigError, config_of

RECORDS = ("config.json", "rounds.jsonl", "meta.json", "summary.json")


class DamagedError(ValueError):
    """A file of a run is cut or holds something else; the message names it."""


class _Part(BaseModel):
    """A part of a record as reports read it. Further keys stay; those with defaults are absent in records of older versions."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Accuracy(_Part):
    burn_in: float
    before_trigger: float | None
    after_trigger: float | None
    final: float


class _Twin(_Part):
    final: float | None = None
    at_trigger: float | None = None


class _Control(_Part):
    before_trigger: float | None = None
    after_trigger: float | None = None


class _PoisonRatio(_Part):
    realised_mean: float | None = None


class _Seconds(_Part):
    total: float


class _Summary(_Part):
    accuracy: _Accuracy
    drop: float | None = None
    stealth_gap: float | None = None
    gain: float | None = None
    worst_loss_in_phase: float | None = None
    trigger_round: int | None = None
    triggers: list[int]
    client_failures: int = 0
    retries: int = 0
    clean_twin: _Twin | None = None
    control: _Control | None = None
    poison_ratio: _PoisonRatio = _PoisonRatio()
    rounds: int
    seconds: _Seconds


class _Meta(_Part):
    versions: dict[str, str]
    device: str
    git_commit: str
    started: str
    finished: str = ""


class _Line(_Part):
    track: Literal["attacked", "twin", "control", "honest-trigger"]
    round: int
    phase: str
    accuracy: float | None = None
    attack: dict[str, Any] = {}
    strategy: dict[str, Any] = {}


def read_config(folder: Path) -> dict[str, Any]:
    """Every flat key of a run. A key that this version does not know stays; one that it has and the record lacks is absent.

    Raises DamagedError, also for a value that this version does not accept."""
    path = folder / "config.json"
    flat = read_object(path)
    missing = [key for key in ("name", "seed", "attack.name", "strategy.name") if key not in flat]
    if missing:
        raise DamagedError(f"{path} is damaged (it has no {missing[0]})")
    try:
        config_of(flat)
    except ConfigError as error:
        raise DamagedError(f"{path} is damaged, or of another version ({error.problems[0]})") from None
    return flat


def read_cleaning(folder: Path) -> dict[str, Any]:
    """`cleaning.json` of a run, empty if it has none. Raises DamagedError."""
    path = folder / "cleaning.json"
    return read_object(path) if path.exists() else {}


def read_meta(folder: Path) -> dict[str, Any]:
    """What a run was made with. Raises DamagedError."""
    return _checked(folder / "meta.json", _Meta)


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a complete run; what records of older versions do not have is None. Raises DamagedError."""
    return _checked(folder / "summary.json", _Summary)


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of `rounds.jsonl` in order. Raises DamagedError with the file and the number of the line, also for a round that is there
    twice, or is not there: the rounds of each track are 1, 2, 3, …"""
    path, lines, latest = folder / "rounds.jsonl", list[dict[str, Any]](), dict[str, int]()
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise _damage(path, error) from None
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text, parse_constant=_refuse)
            if not isinstance(line, dict):
                raise TypeError("no object")
        except (ValueError, TypeError, RecursionError):
            raise DamagedError(f"{path}, line {number} is damaged: {text[:60]!r}") from None
        lines.append(cast(dict[str, Any], line))
        if problem := _order_problem(lines[-1], latest):
            raise DamagedError(f"{path}, line {number} is damaged: {problem}")
    return lines


def _order_problem(line: Mapping[str, Any], latest: dict[str, int]) -> str:
    """Why a line cannot come next, empty if it can. latest: by track the round before, which becomes the line's."""
    track, round_ = line.get("track"), line.get("round")
    if not isinstance(track, str) or type(round_) is not int:
        return ""  # `read_rounds` says so
    before = latest.get(track, 0)
    latest[track] = round_
    if round_ == before + 1:
        return ""
    return (
        f"round {round_} of the {track} track is there twice"
        if 0 < round_ <= before
        else f"round {before + 1} of the {track} track is missing"
    )


def read_rounds(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of `rounds.jsonl` by track, in order; there is an attacked one. Raises DamagedError, also for a line that holds something
    else than a round."""
    path, tracks = folder / "rounds.jsonl", dict[str, list[dict[str, Any]]]()
    for number, line in enumerate(read_lines(folder), start=1):
        try:
            _Line.model_validate(line)
        except ValidationError as error:
            raise DamagedError(f"{path}, line {number} is damaged: {first_problem(error)}") from None
        tracks.setdefault(line["track"], []).append(line)
    if "attacked" not in tracks:
        raise DamagedError(f"{path} is damaged (it has no round)")
    return tracks


def _checked(path: Path, model: type[_Part]) -> dict[str, Any]:
    """The object in a file, with the defaults of its model. Raises DamagedError if it is no such record."""
    record = read_object(path)
    try:
        return {**record, **model.model_validate(record).model_dump()}
    except ValidationError as error:
        raise DamagedError(f"{path} is damaged, or of another version ({first_problem(error)})") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, without numbers that no figure can show. Raises DamagedError."""
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_small, object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise _damage(path, error) from None
    if not isinstance(record, dict):
        raise DamagedError(f"{path} is damaged (it is no JSON object)")
    return cast(dict[str, Any], record)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"it has {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} twice")
    return record


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number")
    return value


def _small(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{text[:40]} has more than 64 bits")
    return int(text)


def first_problem(error: ValidationError) -> str:
    """The first problem that pydantic has with a record, in words."""
    detail: Mapping[str, Any] = dict(error.errors()[0])
    place = ".".join(map(str, detail["loc"]))
    got = "" if detail["type"] == "missing" else f", got {str(detail['input'])[:60]!r}"
    return f"{place}: {detail['msg']}{got}"


def _damage(path: Path, error: Exception) -> DamagedError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
    return DamagedError(f"{path} is damaged ({reason})")
