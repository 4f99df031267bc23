"""A gate's part on one device of a cluster: which units it has, and what is told to the planner as it happens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.base.errors import HarnessError
from harness.base.reading import json_value
from harness.cluster.node import STREAM, Events
from harness.gate import identity
from harness.gate.plan import Unit
from harness.records.run import Run
from harness.records.schema import Line

VARIABLE = "HARNESS_GATE_PART"
"""What a node's gate is given beside its command line: JSON of a :class:`Part`."""


@dataclass(frozen=True)
class Part:
    """Units by their ids, and how many blocks each must have: those that the whole gate's verdicts still need.

    ``alike`` are the environments that other devices measure with: no gate compares what was not installed alike.
    One without units is of no cluster: it asks for nothing and tells nobody.
    """

    units: tuple[str, ...] = ()
    least: Mapping[str, int] = field(default_factory=dict)
    alike: Mapping[str, Any] = field(default_factory=dict)
    events: Events | None = None

    @classmethod
    def of_this_process(cls) -> Part | None:
        """Return what the planner gave to this node's gate; None where this is no node's."""
        if STREAM not in os.environ or VARIABLE not in os.environ:
            return None
        given = json_value(os.environ.pop(VARIABLE))
        return cls(tuple(given["units"]), given["least"], given["alike"], Events())

    def text(self) -> str:
        """Return it as :data:`VARIABLE` holds it."""
        return json.dumps({"units": self.units, "least": dict(self.least), "alike": dict(self.alike)})

    def has(self, unit: Unit) -> bool:
        return unit.id in self.units

    def more(self, unit: Unit) -> bool:
        """Return whether the whole gate needs more blocks of a unit, whatever this part's verdicts are."""
        return unit.done < self.least.get(unit.id, 0)

    def check(self, made_of: Mapping[str, Any]) -> None:
        """Raise HarnessError where the environments are not those of the other devices."""
        here = {name: made_of[name] for name in self.alike}
        if differs := identity.differing(dict(self.alike), here):
            raise HarnessError(f"this node's environments are not those of the others: {'; '.join(differs)}")

    def heard(self, line: Line, run: Run) -> None:
        """Tell the planner of a line that is on this node's disk."""
        if self.events:
            self.events.record(line.model_dump_json(), run.folder, getattr(line, "attachment", ""))

    def wrote(self, text: str) -> None:
        """Tell the planner how far the units have come: gate.json of this part."""
        self.say("gate", text=text)

    def tell(self, words: str) -> None:
        """Tell what is being done."""
        self.say("said", words=words)

    def say(self, kind: str, **what: Any) -> None:
        if self.events:
            self.events.say(kind, **what)
