"""Ctrl-C, SIGTERM and SIGHUP end a session alike: at the first the work ends in order, at a later one at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Who presses twice, and what ends a group of processes, means one interruption.
_ONE = 1.0
# Of a command that measures nothing: all that it writes it writes in one step.
_BEGINS_ANEW = "what stood there stays, whole; the same command begins anew"


class Signalled(KeyboardInterrupt):
    """The interruption by a signal.

    Of KeyboardInterrupt itself that passes through ``exec``, as while dataclasses are made, Python remembers that
    nobody caught it: however the process ends, it would end by SIGINT.
    """


class Interrupted(Signalled):
    """An interruption whose ``words`` say what is kept, and how to go on."""

    def __init__(self, interruption: KeyboardInterrupt, words: str) -> None:
        super().__init__(*interruption.args)
        self.words = words


def status(signal_name: str) -> int:
    """Return the exit status of what a signal ended, by its name: 128 and its number, as shells count it."""
    return 128 + signal.Signals.__members__.get(signal_name, signal.SIGINT)


def told(interruption: KeyboardInterrupt) -> str:
    """Return what a command says that was interrupted."""
    kept = interruption.words if isinstance(interruption, Interrupted) else _BEGINS_ANEW
    return f"interrupted; {kept}"


class Interruption:
    """Turns the first of the signals into KeyboardInterrupt, and ends the process at a later one, while it is entered.

    Nothing is lost then either: records are on the disk, and workers end with the process that started them. ``last``
    returns the last words, for standard error. A signal that is ignored, as by ``nohup``, stays so. Outside of the
    main thread, which alone gets signals, nothing changes.

    With ``at_once`` the first ends the process: for what would wait for threads of others, and keeps nothing here.
    """

    def __init__(self, last: Callable[[], str] = lambda: "ended at once", *, at_once: bool = False) -> None:
        self._last = last
        self._at_once = at_once
        self._errors = 2
        self._former: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self._since: float | None = None
        self.by = ""
        """The signal's name, once there was one."""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # The terminal, also while what a test says is captured.
            self._errors = os.dup(2)
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        while self._former:
            number, former = self._former.popitem()
            ends = self.by and former in (signal.SIG_DFL, signal.default_int_handler)
            # What was interrupted ends: Python's last steps are nothing that a further signal should tear up.
            signal.signal(number, signal.SIG_IGN if ends else former)
        if self._errors != 2:
            os.close(self._errors)
            self._errors = 2

    def ending(self) -> None:
        """Note that the work ends by itself: a signal that comes now does not stop what is being written."""
        if self._since is None:
            self._since = time.monotonic()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A child that was forked is not what is interrupted in order.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now, first = time.monotonic(), not self.by
        self.by = self.by or signal.Signals(number).name
        if not self._at_once:
            if self._since is None:
                self._since = now
                raise Signalled(self.by)
            if first or now - self._since < _ONE:
                return
        try:
            os.write(self._errors, f"\n{self._last()}\n".encode(errors="backslashreplace"))
        finally:
            os._exit(status(self.by))
