"""Two environments that differ in a package, in several, or as two locks do: made, checked, and compared."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from harness.base.errors import BrokenEnvironment, nearest
from harness.base.files import file_digest, is_file
from harness.base.memory import check_limits
from harness.base.reading import json_value
from harness.base.text import digest, redact
from harness.runtime import asked, installed, stack, wheels
from harness.runtime.environment import DECISIVE, Environment, Left, no_limit, overlay, within
from harness.runtime.installed import Distribution, Lock
from harness.runtime.stack import Resolved
from harness.runtime.store import Store

_IMPORT_SECONDS = 600
# Imports every top-level module that the distribution named in argv[1] brings, as a worker would find it.
_IMPORT = """
import gc, importlib, importlib.metadata, sys
gc.disable()
files = [str(file) for file in importlib.metadata.distribution(sys.argv[1]).files or ()]
tops = {file.split("/")[0].removesuffix(".py") for file in files
        if file.endswith(".py") and file.count("/") == file.endswith("/__init__.py")}
for name in sorted(name for name in tops if name.isidentifier()):
    try:
        importlib.import_module(name)
    except BaseException as error:
        sys.exit(f"import {name}: {type(error).__name__}: {error}")
"""


@dataclass(frozen=True)
class Wanted:
    """One side's requirement as the resolver understood it.

    ``digest`` names the contents of what no index vouches for (a wheel, a URL, a commit); it is empty for a release,
    whose ``requirement`` is then pinned to what pip chose.
    """

    requirement: str
    name: str
    version: str
    dependencies: tuple[str, ...]
    digest: str

    @property
    def distribution(self) -> Distribution:
        """It as one of an environment's."""
        return Distribution(
            canonicalize_name(self.name), self.version, self.requirement, self.digest, self.dependencies
        )


@dataclass(frozen=True)
class Pair:
    """The old and the new environment, and every distribution that differs between them.

    ``contents`` has a digest for each side whose package did not come from an index: another build may carry the same
    version.
    """

    package: str
    old: Environment
    new: Environment
    differences: tuple[str, ...]
    contents: Mapping[str, str] = field(default_factory=dict)
    locks: Mapping[str, Lock] = field(default_factory=dict)
    """Both sides' distributions, where each side is an environment of its own."""

    @property
    def alike(self) -> bool:
        """Whether both sides are one and the same: old against old."""
        return self.old == self.new and not self.contents

    def side(self, name: str) -> Environment:
        return self.old if name == "old" else self.new

    def lacking(self, *names: str) -> str:
        """Say that neither side has any of these distributions; empty where one of them has one."""
        return self.old.lacking(*names) if self.new.lacking(*names) else ""

    def apart(self, name: str) -> dict[str, str | None]:
        """Return what tells one side's environment from the other's: differing distributions, and its contents."""
        sides = {side: _canonical(self.side(side)) for side in ("old", "new")}
        found: dict[str, str | None] = {
            package: sides[name].get(package)
            for package in sorted(sides["old"].keys() | sides["new"].keys())
            if sides["old"].get(package) != sides["new"].get(package)
        }
        if contents := self.contents.get(name):
            found[f"contents of {self.package}"] = contents
        return found


def make(store: Store, old: str, new: str, base: Environment, left: Left = no_limit) -> Pair:
    """Return two environments, alike in everything but what the two sides were asked for, and what that forces.

    A side is one of pip's requirements, as ``torchao==0.17.0``, several of them with blanks between, the path of a
    wheel, or that of a lock; a range stands for the release that pip chooses now. One package that has no dependencies
    of its own in either version is an overlay of it alone. Otherwise each side is a full virtual environment: what pip
    resolves over ``base`` (harness.runtime.stack), or of two locks what they name and nothing else; requirements
    beside a lock are that lock's environment with these instead, and what they force. Raises
    BrokenEnvironment, in the resolver's words, for what does not exist, does not go together, does not install or
    cannot be imported; nothing half-made is left behind. ``left`` are the seconds that there are for it; raises
    OutOfTime after them.
    """
    if asked.is_lock(old) and asked.is_lock(new):
        return _of_locks(store, old, new, base, left)
    if asked.is_lock(old) or asked.is_lock(new):
        return _of_lock_and_moved(store, old, new, base, left)
    sides = [asked.parts(text) for text in (old, new)]
    names = _same_names(sides, old, new)
    wanted = [[resolve(one, base, left) for one in side] for side in sides]
    told = [" ".join(f"{one.name}=={one.version}" for one in side) for side in wanted]
    if len(names) == 1 and not any(one.dependencies for side in wanted for one in side):
        return _of_overlays(store, wanted[0][0], wanted[1][0], base, left)
    resolved = [stack.resolve([one.distribution for one in side], base, left) for side in wanted]
    return of(store, resolved, told, base, " ".join(names), left)


def _same_names(sides: Sequence[Sequence[str]], old: str, new: str) -> list[str]:
    """Return the packages that both sides name, each once; raises BrokenEnvironment for others, before pip is asked."""
    given = [[asked.name_of(one) for one in side] for side in sides]
    names = [sorted(set(side)) for side in given]
    if names[0] != names[1]:
        if len(names[0]) == len(names[1]) == 1:
            raise BrokenEnvironment(f"{old} and {new} are two packages: a gate compares two versions of one")
        alone = sorted(set(names[0]) ^ set(names[1]))
        raise BrokenEnvironment(f"{', '.join(alone)}: named for one side alone; say which version the other has")
    if len(given[0]) + len(given[1]) > 2 * len(names[0]):
        raise BrokenEnvironment(f"{old} to {new}: names a package twice on one side")
    return names[0]


def _of_overlays(store: Store, old: Wanted, new: Wanted, base: Environment, left: Left) -> Pair:
    sides = []
    for one in (old, new):
        made = overlay(store, one.requirement, base, one.digest, left)
        made = replace(made, name=f"{one.name}=={one.version}")
        _check_import(store, made, one.name, one.requirement, left)
        sides.append(made)
    digests = (old.digest, new.digest)
    contents = {side: it for side, it in zip(("old", "new"), digests, strict=True) if it}
    package = canonicalize_name(old.name)
    found = differences(*sides) + _other_contents(package, (old.version, new.version), digests)
    return Pair(package, sides[0], sides[1], tuple(found), contents)


def _of_locks(store: Store, old: str, new: str, base: Environment, left: Left) -> Pair:
    files = [asked.lock_file(text) for text in (old, new)]
    resolved = [stack.of_file(file, base, left) for file in files]
    names = installed.changed(resolved[0].lock, resolved[1].lock)
    # Two locks of one name, in two folders, are told apart by these.
    several = files[0].name == files[1].name
    told = [f"{file.parent.name}/{file.name}" if several else file.name for file in files]
    return of(store, resolved, told, base, " ".join(names) or files[0].name, left)


def _of_lock_and_moved(store: Store, old: str, new: str, base: Environment, left: Left) -> Pair:
    """Return the environment of a lock, and the same one with other versions of what the other side names."""
    lock, requirements = (old, new) if asked.is_lock(old) else (new, old)
    file = asked.lock_file(lock)
    wanted = [resolve(one, base, left) for one in asked.parts(requirements)]
    named = stack.of_file(file, base, left)
    over = stack.make(store, named.lock, base, file.name, left)
    moved = stack.resolve([one.distribution for one in wanted], base, left, over=over)
    sides = [
        (named, file.name),
        (moved, f"{file.name} with {' '.join(f'{one.name}=={one.version}' for one in wanted)}"),
    ]
    resolved, told = zip(*(sides if lock == old else reversed(sides)), strict=True)
    package = " ".join(sorted({canonicalize_name(one.name) for one in wanted}))
    return of(store, resolved, told, base, package, left)


def of(
    store: Store,
    resolved: Sequence[Resolved],
    told: Sequence[str],
    base: Environment,
    package: str,
    left: Left = no_limit,
) -> Pair:
    """Return two environments of resolved distributions; ``told`` is what each is called."""
    locks = {side: one.lock for side, one in zip(("old", "new"), resolved, strict=True)}
    changed = installed.changed(locks["old"], locks["new"])
    sides = []
    for one, name in zip(resolved, told, strict=True):
        made = stack.make(store, one.lock, base, name, left)
        for it in sorted({*package.split(), *DECISIVE} & {*changed} & one.lock.keys()):
            _check_import(store, made, it, f"{it}=={one.lock[it].version}", left)
        sides.append(made)
    found = differences(*sides)
    contents: dict[str, str] = {}
    for side, them in locks.items():
        if direct := [them[name].line for name in changed if name in them and them[name].digest]:
            contents[side] = digest(direct)
    for name in changed:
        if name in locks["old"] and name in locks["new"]:
            before, after = locks["old"][name], locks["new"][name]
            found += _other_contents(name, (before.version, after.version), (before.digest, after.digest))
    for name, one in zip(told, resolved, strict=True):
        found += [f"{name}: {remark}" for remark in one.remarks]
    return Pair(package, sides[0], sides[1], tuple(found), contents, locks)


def _other_contents(package: str, versions: tuple[str, str], digests: tuple[str, str]) -> list[str]:
    if versions[0] != versions[1] or digests[0] == digests[1]:
        return []
    told = " -> ".join(one[:12] or "as released" for one in digests)
    return [f"{package} {versions[0]}: other contents under the same version ({told})"]


def resolve(requirement: str, base: Environment, left: Left = no_limit) -> Wanted:
    """Return what pip would install for ``requirement``, without installing it."""
    (given,) = asked.parts(requirement)
    if is_file(given) and (said := wheels.metadata(Path(given), base)):
        return _wanted(given, said, file_digest(Path(given)))
    arguments = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-", given]
    report = json_value(stack.pip(base, arguments, f"{requirement} cannot be had", left))
    try:
        taken = report["install"][0]
        metadata = taken["metadata"]
    except (LookupError, TypeError) as error:
        raise BrokenEnvironment(f"{requirement}: pip resolves it to nothing") from error
    name, version, contents = metadata["name"], metadata["version"], _contents(given, taken)
    if not contents:
        # What a range stands for changes when another release appears, and environments are kept by requirement.
        extras = ",".join(sorted(Requirement(given).extras))
        given = f"{name}{f'[{extras}]' if extras else ''}=={version}"
    return _wanted(given, metadata, contents)


def _wanted(given: str, metadata: Mapping[str, Any], contents: str) -> Wanted:
    own = [line for line in metadata.get("requires_dist", []) if _applies(line)]
    return Wanted(given, metadata["name"], metadata["version"], tuple(own), contents)


def _contents(given: str, taken: dict[str, Any]) -> str:
    """Return a digest of what pip takes from elsewhere than an index, where a version names its contents for good."""
    file = Path(given)
    if is_file(file):
        return file_digest(file)
    if not taken.get("is_direct"):
        return ""
    return digest(taken.get("download_info"))


def releases(package: str, base: Environment) -> list[str]:
    """Return the releases of ``package`` that pip finds for this interpreter, oldest first."""
    answer = stack.pip(base, ["index", "versions", package], f"the releases of {package} cannot be listed")
    line = next((line for line in answer.splitlines() if line.startswith("Available versions:")), "")
    found = [part.strip() for part in line.partition(":")[2].split(",") if part.strip()]
    return sorted(found, key=Version)


def between(known: list[str], first: str, last: str) -> list[str]:
    """Return the releases from ``first`` to ``last``, both of which must be among ``known``."""
    try:
        low, high = Version(first), Version(last)
    except InvalidVersion as error:
        raise BrokenEnvironment(f"{first}..{last}: {error}") from error
    for given, version in ((first, low), (last, high)):
        if version not in map(Version, known):
            raise BrokenEnvironment(f"{given} is not a release that pip finds; {nearest(given, known)}")
    if low >= high:
        raise BrokenEnvironment(f"{first}..{last}: the first release must be the older one")
    return [name for name in known if low <= Version(name) <= high]


def differences(old: Environment, new: Environment) -> list[str]:
    """Return one line for every distribution that is not the same on both sides."""
    before, after = _canonical(old), _canonical(new)
    found = []
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            found.append(f"{name} {before.get(name, 'not installed')} -> {after.get(name, 'not installed')}")
    if old.variables != new.variables:
        changed = [name for name in old.variables | new.variables if old.variables.get(name) != new.variables.get(name)]
        found.append(f"environment variables: {', '.join(sorted(changed))}")
    return found


def _canonical(environment: Environment) -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in environment.packages().items()}


def _applies(line: str) -> bool:
    """Return whether a declared dependency is needed here, no extra being asked for."""
    marker = Requirement(line).marker
    return marker is None or marker.evaluate({"extra": ""})


def _check_import(store: Store, environment: Environment, name: str, requirement: str, left: Left) -> None:
    """Import the package once in the environment that was made; what passed is remembered."""

    def build(_: Path) -> dict[str, Any]:
        # It inherits what this process may have, and would not fail for want of it but hang.
        check_limits(worker=True)
        try:
            result = within(
                left,
                [environment.python, "-c", _IMPORT, name],
                f"importing {name}",
                env=environment.environ(store),
                timeout=_IMPORT_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise BrokenEnvironment(
                f"the environment of {requirement} does not work: "
                f"importing {name} did not end within {_IMPORT_SECONDS} s"
            ) from error
        if result.returncode:
            words = redact(result.stderr.strip())[-2000:]
            raise BrokenEnvironment(f"the environment of {requirement} does not work:\n{words}")
        return {}

    key = {"python": environment.python, "overlay": str(environment.overlay), "packages": environment.packages()}
    store.get("imported", key, build, label=f"import of {requirement}")
