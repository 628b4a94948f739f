"""The progress of a launch: in a terminal a live line for all rounds and one per running cell; elsewhere plain lines of text."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Generator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from experiments.launch.progress.lines import Event, parse
from experiments.launch.progress.pace import Pace, duration

LINE_EVERY = 30.0  # seconds between two lines of progress, without a terminal for a live display
NOTE = re.compile(r"(?:[A-Z]+ *: *)?fl-sim: ")  # begins a line that the user should see at once; Flower's log puts its level before it
CHOICE = "transport: "  # begins the line that says which transport was chosen
LOG_KEPT = 1000  # lines of a run's log in memory

OnLine = Callable[[str], None]


@contextlib.contextmanager
def display(console: Console, title: str, lines: list[str]) -> Generator[OnLine]:
    """Shows progress. Yields a function to call with each line of a launch: notes are shown at once, and lines other than these and
    progress are added to `lines`."""
    with _shown(console, title) as on_event:

        def on_line(line: str) -> None:
            if event := parse(line):
                on_event(event)
            elif line.startswith(CHOICE):
                console.print(Text(line), highlight=False, soft_wrap=True)
            elif mark := NOTE.match(line):
                console.print(Text.assemble(("warning: ", "yellow"), line[mark.end() :]), highlight=False, soft_wrap=True)
            else:
                lines.append(line)
                del lines[:-LOG_KEPT]

        yield on_line


@contextlib.contextmanager
def _shown(console: Console, title: str) -> Generator[Callable[[Event], None]]:
    if not console.is_terminal:
        yield _plain_lines(console, title)
        return
    what = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    left = TextColumn("{task.fields[left]} left", markup=False, justify="right")
    with Progress(SpinnerColumn(), what, BarColumn(16), MofNCompleteColumn(), TimeElapsedColumn(), left, console=console) as progress:
        yield _Bars(progress, title).on_event


def _plain_lines(console: Console, title: str) -> Callable[[Event], None]:
    """A line for a log file or a notebook every `LINE_EVERY` seconds, and when all rounds are done."""
    last_line_at, pace = time.monotonic(), Pace()

    def on_event(event: Event) -> None:
        nonlocal last_line_at
        (done, total), now = event.whole, time.monotonic()
        seconds = pace.seconds_left(done, total, now)
        if done == total or now - last_line_at >= LINE_EVERY:
            last_line_at = now
            left = f" · about {duration(seconds)} left" if seconds and done < total else ""
            text = f"{title} · {done} of {total} rounds{left} · {event.run}, {event.what}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    return on_event


class _Bars:
    """A bar for all rounds, and below it one per running cell of several."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress, self._title, self._cells = progress, title, dict[str, TaskID]()
        self._whole = progress.add_task(f"{title} · starting", total=None, left="-")
        self._paces: dict[str, Pace] = {}

    def on_event(self, event: Event) -> None:
        (done, total), (played, planned) = event.whole, event.own
        alone = planned == total
        text = f"{self._title} · {event.what}" if alone else self._title
        self._progress.update(self._whole, total=total, completed=done, description=text, left=self._left("", done, total))
        if alone:
            return
        if played == planned:
            if event.run in self._cells:
                self._progress.remove_task(self._cells.pop(event.run))
                self._paces.pop(event.run)
            return
        if event.run not in self._cells:
            self._cells[event.run] = self._progress.add_task(event.run, total=planned, left="-")
        what, left = f"  {event.run} · {event.what}", self._left(event.run, played, planned)
        self._progress.update(self._cells[event.run], completed=played, description=what, left=left)

    def _left(self, run: str, done: int, total: int) -> str:
        return duration(self._paces.setdefault(run, Pace()).seconds_left(done, total, time.monotonic()))
