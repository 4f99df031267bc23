"""What ``--on`` and ``--join`` may name, and whether anything answers there: Ray itself asks for ten minutes."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from urllib.parse import urlsplit

from harness.base.errors import HarnessError

LOCAL = "local"
"""``--on local``: a cluster of this machine alone, which ends with the session."""
_AUTO = "auto"
_HERE_PATIENCE = 5.0
"""Seconds for which hardware is waited for that this machine alone could have: no node of it comes late."""
_CLIENTS = 10001
"""Ray's own port for clients."""
_PATIENCE = 20.0
"""Seconds for which a head that begins just now is waited for."""
_HEAD_PATIENCE = 120.0
"""The same for a node that joins it: all may begin at once, and an image may have to be fetched first."""
_PAUSE = 0.5


def patience(on: str, seconds: float) -> float:
    """Return how long hardware is waited for that no node has, of so many seconds that a user gives it.

    Raises HarnessError for what is no number of seconds.
    """
    if not seconds >= 0:
        raise HarnessError(f"--wait-for-nodes {seconds:g}: seconds, from 0 on")
    return min(seconds, _HERE_PATIENCE) if on == LOCAL else seconds


def check(on: str, patience: float = _PATIENCE) -> None:
    """Raise HarnessError for what names no cluster, and for an address of ``--on`` at which nothing answers."""
    if on == _AUTO:
        # Which Ray reads, then.
        on = os.environ.get("RAY_ADDRESS") or _AUTO
    scheme, _, rest = on.rpartition("://")
    # What else Ray knows is for it to say.
    if on in (LOCAL, _AUTO) or scheme not in ("", "ray"):
        return
    host, port = _place(rest, _CLIENTS if scheme else None)
    if not host or not port:
        raise HarnessError(f"--on {on!r} names no cluster: give local, auto, HEAD:6379 or ray://HEAD:10001")
    _await(f"--on {on}", host, port, patience)


def check_head(join: str, patience: float = _HEAD_PATIENCE) -> None:
    """Raise HarnessError for what names no head, and for one that does not answer those that ``--join`` it."""
    host, port = _place(join, None)
    if not host or not port:
        raise HarnessError(f"--join {join!r} names no head: give HEAD:6379")
    _await(f"--join {join}", host, port, patience)


def _place(text: str, usual: int | None) -> tuple[str | None, int | None]:
    """Return host and port; None for what there is none of."""
    with contextlib.suppress(ValueError):
        place = urlsplit(f"//{text}")
        if not place.path:
            return place.hostname, place.port or usual
    return None, None


def _await(what: str, host: str, port: int, patience: float) -> None:
    end = time.monotonic() + patience
    while why := _silent(host, port, max(1.0, end - time.monotonic())):
        if time.monotonic() >= end:
            raise HarnessError(f"{what}: nothing answers at port {port} of {host} ({why}); is its head up there?")
        time.sleep(_PAUSE)


def _silent(host: str, port: int, seconds: float) -> str:
    """Return why nobody answers at a port; nothing where somebody does."""
    try:
        socket.create_connection((host, port), seconds).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
