"""Two environments mixed: of some packages the new version, of all others the old one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from packaging.version import Version

from harness.base.errors import BrokenEnvironment
from harness.runtime import environment_pair, installed, stack
from harness.runtime.environment import Environment
from harness.runtime.environment_pair import Pair
from harness.runtime.installed import Lock
from harness.runtime.stack import Resolved
from harness.runtime.store import Store


@dataclass(frozen=True)
class Mixtures:
    """What lies between an old and a new environment; ``names`` are the packages that differ, those asked for first."""

    store: Store
    base: Environment
    old: Lock
    new: Lock
    names: tuple[str, ...]

    def told(self, name: str) -> str:
        """Return a package with both versions, in words."""
        before, after = (it[name].version if name in it else "not installed" for it in (self.old, self.new))
        return f"{name} {before} -> {after}"

    def requirements(self, chosen: Collection[str] = ()) -> str:
        """Return what a gate is asked for whose side has the ``chosen`` packages new."""
        them = installed.exchanged(self.old, self.new, chosen)
        return " ".join(f"{name}=={them[name].version}" for name in self.names if name in them)

    def ruled_out(self, chosen: Collection[str]) -> str:
        """Return why the ``chosen`` packages cannot be new by themselves, or an empty text.

        So it is where a package asks for another version of one that is there, and does in neither environment.
        """
        them = installed.exchanged(self.old, self.new, chosen)
        known = installed.unmet(self.old) | installed.unmet(self.new)
        broken = sorted(installed.unmet(them) - known)
        return ", ".join(f"{name} {them[name].version} asks for {need}" for name, _, need in broken)

    def pair(self, chosen: Collection[str]) -> Pair:
        """Return the old environment, and it with the ``chosen`` packages new."""
        them = installed.exchanged(self.old, self.new, chosen)
        return self._against(Resolved(them), " ".join(sorted(chosen)), self.requirements(chosen))

    def release(self, name: str, release: str) -> Pair:
        """Return the old environment, and it with another release of one package and what that forces."""
        wanted = environment_pair.resolve(f"{name}=={release}", self.base)
        over = stack.make(self.store, self.old, self.base, "old")
        return self._against(stack.resolve([wanted.distribution], self.base, over=over), name, f"{name}=={release}")

    def releases(self, name: str) -> list[str]:
        """Return the releases of a package, the old version first and the new one last; none where these are none."""
        if name not in self.old or name not in self.new or self.old[name].digest or self.new[name].digest:
            return []
        before, after = self.old[name].version, self.new[name].version
        try:
            known = environment_pair.releases(name, self.base)
            found = environment_pair.between(known, *sorted((before, after), key=Version))
        except BrokenEnvironment:
            return []
        return found if Version(before) < Version(after) else found[::-1]

    def _against(self, new: Resolved, package: str, told: str) -> Pair:
        sides = [Resolved(self.old), new]
        return environment_pair.of(self.store, sides, [self.requirements(), told], self.base, package)


def of(store: Store, pair: Pair, base: Environment) -> Mixtures:
    """Return what lies between the two environments of a gate.

    Raises BrokenEnvironment where they differ in one package alone, which a range of its releases tells more of.
    """
    if not pair.locks:
        raise BrokenEnvironment(
            f"{pair.old.name} and {pair.new.name} differ in {pair.package} alone: search its releases, "
            f"as in bisect {pair.package} FIRST..LAST"
        )
    old, new = pair.locks["old"], pair.locks["new"]
    changed = installed.changed(old, new)
    asked = [name for name in pair.package.split() if name in changed]
    return Mixtures(store, base, old, new, (*asked, *(name for name in changed if name not in asked)))
