"""Which stacks were seen working, and on what: from the records of runs, a row for each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.records.schema import Header, Line, Measurement
from harness.report.lines import column_of
from harness.report.rendering import Table
from harness.servers.registry import EXECUTORCH, SERVERS, TRANSFORMERS

_NONE = "-"


@dataclass(frozen=True, order=True)
class Stack:
    """A device with its driver, and the versions that all that runs on it shares."""

    hardware: str
    device: str
    driver: str
    python: str
    torch: str
    torchao: str
    transformers: str


@dataclass
class _Seen:
    """What a stack was seen doing: versions by what it went through, recipes by the same, the last day in UTC."""

    versions: dict[str, str] = field(default_factory=dict)
    recipes: dict[str, dict[str, None]] = field(default_factory=dict)
    last: float = 0.0


def stacks(runs: Iterable[Sequence[Line]]) -> Table:
    """Return a table with a row for each stack of which a figure was recorded that was not discarded.

    The Python is that of the run's workers, which older runs do not tell.
    """
    found: dict[Stack, _Seen] = {}
    for lines in runs:
        python = ""
        for line in lines:
            if isinstance(line, Header):
                python = line.python
            if isinstance(line, Measurement) and not line.discarded and line.cell.server:
                _add(found.setdefault(_stack(line, python), _Seen()), line)
    through = [*SERVERS, EXECUTORCH]
    return Table(
        heading="",
        title="",
        header=(
            *("hardware", "device", "driver", "python", "torch", "torchao", TRANSFORMERS),
            *through,
            *("what ran", "last"),
        ),
        rows=tuple(
            (
                *_told(stack),
                *(seen.versions.get(name, _NONE) for name in through),
                "; ".join(f"{name}: {', '.join(recipes)}" for name, recipes in seen.recipes.items()),
                time.strftime("%Y-%m-%d", time.gmtime(seen.last)),
            )
            for stack, seen in sorted(found.items())
        ),
    )


def _stack(line: Measurement, python: str) -> Stack:
    version: Mapping[str, str] = line.packages
    return Stack(
        hardware=line.cell.hardware,
        device=line.device.name,
        driver=str(line.device.detail.get("driver", "")),
        python=python,
        torch=version.get("torch", ""),
        torchao=version.get("torchao", ""),
        transformers=version.get("transformers", ""),
    )


def _add(seen: _Seen, line: Measurement) -> None:
    server = line.cell.server
    seen.recipes.setdefault(server, {})[column_of(line.cell).name] = None
    seen.last = max(seen.last, line.time)
    names = SERVERS[server].distributions if server in SERVERS else (server,)
    name = next((name for name in names if name in line.packages), "")
    if name:
        seen.versions[server] = line.packages[name] + (f" ({name})" if name != server else "")


def _told(stack: Stack) -> tuple[str, ...]:
    return tuple(getattr(stack, name) or _NONE for name in Stack.__dataclass_fields__)
