"""Two environments that differ in one package: made from requirements, checked, and compared."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from harness.base.errors import BrokenEnvironment, nearest
from harness.base.files import file_digest, is_file
from harness.base.reading import json_value
from harness.base.text import digest, redact
from harness.runtime.environment import Environment, Left, layered, no_limit, overlay, within
from harness.runtime.store import Store

_RESOLVE_SECONDS = 600
_IMPORT_SECONDS = 600
# Imports every top-level module that the distribution named in argv[1] brings, as a worker would find it.
_IMPORT = """
import importlib, importlib.metadata, sys
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

    @property
    def alike(self) -> bool:
        """Whether both sides are one and the same: old against old."""
        return self.old == self.new and not self.contents

    def side(self, name: str) -> Environment:
        return self.old if name == "old" else self.new

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
    """Return two environments, alike in everything but the package of the two requirements.

    A requirement is pip's: ``torchao==0.17.0``, or the path of a wheel; a range stands for the release that pip chooses
    now. Where neither version has dependencies of its own, each side is an overlay of that package alone; otherwise
    each is a virtual environment layered over ``base``, in which pip resolved the requirement. Raises
    BrokenEnvironment, in the resolver's words, for what does not exist, does not install or cannot be imported;
    nothing half-made is left behind. ``left`` are the seconds that there are for it; raises OutOfTime after them.
    """
    wanted = [resolve(requirement, base, left) for requirement in (old, new)]
    names = {canonicalize_name(one.name) for one in wanted}
    if len(names) > 1:
        raise BrokenEnvironment(f"{old} and {new} are two packages: a gate compares two versions of one")
    alone = not any(one.dependencies for one in wanted)
    sides = []
    for one in wanted:
        make_one = overlay if alone else layered
        made = replace(make_one(store, one.requirement, base, one.digest, left), name=f"{one.name}=={one.version}")
        _check_import(store, made, one, left)
        sides.append(made)
    package = names.pop()
    found = differences(sides[0], sides[1])
    contents = {side: one.digest for side, one in zip(("old", "new"), wanted, strict=True) if one.digest}
    if wanted[0].version == wanted[1].version and wanted[0].digest != wanted[1].digest:
        told = " -> ".join(one.digest[:12] or "as released" for one in wanted)
        found.append(f"{package} {wanted[0].version}: other contents under the same version ({told})")
    return Pair(package, sides[0], sides[1], tuple(found), contents)


def resolve(requirement: str, base: Environment, left: Left = no_limit) -> Wanted:
    """Return what pip would install for ``requirement``, without installing it."""
    given = _local(requirement)
    arguments = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-", given]
    report = json_value(_pip(base, arguments, f"{requirement} cannot be had", left))
    try:
        taken = report["install"][0]
        metadata = taken["metadata"]
    except (LookupError, TypeError) as error:
        raise BrokenEnvironment(f"{requirement}: pip resolves it to nothing") from error
    own = [line for line in metadata.get("requires_dist", []) if _applies(line)]
    name, version, contents = metadata["name"], metadata["version"], _contents(given, taken)
    if not contents:
        # What a range stands for changes when another release appears, and environments are kept by requirement.
        extras = ",".join(sorted(Requirement(given).extras))
        given = f"{name}{f'[{extras}]' if extras else ''}=={version}"
    return Wanted(given, name, version, tuple(own), contents)


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
    answer = _pip(base, ["index", "versions", package], f"the releases of {package} cannot be listed")
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


def _local(requirement: str) -> str:
    """Return the absolute path of a wheel, or the requirement as it is, if it is one."""
    if requirement.endswith(".whl") and "@" not in requirement:
        file = Path(requirement).resolve()
        if not file.is_file():
            raise BrokenEnvironment(f"{requirement}: there is no such wheel")
        return str(file)
    try:
        url = urlparse(Requirement(requirement).url or "")
    except InvalidRequirement as error:
        raise BrokenEnvironment(
            f"{requirement!r} is neither a requirement, such as torchao==0.17.0, nor a wheel: {error}"
        ) from error
    if url.scheme == "file" and Path(unquote(url.path)).is_dir():
        raise BrokenEnvironment(f"{requirement}: sources in a folder may change under a gate; build a wheel of them")
    return requirement


def _applies(line: str) -> bool:
    """Return whether a declared dependency is needed here, no extra being asked for."""
    marker = Requirement(line).marker
    return marker is None or marker.evaluate({"extra": ""})


def _check_import(store: Store, environment: Environment, wanted: Wanted, left: Left) -> None:
    """Import the package once in the environment that was made; what passed is remembered."""

    def build(_: Path) -> dict[str, Any]:
        try:
            result = within(
                left,
                [environment.python, "-c", _IMPORT, wanted.name],
                f"importing {wanted.name}",
                env=environment.environ(store),
                timeout=_IMPORT_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise BrokenEnvironment(
                f"the environment of {wanted.requirement} does not work: "
                f"importing {wanted.name} did not end within {_IMPORT_SECONDS} s"
            ) from error
        if result.returncode:
            words = redact(result.stderr.strip())[-2000:]
            raise BrokenEnvironment(f"the environment of {wanted.requirement} does not work:\n{words}")
        return {}

    key = {"python": environment.python, "overlay": str(environment.overlay), "packages": environment.packages()}
    store.get("imported", key, build, label=f"import of {wanted.requirement}")


def _pip(base: Environment, arguments: list[str], what: str, left: Left = no_limit) -> str:
    command = [base.python, "-m", "pip", "--disable-pip-version-check", *arguments]
    try:
        result = within(left, command, "asking pip", timeout=_RESOLVE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise BrokenEnvironment(f"{what}: pip did not answer within {_RESOLVE_SECONDS} s") from error
    if result.returncode:
        words = redact(result.stderr.strip() or result.stdout.strip())
        raise BrokenEnvironment(f"{what}; the resolver says:\n{words[-2000:]}")
    return result.stdout
