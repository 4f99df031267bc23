"""What a bundle is asked for: requirements of pyproject.toml, the settings beside it, and the runner's own packages."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from harness.base.errors import HarnessError, nearest
from harness.base.reading import toml_value

DISTRIBUTION = "torchao-harness"
PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


SETTINGS = Path(__file__).with_name("bundle.toml")


_UNITS = {"": 1, "b": 1}


_UNITS |= {f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)}


_UNITS |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)}


class BundleError(HarnessError):
    """A bundle cannot be made as asked."""


def parse_size(text: str) -> int:
    """Return the bytes in ``text``: a number and a unit, as in ``60MiB`` or ``500MB``; BundleError if it is no size."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].lower() not in _UNITS:
        raise BundleError(f"{text!r} is no size: give a number and a unit, such as 60MiB, 500MB or 1GiB")
    unit = _UNITS[match[2].lower()]
    size = int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if size < 1:
        raise BundleError(f"{text!r} is no size for a part: it must be at least one byte")
    return size


@dataclass(frozen=True)
class Target:
    """The runner's Python (``3.12``) and the newest platform tag that its C library takes."""

    python: str
    platform: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"3\.\d+", self.python):
            raise BundleError(f"--python {self.python}: give major and minor version, such as 3.12")
        if not re.fullmatch(r"manylinux_2_\d+_\w+", self.platform):
            raise BundleError(f"--platform {self.platform}: give a tag such as manylinux_2_39_x86_64")

    @property
    def machine(self) -> str:
        """The processor's name, as ``platform.machine()`` gives it."""
        return self.platform.split("_", 3)[3]

    def environment(self) -> dict[str, str]:
        """The variables that a requirement's marker is read with, as they are on the runner."""
        return {name: str(value) for name, value in default_environment().items()} | {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }

    def pip_options(self) -> list[str]:
        """pip's options for this target. pip takes a platform tag by the letter, so each older one is named too."""
        newest = int(self.platform.split("_")[2])
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(newest, 4, -1)]
        tags += [f"{old}_{self.machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
        options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", self.python]
        return options + [option for tag in tags for option in ("--platform", tag)]


@dataclass(frozen=True)
class Settings:
    """bundle.toml's tables for an extra: each maps a name or pattern to the reason."""

    stays: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    carried: Mapping[str, str] = field(default_factory=dict)
    source_only: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read_settings(path: Path, *extras: str) -> Settings:
    """Read ``every`` and each ``extra.EXTRA`` of a bundle.toml; BundleError names the file and the key at fault."""
    tables = _read_toml(path)
    merged: dict[str, dict[str, Any]] = {name: {} for name in Settings.__dataclass_fields__}
    for where, table in (
        ("every", tables.get("every", {})),
        *((f"extra.{extra}", tables.get("extra", {}).get(extra, {})) for extra in extras),
    ):
        for key, entries in table.items():
            if key not in merged:
                raise BundleError(f"{path}: {where}.{key} is not known; {nearest(key, merged)}")
            for name, reason in entries.items():
                reasons = [reason] if key != "files" else reason.values() if isinstance(reason, dict) else [None]
                if not all(isinstance(text, str) and text for text in reasons):
                    raise BundleError(f"{path}: {where}.{key}.{name}: a reason (text) is wanted")
                merged[key][canonicalize_name(name)] = reason
    return Settings(**merged)


def named_extras(pyproject: Path, extra: str) -> list[str]:
    """Return an extra and those of the same project that it names, as ``harness[a,b]``, and that these name."""
    project = _project(pyproject)
    own = canonicalize_name(project.get("name", ""))
    found = [canonicalize_name(extra)]
    for name in found:
        for line in project.get("optional-dependencies", {}).get(name, []):
            with contextlib.suppress(InvalidRequirement):
                requirement = Requirement(line)
                if canonicalize_name(requirement.name) == own:
                    found += [it for it in map(canonicalize_name, sorted(requirement.extras)) if it not in found]
    return [str(name) for name in found]


def is_own(pyproject: Path) -> bool:
    """Say whether a project file is the harness' own, or one that was made of it."""
    return canonicalize_name(_project(pyproject).get("name", "")) == DISTRIBUTION


def read_requirements(pyproject: Path, extra: str, environment: Mapping[str, str]) -> list[Requirement]:
    """Return what the project requires with ``extra``, less what its markers exclude in ``environment``.

    An extra may name others of the same project (``harness[a,b]``). Raises BundleError for a missing file, a broken
    one, an unknown extra (with the nearest names) and a requirement that cannot be read.
    """
    project = _project(pyproject)
    extras = {canonicalize_name(name): lines for name, lines in project.get("optional-dependencies", {}).items()}
    pending, seen, found = [("", line) for line in project.get("dependencies", [])], {extra}, []

    def ask(name: str) -> None:
        if canonicalize_name(name) not in extras:
            raise BundleError(f"{pyproject} has no extra {name!r}; {nearest(name, extras)}")
        pending.extend((name, line) for line in extras[canonicalize_name(name)])

    ask(extra)
    while pending:
        source, line = pending.pop(0)
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise BundleError(f"{pyproject}: {line!r} is no requirement ({error})") from error
        if requirement.marker and not requirement.marker.evaluate({**environment, "extra": source}):
            continue
        if canonicalize_name(requirement.name) == canonicalize_name(project.get("name", "")):
            for name in requirement.extras - seen:
                seen.add(name)
                ask(name)
        else:
            requirement.marker = None
            found.append(requirement)
    return found


def read_runner(path: Path) -> dict[str, Version | None]:
    """Read what the runner has from ``pip freeze``'s or ``pip list --format=freeze``'s output.

    The version is None for a bare name, ``name @ url`` and anything else that does not say it. BundleError names
    the line that cannot be read.
    """
    packages: dict[str, Version | None] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise BundleError(f"--runner {path}: {error.strerror}; write it there with `pip freeze`") from error
    for number, line in enumerate(lines, start=1):
        text = line.partition(" #")[0].strip()
        if not text or text.startswith(("#", "-")):
            continue
        match = re.fullmatch(r"([A-Za-z0-9][\w.-]*?)(?:\s*={2,3}\s*(\S+)|\s+@\s+.*)?", text)
        try:
            if not match:
                raise InvalidVersion(text)
            packages[canonicalize_name(match[1])] = Version(match[2]) if match[2] else None
        except ValueError as error:
            # InvalidVersion, or a number of more digits than Python reads.
            raise BundleError(f"{path}, line {number}: {line!r} is not of the form name==version or name") from error
    return packages


def _project(pyproject: Path) -> dict[str, Any]:
    """Return the ``project`` table of a file; of the harness itself what is installed says the same."""
    if pyproject != PROJECT or pyproject.is_file():
        return dict(_read_toml(pyproject).get("project", {}))
    try:
        said = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise BundleError(f"{DISTRIBUTION} is not installed and {pyproject} is not there: give --pyproject") from error
    table: dict[str, Any] = {"name": DISTRIBUTION, "dependencies": [], "optional-dependencies": {}}
    table["optional-dependencies"] = {name: [] for name in said.get_all("Provides-Extra") or []}
    for line in said.get_all("Requires-Dist") or []:
        marker = Requirement(line).marker
        asked = re.findall(r'extra == "([^"]+)"', str(marker or ""))
        for name in asked:
            table["optional-dependencies"].setdefault(name, []).append(line)
        if not asked:
            table["dependencies"].append(line)
    return table


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return toml_value(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from error


Runner = Mapping[str, Version | None]
