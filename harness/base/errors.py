"""The errors that a user can mend; each message names the thing, its value and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from harness.base.secrets import without_secrets


class HarnessError(Exception):
    """Base of every error that the harness raises on purpose; told without what looks like a credential."""

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class MatrixError(HarnessError):
    """matrix.toml, or a name given on the command line, does not hold."""


class RecordError(HarnessError):
    """A run's record file cannot be used as asked."""


class ArtifactError(HarnessError):
    """An artifact could not be made or stored."""


class Unsuitable(HarnessError):
    """A cell asks of a model what it cannot give, where another cell is the one to ask: its tests are skipped.

    ``nowhere`` says that no cell is: then they fail.
    """

    def __init__(self, message: str, *, nowhere: bool = False) -> None:
        super().__init__(message)
        self.nowhere = nowhere


class BrokenEnvironment(HarnessError):
    """A worker's environment could not be made or does not work."""


class DiscardedBlocks(HarnessError):
    """Every block of a measurement had to be discarded: the machine was throttled, or shared with others."""


class DeviceLost(HarnessError):
    """A GPU that was there cannot be asked any more: it fell off the bus, or its driver was taken away."""


class VoidLoad(HarnessError):
    """A figure of load says nothing: the client was its limit, or the server did not answer what it was asked.

    Its record is kept, as void, with the reason.
    """


class OutOfTime(HarnessError):
    """Work was cut off where its budget of time ended; it says nothing of what was measured."""


class ThresholdFailure(HarnessError):
    """At least one measurement lies beyond its limit.

    ``known`` says why, where the matrix has it that every one of these limits does not hold; otherwise it is empty.
    """

    def __init__(self, message: str, known: str = "") -> None:
        super().__init__(message)
        self.known = known


class TooNoisy(HarnessError):
    """Rounds were so far apart that a figure can be said to be neither within its limit nor beyond it.

    Its test has not passed and has not failed; it is told of by a word of its own.
    """


class WrongKernels(HarnessError):
    """A recipe's own kernels did not do the work of its linear layers.

    ``known`` says why, where the matrix has it that they do not; otherwise it is empty. After ``LONGEST`` the message
    names what ran.
    """

    LONGEST = "longest first: "

    def __init__(self, message: str, known: str = "") -> None:
        super().__init__(message)
        self.known = known


class SampleError(HarnessError):
    """Samples that a statistical rule cannot use: not finite, zero in a ratio, or unpaired."""


class TooFewSamples(SampleError):
    """Fewer samples (or ``what`` else) than a statistical rule needs; ``needed`` says how many those are."""

    def __init__(self, rule: str, needed: int, got: int, what: str = "samples") -> None:
        super().__init__(f"{rule} needs at least {needed} {what} and got {got}: measure {needed - got} more")
        self.needed = needed
        self.got = got


class WorkerError(HarnessError):
    """A worker or a server failed.

    ``stage`` names what it was doing, ``kind`` is one of ``exception``, ``refused``, ``crash``, ``timeout``,
    ``out_of_memory``, ``start`` and ``http``; ``log_tail`` is the end of its log. ``worker`` says which kind of
    worker it was, e.g. ``engine`` or ``server``. One that ``refused`` what it was given has said all in its message.
    """

    def __init__(self, message: str, *, stage: str, kind: str, log_tail: str = "", worker: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.stage = stage
        self.kind = kind
        self.log_tail = log_tail
        self.worker = worker
        self.repeated = False

    def again(self) -> WorkerError:
        """Return the error of what failed before in this session, and is not tried again."""
        # Not copy.copy, which would call __init__ without what it takes by name.
        found = self.__class__.__new__(self.__class__)
        vars(found).update(vars(self))
        found.args = (f"{self.message} (it failed before in this session and is not tried again)",)
        found.repeated = True
        return found

    @property
    def says_all(self) -> bool:
        """Whether the message is all that a user needs, so that a log would add nothing but a traceback."""
        return self.kind == "refused"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the part of an error message that offers the known names closest to ``name``."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    if close:
        return f"did you mean {' or '.join(close)}? (known: {', '.join(names)})"
    return f"known: {', '.join(names) or 'none'}"
