"""A line at the foot of a terminal that says what is at work, redrawn while it lasts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from harness.base.terminal import columns, width

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_TIMES_A_SECOND = 4
_BAR = 12


@dataclass(frozen=True)
class Work:
    """What is at work: its name, how far it is (``done`` of ``total``; 0 where that is not known), and more words."""

    name: str
    words: str = ""
    done: float = 0.0
    total: float = 0.0


class Foot:
    """The line, on a terminal that is written to otherwise too: whoever writes calls ``hide`` before.

    ``work`` says what to show, whenever it is drawn. ``column`` says where the cursor stands in the line above, which
    it goes back to.
    """

    def __init__(
        self, terminal: TextIO, work: Callable[[], Work | None], column: Callable[[], int] = lambda: 0
    ) -> None:
        self._terminal = terminal
        self._work = work
        self._column = column
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._above = 0
        self._console: Console | None = None
        self._since = time.monotonic()

    def show(self) -> None:
        """Draw the line, below the one that is being written, and go on drawing it."""
        with self._lock:
            if self._live is not None or self._work() is None:
                return
            from rich.console import Console
            from rich.live import Live

            self._above = self._column()
            if self._above:
                self._terminal.write("\n")
                self._terminal.flush()
            self._console = Console(file=self._terminal, width=columns(), force_terminal=True)
            self._live = Live(
                console=self._console,
                get_renderable=self._drawn,
                refresh_per_second=_TIMES_A_SECOND,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start(refresh=True)

    def hide(self) -> None:
        """Take the line away, so that what is written goes on where it was."""
        with self._lock:
            if self._live is None or self._console is None:
                return
            from rich.control import Control

            live, self._live = self._live, None
            live.stop()
            if self._above:
                self._console.control(Control.move_to_column(self._above, -1))
            self._terminal.flush()

    def close(self) -> None:
        """Draw it no more."""
        self._work = lambda: None
        self.hide()

    def _drawn(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        work = self._work() or Work("")
        bar = _BAR if work.total else 0
        words = min(width(work.words), columns() // 2)
        # How long and how far is shown whole; a name makes way.
        room = columns() - words - bar - 3 - (2 if bar else 1)
        line = Table.grid(padding=(0, 1, 0, 0))
        for wide in (1, min(room, max(1, width(work.name))), *([bar] if bar else []), max(1, words)):
            line.add_column(width=wide, no_wrap=True, overflow="ellipsis")
        cells: list[RenderableType] = [
            Spinner("line").render(time.monotonic() - self._since),
            Text(work.name, overflow="ellipsis", no_wrap=True),
        ]
        if bar:
            cells.append(ProgressBar(total=work.total, completed=work.done, width=bar))
        line.add_row(*cells, Text(work.words, style="dim", no_wrap=True, overflow="ellipsis"))
        return line
