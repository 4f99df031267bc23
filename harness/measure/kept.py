"""Figures of a processor that are fixed by files, packages and the machine as it runs: measured once, then kept.

How much memory a process takes at most, which kernels a profile finds, what an engine predicts and what the device can
do at best say nothing new when they are measured again. They are kept in the artifact cache until the machine is
started anew, for the very same code, packages, checkpoint, options and environment. What is timed for its own sake is
never kept, and only sessions that ask for it (``--reuse``) keep anything or find it: gates, calibrations and what is
held against a baseline are about what is measured now.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.base.errors import HarnessError
from harness.base.text import when
from harness.machine import probe
from harness.matrix.plan import Cell
from harness.records.migrations import SCHEMA_VERSION
from harness.records.run import Run
from harness.records.schema import Measurement
from harness.runtime.environment import Environment
from harness.runtime.store import Artifact, Store

_KIND = "figures"
# What asks workers and what they do: other code may find another figure.
_CODE = ("contract", "measure", "servers", "worker")
# Where something lies, how a terminal looks and what tox draws for each of its runs decides no figure.
_WHERE = frozenset(
    (
        *("CI", "HOME", "HOSTNAME", "LOGNAME", "PATH", "PWD", "PYTHONHASHSEED", "PYTHONPATH", "SHELL", "TEMP", "TERM"),
        *("TMP", "TMPDIR", "USER"),
    )
)


class Kept:
    """Keeps figures of a run for later ones, and gives a run those of an earlier one."""

    def __init__(self, store: Store, run: Run, environment: Environment) -> None:
        self._store = store
        self._run = run
        self._environment = environment

    def place(self, cell: Cell, asked: Mapping[str, Any], label: str = "") -> KeptBlock | None:
        """Return where what is ``asked`` of a cell is kept; None where nothing of it is.

        That is on GPUs, for programs, of recipes that a text calibrates, and where a system does not name its start.
        """
        started, on = probe.boot(), cell.hardware
        if on.is_gpu or on.runs != "models" or cell.recipe.calibration or not started:
            return None
        environ = self._environment.environ(self._store)
        key = {
            **asked,
            "started": started,
            "schema": SCHEMA_VERSION,
            "code": _code(),
            "packages": self._environment.decisive(),
            "python": self._environment.interpreter(),
            "variables": {name: value for name, value in environ.items() if name not in _WHERE},
        }
        return KeptBlock(self._store, self._run, key, f"figures of {label or cell.id}")


@dataclass(frozen=True)
class KeptBlock:
    """The figures of one block where they are kept, by all that decides them."""

    store: Store
    run: Run
    key: dict[str, Any]
    label: str

    @property
    def there(self) -> bool:
        """Whether an earlier run has kept something."""
        return self.store.holds(_KIND, self.key)

    def find(self) -> dict[str, Measurement]:
        """Return the records that an earlier run has kept by their names, their details attached to this one.

        Empty where there are none. They say which run measured them, and when.
        """
        found: dict[str, Measurement] = {}

        def use(artifact: Artifact) -> None:
            try:
                facts = artifact.facts
                told = {name: Measurement.model_validate(it) for name, it in facts["records"].items()}
                attached = {name: self.run.attach(Path(name).stem, it) for name, it in facts["attached"].items()}
                run = str(facts["run"])
            except (ValidationError, KeyError, TypeError, AttributeError):
                # Of another harness, which kept them otherwise.
                return
            for name, it in told.items():
                changes = {"attachment": attached.get(it.attachment, ""), "kept_from": run, "kept_time": it.time}
                found[name] = it.model_copy(update={**changes, "time": time.time()})

        self.store.read(_KIND, self.key, use, label=self.label)
        return found

    def keep(self, records: Mapping[str, Measurement]) -> None:
        """Keep what this run has measured, with the details beside it."""
        try:
            attached = {it.attachment: self.run.attached(it.attachment) for it in records.values() if it.attachment}
        except HarnessError:
            return
        told = {name: it.model_dump(mode="json") for name, it in records.items()}
        facts = {"run": self.run.name, "records": told, "attached": attached}
        self.store.replace(_KIND, self.key, lambda *_: facts, label=self.label)


def where_kept(record: Measurement) -> str:
    """Say which run has measured a record that was kept, and when."""
    return f"run {record.kept_from}, {when(record.kept_time or 0.0)}"


@functools.cache
def _code() -> str:
    found = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for path in sorted(path for folder in _CODE for path in (root / folder).glob("*.py")):
        found.update(f"{path.parent.name}/{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()
