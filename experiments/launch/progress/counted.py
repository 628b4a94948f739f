"""The progress of what is done before the first round: reading data, checking the cells of a sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from experiments.launch.progress import display

UPDATE_EVERY = 0.1  # seconds; thousands of cells may be quick

OnStep = Callable[..., None]  # (done, what is being done now: empty)


@contextmanager
def counted(console: Console, what: str, total: int) -> Generator[OnStep]:
    """Yields a function to call with how many of `total` things are done, and with words for a long step of one of them. They are shown in
    a terminal in a live line, elsewhere in a line every `LINE_EVERY` seconds. Of a single thing only the words."""
    shown = written = time.monotonic()
    with console.status(Text(what)) as status:

        def on_step(done: int, words: str = "") -> None:
            nonlocal shown, written
            now = time.monotonic()
            if now - shown < UPDATE_EVERY:
                return
            shown = now
            text = Text(" · ".join(filter(None, [f"{what}: {done} of {total}" if total > 1 else "", words])) or what)
            status.update(text)
            if not console.is_terminal and now - written >= display.LINE_EVERY:
                written = now
                console.print(text, highlight=False, soft_wrap=True)

        yield on_step
