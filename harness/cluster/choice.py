"""Which engine ``--on`` means: a cluster of Ray, or the devices of this machine side by side without it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from harness.cluster import address, found
from harness.cluster.address import LOCAL
from harness.cluster.campaign import Engine
from harness.cluster.engine import RayEngine
from harness.cluster.host import Host
from harness.matrix.plan import Matrix


def engine_on(on: str, matrix: Matrix, root: Path, say: Callable[[str], None]) -> Engine:
    """Return the engine over the cluster at an address, or over this machine alone, and say what it exposes.

    ``root`` is the folder that nodes get a copy of. Raises HarnessError where there is no such cluster.
    """
    has_ray = importlib.util.find_spec("ray") is not None
    if on == LOCAL and not has_ray:
        host = Host.here(matrix)
        say(host.told)
        return host
    if has_ray:
        address.check(on)
    engine = RayEngine.start(on, lambda: found.of(matrix), root, say)
    say(engine.told)
    return engine
