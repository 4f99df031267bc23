"""What is installed in an environment, distribution by distribution: versions, needs, and whose each file is."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from harness.base.errors import BrokenEnvironment
from harness.runtime.environment import Environment, printed

_SECONDS = 120
HARNESS = "torchao-harness"
"""The harness itself, which workers are given otherwise."""

# The first path that has a distribution wins. Of those named in argv every file is told as well.
_LIST = """
import importlib.metadata, json, os, re, sys, sysconfig
named, found = set(sys.argv[1:]), {}
for one in importlib.metadata.distributions():
    name = re.sub(r"[-_.]+", "-", one.metadata["Name"] or "").lower()
    if not name or name in found:
        continue
    found[name] = {"version": one.version, "requires": one.requires or []}
    if name in named:
        files = [os.path.normpath(os.path.join(str(one.locate_file("")), str(file))) for file in one.files or ()]
        tops = (one.read_text("top_level.txt") or name.replace("-", "_")).split()
        if not files:
            files = [os.path.join(str(one.locate_file("")), top) for top in tops]
        found[name]["files"] = files
print(json.dumps({"found": found, "prefix": sys.prefix, "site": sysconfig.get_path("purelib")}))
"""


@dataclass(frozen=True)
class Distribution:
    """One distribution: ``requirement`` is what pip is told to install it, ``digest`` names what no index vouches for.

    ``requires`` is what it needs, as its metadata says.
    """

    name: str
    version: str
    requirement: str
    digest: str = ""
    requires: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """What stands for it in a lock."""
        return f"{self.name}=={self.version}" + (f" {self.digest}" if self.digest else "")

    def needs(self) -> Iterator[Requirement]:
        """Yield its requirements that count here, no extra being asked for."""
        for line in self.requires:
            try:
                one = Requirement(line)
            except InvalidRequirement:
                # Of old distributions, which no installer looks at either.
                continue
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                yield one


Lock = Mapping[str, Distribution]
"""All distributions of an environment by their names, as the index spells them."""


def lock(environment: Environment) -> dict[str, Distribution]:
    """Return what is installed in an environment, but for the harness itself."""
    found = _listed(environment.python, ())["found"]
    return {
        name: Distribution(name, it["version"], f"{name}=={it['version']}", "", tuple(it["requires"]))
        for name, it in found.items()
        if name != HARNESS
    }


def files(environment: Environment, names: Collection[str]) -> set[str]:
    """Return the paths of everything that these distributions brought."""
    found = _listed(environment.python, tuple(sorted(names)))["found"]
    return {file for name in names for file in found.get(name, {}).get("files", ())}


def prefix(environment: Environment) -> Path:
    """Return the folder that an environment is installed under."""
    return Path(_listed(environment.python, ())["prefix"])


@functools.lru_cache(maxsize=64)
def _listed(python: str, names: tuple[str, ...]) -> Any:
    environ = os.environ | {"PYTHONNOUSERSITE": "1"}
    try:
        result = subprocess.run(
            [python, "-c", _LIST, *names], capture_output=True, text=True, env=environ, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokenEnvironment(f"{python} does not list what is installed: {error}") from error
    if result.returncode:
        raise BrokenEnvironment(f"{python} cannot list what is installed: {result.stderr.strip()[-500:]}")
    return printed(python, result.stdout)


def unmet(them: Lock) -> set[tuple[str, str, str]]:
    """Return what does not hold among distributions: (whose need, of what, in which words); what lacks is not told."""
    return {
        (one.name, canonicalize_name(need.name), f"{canonicalize_name(need.name)}{need.specifier}")
        for one in them.values()
        for need in one.needs()
        if (there := them.get(canonicalize_name(need.name))) is not None and not _holds(need, there.version)
    }


def _holds(need: Requirement, version: str) -> bool:
    try:
        return need.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        # Of old distributions again: nothing can be said of it.
        return True


def lacking(them: Lock) -> set[str]:
    """Return the names of what a distribution needs and is not there: left out on purpose, since it runs."""
    return {name for one in them.values() for need in one.needs() if (name := canonicalize_name(need.name)) not in them}


def changed(old: Lock, new: Lock) -> list[str]:
    """Return the names of what is not the same in both locks."""
    return [name for name in sorted({*old, *new}) if _line(old, name) != _line(new, name)]


def _line(them: Lock, name: str) -> str:
    return them[name].line if name in them else ""


def exchanged(old: Lock, new: Lock, names: Iterable[str]) -> dict[str, Distribution]:
    """Return ``old`` with some distributions as ``new`` has them, or has them not."""
    found = dict(old)
    for name in names:
        found.pop(name, None)
        if name in new:
            found[name] = new[name]
    return found
