"""When what is measured: randomized blocks of old and new, rounds taken in turns, and a budget of time."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.base.errors import HarnessError
from harness.judge.series import SIDES, Side, other

_UNITS = {"s": 1, "m": 60, "h": 3600}


# A median of two is a mean, which one slow round spoils.
FEWEST_ROUNDS = 3

_RESERVE = 5.0


def block_order(seed: int, what: str, index: int) -> tuple[Side, Side]:
    """Return which side goes first in one block: drawn at random, and turned round in every second block.

    Blocks 2n and 2n + 1 are each other's mirror image, so both orders occur equally often whatever the number of
    blocks (within one), as in a randomized complete block design (Montgomery, Design and Analysis of Experiments).
    The same seed gives the same order, on whatever machine.
    """
    first = random.Random(f"{seed}/{what}/{index // 2}").random() < 0.5  # noqa: S311 - a reproducible order
    return SIDES if first == (index % 2 == 0) else ("new", "old")


def parse_budget(text: str) -> float:
    """Return the seconds of ``90s``, ``30m`` or ``1.5h``; a plain number counts as seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if not match or not float(match.group(1)):
        raise HarnessError(f"--budget {text!r} is not a time such as 90s, 30m or 1.5h")
    return float(match.group(1)) * _UNITS[match.group(2) or "s"]


class Turns:
    """Lets the two sides of a block measure in turns: neither runs while the other is being timed.

    The rounds go a b, b a, a b, ..., so that a linear drift of the machine within the block falls on both alike. A
    side that has left, because it is done or failed, is not waited for. Each side's rounds take about ``seconds`` at
    most, if that is given: the longer a round, the sooner another process tells more than another round does.
    """

    def __init__(self, order: tuple[Side, Side], seconds: float | None = None) -> None:
        self._order = order
        self._seconds = seconds
        self._longest = dict.fromkeys(SIDES, 0.0)
        self._condition = threading.Condition()
        self._step = 0
        self._met = dict.fromkeys(SIDES, 0)
        self._left: set[Side] = set()
        self._cancelled = False

    def meet(self, side: Side) -> None:
        """Wait until the other side has come as far."""
        with self._condition:
            self._met[side] += 1
            self._condition.notify_all()
            self._wait(lambda: self._met[other(side)] >= self._met[side] or other(side) in self._left)

    def timer(self, side: Side) -> Callable[[Callable[[], None], int, int], int]:
        """Return what a measurement calls to time ``function``: ``timer(function, rounds, warmup)``.

        It returns how many calls it made: fewer than ``warmup + rounds`` where those would take too long by the first
        ones (the warm-up, or one round) of the slower side, so that sides that run together make as many.
        """

        def run(function: Callable[[], None], rounds: int, warmup: int) -> int:
            self.meet(side)
            first = min(warmup or 1, warmup + rounds)
            self._longest[side] = max([self._call(side, function) for _ in range(first)], default=0.0)
            self.meet(side)
            longest = max(self._longest[each] for each in SIDES if each == side or each not in self._left)
            if self._seconds is not None and longest:
                rounds = min(rounds, max(FEWEST_ROUNDS, int(self._seconds / longest)))
            for _ in range(warmup + rounds - first):
                self._call(side, function)
            self.meet(side)
            return warmup + rounds

        return run

    def _call(self, side: Side, function: Callable[[], None]) -> float:
        """Call ``function`` when it is this side's turn; returns the seconds that it took."""
        self._await(side)
        start = time.monotonic()
        try:
            function()
        finally:
            with self._condition:
                self._step += 1
                self._condition.notify_all()
        return time.monotonic() - start

    def leave(self, side: Side) -> None:
        """Say that this side measures no more in this block."""
        with self._condition:
            self._left.add(side)
            self._condition.notify_all()

    def cancel(self) -> None:
        """End the block: whoever waits, or would, raises HarnessError."""
        with self._condition:
            self._cancelled = True
            self._condition.notify_all()

    def whose(self) -> Side:
        """Return whose turn it is."""
        pair, second = divmod(self._step, 2)
        return self._order[second if pair % 2 == 0 else 1 - second]

    def _await(self, side: Side) -> None:
        with self._condition:
            self._wait(
                lambda: (
                    self.whose() == side
                    or other(side) in self._left
                    # It has called its last and waits in meet() already.
                    or self._met[other(side)] > self._met[side]
                )
            )

    def _wait(self, until: Callable[[], bool]) -> None:
        self._condition.wait_for(lambda: self._cancelled or until())
        if self._cancelled:
            raise HarnessError("the block was interrupted")


@dataclass
class Budget:
    """Seconds that may be spent, counted from ``started`` less what earlier sessions of the same gate spent."""

    seconds: float
    spent_before: float = 0.0
    started: float = field(default_factory=lambda: time.monotonic())

    @property
    def spent(self) -> float:
        return self.spent_before + time.monotonic() - self.started

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - self.spent)

    @property
    def reserve(self) -> float:
        """The seconds at a budget's end that are kept for ending workers, judging and writing."""
        return min(_RESERVE, self.seconds / 20)

    @property
    def until_cut(self) -> float:
        """The seconds until whatever is at work is cut off."""
        return max(0.0, self.seconds - self.reserve - self.spent)

    def allows(self, *expected: float | None) -> bool:
        """Return whether work that is expected to take so long would still end in time.

        None is work of which nothing is known: it may be begun as long as anything is left.
        """
        return self.spent + sum(it for it in expected if it) <= self.seconds and (None not in expected or self.left > 0)
