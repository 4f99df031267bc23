"""What an engine's kernels took on each side of a gate, by kind: why a figure of speed got worse."""

from __future__ import annotations

from harness.base.errors import RecordError
from harness.judge import layers, profile
from harness.judge.gatefile import ProfileChange
from harness.judge.layers import Step
from harness.judge.profile import Profile
from harness.judge.series import SIDES
from harness.records.place import Place
from harness.records.run import Run
from harness.records.schema import Line, Measurement


class Profiles:
    """Holds the newest profile of each side of each engine against the other's."""

    def __init__(self, run: Run, old: str) -> None:
        """``old`` is what the old side is called in words."""
        self._run = run
        self._name = old
        self._found: dict[Place, dict[str, tuple[dict[str, Profile], dict[str, Step]]]] = {}
        self._changes: dict[tuple[Place, str], ProfileChange] = {}

    @property
    def changes(self) -> list[ProfileChange]:
        """What each engine's kernels took before and after, by phase."""
        return list(self._changes.values())

    def add(self, line: Line) -> None:
        """Take a record in; of one that is no profile of a side, or whose profile cannot be read, nothing is told."""
        if not isinstance(line, Measurement) or line.metric != "kernel_time" or "side" not in line.flags:
            return
        try:
            kept = profile.kept(self._run.attached(line.attachment))
        except (RecordError, ValueError):
            return
        place = Place.of(line).named.cell
        sides = self._found.setdefault(place, {})
        sides[str(line.flags["side"])] = profile.phases(kept), layers.phases(kept)
        if not all(side in sides for side in SIDES):
            return
        (before, steps_before), (after, steps_after) = (sides[side] for side in SIDES)
        for phase in after:
            if phase in before:
                old, new = before[phase], after[phase]
                words = f"{phase}: {profile.told(new, old, self._name)}"
                if phase in steps_before and phase in steps_after:
                    words += f"; {layers.told(steps_after[phase], steps_before[phase], self._name)}"
                self._changes[place, phase] = ProfileChange(place, phase, old.kinds(), new.kinds(), words)
