"""Too little memory: told in words, before numpy and Arrow hang or abort for want of it where that can be foreseen."""

from __future__ import annotations

import errno
import os
import resource

from harness.base.errors import HarnessError

# Of address space: numpy's OpenBLAS waits for ever where it gets none, Arrow aborts. A table takes 400 to 700 MB of it.
_FEWEST = 1 << 30
# Of a worker: its imports of torch and Transformers take 1.4 GB, and hang with 1.2 GB for the same reason.
_FEWEST_OF_WORKER = 3 << 29
_LIMITS = ((resource.RLIMIT_AS, "address space", "ulimit -v"), (resource.RLIMIT_DATA, "data", "ulimit -d"))
# An extension module or a thread that got none.
_WORDS = ("failed to map segment", "annot allocate memory", "can't allocate memory", "can't start new thread")


SHARE = "HARNESS_NODE_MEMORY"
"""Set for a session beside others on one host: the bytes of memory that are its share."""


def within_share(free: float) -> float:
    """Return how many of so many free bytes this session may take."""
    return min(free, float(os.environ.get(SHARE) or free))


class TooLittleMemory(HarnessError):
    """A process may take so little memory that libraries would hang or abort."""


def check_limits(*, worker: bool = False) -> None:
    """Raise TooLittleMemory where a limit of this process is too low for any command, with the way to raise it.

    With ``worker`` where it is too low for a worker that is to be started, which inherits it.
    """
    fewest, of = (_FEWEST_OF_WORKER, "torch") if worker else (_FEWEST, "numpy and Arrow")
    for limit, name, how in _LIMITS:
        soft, _ = resource.getrlimit(limit)
        if 0 <= soft < fewest:
            raise TooLittleMemory(
                f"this process may have {soft >> 20} MB of {name} ({how}): with less than {fewest >> 20} MB {of} "
                f"may hang or abort; raise it, as by {how} unlimited"
            )


def limited() -> bool:
    """Return whether this process may take so much memory and no more."""
    return any(resource.getrlimit(limit)[0] >= 0 for limit, *_ in _LIMITS)


def wanting(error: BaseException) -> bool:
    """Return whether an error, or one that it came from, says that there was no memory."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (MemoryError, TooLittleMemory)) or (
            isinstance(seen, OSError) and seen.errno == errno.ENOMEM
        ):
            return True
        if isinstance(seen, (ImportError, RuntimeError)) and any(words in str(seen) for words in _WORDS):
            return True
        # Of Python's own C, which does so where it got none.
        if isinstance(seen, SystemError) and "without" in str(seen) and limited():
            return True
        seen = seen.__cause__ or seen.__context__
    return False
