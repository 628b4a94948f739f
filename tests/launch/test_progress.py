"""Progress while runs go on: the pace, the live display, and `fl-sim watch`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from experiments import cli
from experiments.launch.progress import display, watch
from experiments.launch.progress.lines import Event, Rounds
from experiments.launch.progress.pace import WINDOW, Pace, duration
from experiments.records.folder import write_failure
from experiments.records.so_far import RoundsSoFar
from tests.support.small_study import write_study_records

LINE = {"track": "attacked", "round": 1, "phase": "accumulate", "seconds": {"train": 0.3, "evaluate": 0.2}}


def test_the_pace_forgets_what_came_from_the_records() -> None:
    pace, now = Pace(), 0.0
    assert pace.seconds_left(0, 100, now) is None
    for done in range(1, 51):  # of an interrupted run, at once
        pace.seconds_left(done, 100, now)
    for done in range(51, 71):
        now += 10.0
        pace.seconds_left(done, 100, now)
    assert now > 2 * WINDOW
    assert pace.seconds_left(70, 100, now) == pytest.approx(30 * 10.0)


def test_the_pace_of_slow_rounds() -> None:
    pace = Pace()
    for done in range(4):
        pace.seconds_left(done, 10, 1000.0 * done)
    assert pace.seconds_left(3, 10, 3000.0) == pytest.approx(7000.0)
    assert list(map(duration, (None, 59.2, 61.0, 7200.0))) == ["-", "59 s", "1 min", "2.0 h"]


def test_a_burn_in_is_not_the_pace_of_a_sweep() -> None:
    """Twelve cells of 100 rounds of a second each, every fourth after a burn-in of two minutes: 1,560 s in all."""
    pace, now, done = Pace(), 0.0, 0
    for cell in range(12):
        if cell % 4 == 0:
            for _ in range(120):
                now += 1.0
                said = pace.seconds_left(done, 1200, now)
                if said is not None:
                    assert said <= 2.5 * (1560.0 - now)
        for _ in range(100):
            now, done = now + 1.0, done + 1
            said = pace.seconds_left(done, 1200, now)
            if said is not None and done < 1200:
                assert 0.4 * (1560.0 - now) <= said <= 2.5 * (1560.0 - now)


def shown(events: list[Event], *, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, color_system=None, legacy_windows=False)
    with display.display(console, "a sweep", []) as on_line:
        for (done, total), run, (played, planned), what in events:
            on_line(f"fl-sim | {done}/{total} | {run} | {played}/{planned} | {what}")
    return stream.getvalue()


EVENTS = [
    Event(Rounds(1, 20), "cell-1", Rounds(1, 10), "attacked, round 1, accumulate, accuracy 98.0 %"),
    Event(Rounds(2, 20), "cell-2", Rounds(1, 10), "twin, round 1, recover"),
    Event(Rounds(11, 20), "cell-2", Rounds(10, 10), "complete"),
]


def test_a_terminal_shows_a_line_per_running_cell() -> None:
    last = shown(EVENTS, terminal=True).split("a sweep")[-1]  # the last time that all lines were drawn
    assert "11/20" in last
    assert "cell-1 · attacked, round 1, accumulate, accuracy 98.0 %" in last
    assert "cell-2" not in last, "it has ended"


def test_a_log_file_has_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "LINE_EVERY", 0.0)
    text = shown(EVENTS, terminal=False)
    assert text.isprintable() or set(text) - {"\n"} == {letter for letter in text if letter.isprintable()}
    first, second, third = text.splitlines()
    assert first == "a sweep · 1 of 20 rounds · cell-1, attacked, round 1, accumulate, accuracy 98.0 %"
    assert second.startswith("a sweep · 2 of 20 rounds · about "), "the pace is known from the second step on"
    assert third.endswith(" left · cell-2, complete")


def test_rounds_are_followed_line_by_line(tmp_path: Path) -> None:
    rounds, path = RoundsSoFar(tmp_path), tmp_path / "rounds.jsonl"
    rounds.refresh()
    assert (rounds.count, rounds.written) == (0, None)
    line = json.dumps({**LINE, "accuracy": 97.0}) + "\n"
    path.write_text(line + line[:10])
    rounds.refresh()
    assert (rounds.count, rounds.accuracy, rounds.seconds_per_round) == (1, 97.0, 0.5)
    with path.open("a") as file:
        file.write(line[10:] + json.dumps({**LINE, "round": 3}) + "\n")
    rounds.refresh()
    assert (rounds.count, rounds.accuracy, rounds.latest[-1]["round"]) == (3, 97.0, 3)
    path.write_text(json.dumps({**LINE, "track": "twin"}) + "\n")  # the run began again
    rounds.refresh()
    assert (rounds.count, rounds.accuracy) == (1, None)


def test_watching_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    runs = write_study_records(tmp_path)
    waiting, failing, running = (run.folder for run in runs[:3])
    for folder in (waiting, failing, running):
        (folder / "summary.json").unlink()
    for path in waiting.iterdir():
        path.unlink()
    write_failure(failing, "ValueError: no")
    (running / "rounds.jsonl").write_text(json.dumps({**LINE, "accuracy": 97.0}) + "\n")
    assert cli.main(["watch", str(tmp_path), "--once"]) == 1, "one has failed"
    out = capsys.readouterr().out
    assert "9 of 12 runs complete, 1 running, 1 failed, 1 waiting" in out
    planned = watch.Watch(tmp_path).positions[2].planned
    assert f"1 of {planned}" in out
    assert "attacked, round 1, accumulate, accuracy 97.0 %" in out
    assert "failed: ValueError: no" in out
    assert "strategy mean, attack.poison-ratio 0.1, seed 1" in " ".join(out.split()), "a hash does not say which cell it is"
    assert watch.Watch(tmp_path).positions[2].left == pytest.approx((planned - 1) * 0.5)

    def all_end(_: float) -> None:
        for folder in (waiting, failing, running):
            folder.mkdir(exist_ok=True)
            (folder / "summary.json").write_text("{}")

    monkeypatch.setattr(watch.time, "sleep", all_end)
    assert cli.main(["watch", str(tmp_path)]) == 0
    assert "12 of 12 runs complete" in capsys.readouterr().out
    assert cli.main(["watch", str(tmp_path / "nothing")]) == 2
