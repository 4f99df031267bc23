"""Standard output and error of a command: what does not arrive there is an error that names the stream."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from harness.base.terminal import Folded, unfolded

OUTPUT, ERROR = "standard output", "standard error"


class Named:
    """A text stream whose OSErrors have its name as their file's; all else is as of the stream itself."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self.stream = stream
        self.failed: OSError | None = None
        """The last of its errors: whoever printed may have thought nothing of it, as argparse does for its help."""
        self._name = name

    def write(self, text: str) -> int:
        with self._named():
            return self.stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        with self._named():
            self.stream.writelines(lines)

    def flush(self) -> None:
        with self._named():
            self.stream.flush()

    @property
    def buffer(self) -> Named:
        """Its stream of bytes, which are written past its own text; whose errors have its name too."""
        return Named(cast(TextIO, self.stream.buffer), self._name)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed = OSError(error.errno, error.strerror, self._name)
            raise self.failed from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def _whole(stream: TextIO) -> Iterator[TextIO]:
    """Yield a stream all of whose text arrives, or is an error.

    One without a buffer, as of ``python -u``, asks the system once, and thinks no more of what that did not take.
    """
    raw = stream.buffer
    if not isinstance(raw, io.RawIOBase):
        yield stream
        return
    buffer = io.BufferedWriter(raw)
    made = io.TextIOWrapper(buffer, stream.encoding, stream.errors, line_buffering=True)
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):
            made.flush()
        # Or the descriptor were closed with it.
        for held in (made, buffer):
            with contextlib.suppress(OSError):
                held.detach()


@contextlib.contextmanager
def own_output(wide: int | None) -> Iterator[None]:
    """Name both streams within, and fold what is printed to them unless ``wide`` is None.

    A stream that the process was started without goes nowhere, as print has it, and a character that its encoding lacks
    is written as Python writes it in a string.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with contextlib.ExitStack() as opened:
        nowhere = opened.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        whole = [opened.enter_context(_whole(stream or nowhere)) for stream in before]
        named = [Named(stream, name) for stream, name in zip(whole, (OUTPUT, ERROR), strict=True)]
        streams = named if wide is None else [Folded(cast(TextIO, stream), wide) for stream in named]
        sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
        try:
            yield
        finally:
            # What is told last may find no room either.
            _let_go()
            sys.stdout, sys.stderr = before


def undelivered() -> OSError | None:
    """Write what both streams still hold, and return why standard output does not take it, if it does not.

    What they hold then goes nowhere.
    """
    _let_go()
    return cast(Named, unfolded(sys.stdout)).failed


def _let_go() -> None:
    """Write what both streams still hold, or have it go nowhere.

    The interpreter would try it once more as it ends, and end with a status of its own, 120, where it cannot.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
