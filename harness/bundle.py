"""Collects what a runner without a network needs into parts that can be carried to it one by one.

    python -m harness bundle --python 3.12 --extra h100 --runner FREEZE.txt --part-size 60MiB OUT/

OUT then holds ``part-00.bin``, ``part-01.bin`` and so on, ``manifest.json`` (every part's SHA-256, every package's
version) and ``install.py`` (see bundle_install.py), which joins, verifies, unpacks and precompiles them on the runner.

What the extra requires is resolved by pip for the runner's Python and platform. Each package that comes out is then
decided by this rule, which the run prints for every package where the runner and a requirement disagree:

1. named in bundle.toml's ``left_out``: not carried;
2. named in its ``stays`` (torch, all that is compiled against it, CUDA's libraries): as the runner has it, always;
3. the runner has it in a version that every requirement takes, and ``carried`` does not name it: not carried. Where
   that version is not known, it is believed to do unless one exact version is wanted;
4. else: carried. Where the runner has another version, the carried one stands before it.

To choose the carried ones so that they go with the others, pip is shown the rest as stand-ins: empty wheels of the
version that the runner has (or, where that is not known, of the one that pip would have taken).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import errno
import fnmatch
import hashlib
import io
import itertools
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from harness import bundle_install
from harness.artifacts import file_digest
from harness.bundle_install import FORMAT, VERSION
from harness.errors import HarnessError, nearest

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
SETTINGS = Path(__file__).with_name("bundle.toml")
MAX_PARTS = 1000
BLOCK = 16 << 20  # bytes before compression: small enough that a runner's cores share the work, at 2 % more to carry
_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", start=1)}
_UNITS |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)}


class BundleError(HarnessError):
    """A bundle cannot be made as asked."""


# ---------------------------------------------------------------- what is asked for


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
    """bundle.toml's tables for one extra: each maps a name or pattern to the reason."""

    stays: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    carried: Mapping[str, str] = field(default_factory=dict)
    source_only: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read_settings(path: Path, extra: str) -> Settings:
    """Read ``every`` and ``extra.EXTRA`` of a bundle.toml; BundleError names the file and the key at fault."""
    tables = _read_toml(path)
    merged: dict[str, dict[str, Any]] = {name: {} for name in Settings.__dataclass_fields__}
    for where, table in (
        ("every", tables.get("every", {})),
        (f"extra.{extra}", tables.get("extra", {}).get(extra, {})),
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


def read_requirements(pyproject: Path, extra: str, environment: Mapping[str, str]) -> list[Requirement]:
    """Return what the project requires with ``extra``, less what its markers exclude in ``environment``.

    An extra may name others of the same project (``harness[a,b]``). Raises BundleError for a missing file, a broken
    one, an unknown extra (with the nearest names) and a requirement that cannot be read.
    """
    project = _read_toml(pyproject).get("project", {})
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
        except InvalidVersion as error:
            raise BundleError(f"{path}, line {number}: {line!r} is not of the form name==version or name") from error
    return packages


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise BundleError(f"{path}: {error}") from error


# ---------------------------------------------------------------- which packages


class Decision(StrEnum):
    """What becomes of a package, by the rule in this module's docstring."""

    LEFT_OUT = "left out"
    STAYS = "as the runner has it, by rule"
    RUNNER = "the runner's"
    CARRIED = "carried"


_FIXED = (Decision.LEFT_OUT, Decision.STAYS)  # whatever the requirements say


@dataclass(frozen=True)
class Ask:
    """That ``by`` (a package, or "" for the project itself) has this requirement."""

    by: str
    requirement: Requirement

    def takes(self, version: Version) -> bool:
        """Whether a package of this version will do."""
        return self.requirement.specifier.contains(version, prereleases=True)

    @property
    def pins(self) -> bool:
        """Whether it names one exact version."""
        return any(s.operator in ("==", "===") and not s.version.endswith(".*") for s in self.requirement.specifier)

    @property
    def caps(self) -> bool:
        """Whether it refuses versions for being too new."""
        return any(s.operator in ("==", "===", "~=", "<", "<=") for s in self.requirement.specifier)


@dataclass(frozen=True)
class Found:
    """A package as the resolver chose it."""

    version: Version
    requires: tuple[Requirement, ...] = ()
    sha256: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table of decisions; ``runner`` is ``-`` if the runner lacks the package, ``?`` if it has any."""

    package: str
    wanted: str
    runner: str
    decision: Decision
    reason: str


@dataclass(frozen=True)
class Plan:
    """The packages to carry, and the decisions worth a look."""

    carried: dict[str, Found]
    rows: list[Row]


class ResolverFailed(BundleError):
    """pip found no set of packages; ``conflict`` says whether because requirements contradict each other."""

    def __init__(self, message: str, *, conflict: bool) -> None:
        super().__init__(message)
        self.conflict = conflict


Runner = Mapping[str, Version | None]
Resolver = Callable[[Sequence[Requirement], Mapping[str, Version]], dict[str, Found]]


def decide(name: str, asks: Iterable[Ask], runner: Runner, settings: Settings) -> Decision:
    """Apply the rule to one package that somebody asks for."""
    if _reason(name, settings.left_out):
        return Decision.LEFT_OUT
    if _reason(name, settings.stays):
        return Decision.STAYS
    if name not in runner or _reason(name, settings.carried):
        return Decision.CARRIED
    version = runner[name]
    satisfied = all(ask.takes(version) if version else not ask.pins for ask in asks)
    return Decision.RUNNER if satisfied else Decision.CARRIED


def _reason(name: str, table: Mapping[str, str]) -> str:
    """Return the reason that ``table`` gives for ``name``, by name or pattern, or ""."""
    return next((reason for pattern, reason in table.items() if fnmatch.fnmatchcase(name, pattern)), "")


@dataclass(frozen=True)
class Planner:
    """Chooses what is carried for ``roots`` so that it goes with what is not."""

    roots: Sequence[Requirement]
    runner: Runner
    settings: Settings
    environment: Mapping[str, str]
    resolver: Resolver

    def plan(self) -> Plan:
        """Return the packages to carry. Raises ResolverFailed with pip's own words.

        A first resolution, bound to the runner's torch alone, tells who asks for what. Then it is resolved anew with
        the runner's versions, less those that the pinned roots refuse; if that is impossible, less those that any
        package of the first resolution refuses.
        """
        torch = self.runner.get("torch")
        first = self._resolve({"torch": torch} if torch else {})
        asks = self._walk(first, lambda name: self._decide(name) in _FIXED)
        pinned = {"", *(canonicalize_name(root.name) for root in self.roots if Ask("", root).pins)}
        few = self._refused(asks, lambda ask: ask.by in pinned)
        many = self._refused(asks, lambda ask: True)
        try:
            return self._settle(first, few)
        except ResolverFailed as error:
            if not error.conflict or few == many:
                raise
        return self._settle(first, many)

    def _decide(self, name: str, asks: Iterable[Ask] = ()) -> Decision:
        return decide(name, asks, self.runner, self.settings)

    def _refused(self, asks: Mapping[str, list[Ask]], heard: Callable[[Ask], bool]) -> set[str]:
        """Return what the runner has, but not as it is asked for."""
        return {
            name
            for name, wanted in asks.items()
            if name in self.runner and self._decide(name, filter(heard, wanted)) is Decision.CARRIED
        }

    def _settle(self, found: dict[str, Found], refused: set[str]) -> Plan:
        """Resolve with stand-ins for all that is not carried, until no decision changes; ``refused`` are carried."""
        stand_ins: dict[str, Version] = {}
        while True:

            def kept(name: str, refused: set[str] = refused) -> bool:
                return name not in refused and self._decide(name) is not Decision.CARRIED

            asks = self._walk(found, kept)
            wrong = self._refused({name: asks[name] for name in asks.keys() & stand_ins.keys()}, lambda ask: True)
            new = {name: self._stand_in(name, found[name], asks[name]) for name in asks if kept(name)}
            if not wrong and new.keys() <= stand_ins.keys():
                break
            refused = refused | wrong
            stand_ins = {name: version for name, version in (new | stand_ins).items() if name not in refused}
            found = self._resolve(stand_ins)
        carried = {name: found[name] for name in sorted(asks) if name not in stand_ins}
        return Plan(carried, self._rows(asks, carried))

    def _stand_in(self, name: str, found: Found, asks: Iterable[Ask]) -> Version:
        """Return the version to show pip for what is not carried: the runner's, unless a rule overrules a pin.

        Its local part keeps it apart from real ones.
        """
        version = self.runner.get(name)
        overruled = name != "torch" and self._decide(name) in _FIXED
        if version is None or (overruled and not all(ask.takes(version) for ask in asks)):
            version = found.version
        return version if version.local else Version(f"{version}+runner")

    def _resolve(self, stand_ins: Mapping[str, Version]) -> dict[str, Found]:
        """Resolve for the runner. pip reads markers as they hold here; what only holds there is asked for by name."""
        asked = list(self.roots)
        while True:
            found = self.resolver(asked, stand_ins)
            unheard = [
                ask.requirement
                for name, wanted in self._walk(found, stand_ins.__contains__).items()
                for ask in wanted
                if name not in found or not (name in stand_ins or ask.takes(found[name].version))
            ]
            more = [requirement for requirement in map(_without_marker, unheard) if requirement not in asked]
            if not more:
                return found
            asked += more

    def _walk(self, found: Mapping[str, Found], closed: Callable[[str], bool]) -> dict[str, list[Ask]]:
        """Return what is asked of every package that the roots lead to on the runner, not looking into closed ones."""
        asks: dict[str, list[Ask]] = {}
        pending = [Ask("", root) for root in self.roots]
        seen: dict[str, set[str]] = {}
        while pending:
            ask = pending.pop()
            name = canonicalize_name(ask.requirement.name)
            asks.setdefault(name, []).append(ask)
            if name not in found or closed(name):
                continue
            extras = {"", *ask.requirement.extras} - seen.get(name, set())
            seen.setdefault(name, set()).update(extras)
            for requirement in found[name].requires if extras else ():
                marker = requirement.marker
                if marker is None or any(marker.evaluate({**self.environment, "extra": extra}) for extra in extras):
                    pending.append(Ask(name, requirement))
        return asks

    def _rows(self, asks: Mapping[str, list[Ask]], carried: Mapping[str, Found]) -> list[Row]:
        """Return a row for all that is left out, and for all of which the runner has, or may have, a wrong version."""
        rows = []
        for name, wanted in sorted(asks.items()):
            version = self.runner.get(name)
            doubtful = [ask for ask in wanted if (not ask.takes(version) if version else ask.caps)]
            if name in carried and name in self.runner:
                decision, reason = Decision.CARRIED, f"{carried[name].version} stands before it"
                if chosen := _reason(name, self.settings.carried):
                    reason += f": {chosen}"
            elif name in carried or (name in self.runner and not doubtful):
                continue
            else:
                decision = self._decide(name)
                reason = _reason(name, self.settings.left_out) or _reason(name, self.settings.stays)
            text = {f"{ask.requirement.specifier or 'any'} ({ask.by or 'the extra'})" for ask in doubtful or wanted}
            has = str(version or ("?" if name in self.runner else "-"))
            rows.append(Row(name, ", ".join(sorted(text)), has, decision, reason))
        return rows


def _without_marker(requirement: Requirement) -> Requirement:
    plain = Requirement(str(requirement))
    plain.marker = None
    return plain


# ---------------------------------------------------------------- pip


@dataclass(frozen=True)
class Pip:
    """This interpreter's pip, configured by its environment, at work for ``target`` in the folder ``scratch``."""

    target: Target
    scratch: Path

    def build(self, name: str) -> None:
        """Build the wheel of a package that is published as source only; it must be one for any machine."""
        wheels = self.scratch / "built"
        self._run("wheel", "--no-deps", "--no-binary", name, "--wheel-dir", str(wheels), name)
        for wheel in wheels.glob("*.whl"):
            if not wheel.name.endswith("-none-any.whl"):
                raise BundleError(f"{name} was built as {wheel.name}, for this machine only: it cannot be carried")

    def resolve(self, asked: Sequence[Requirement], stand_ins: Mapping[str, Version]) -> dict[str, Found]:
        """Return all that ``asked`` needs; an empty wheel stands for each of ``stand_ins``. Raises ResolverFailed."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        for name, version in stand_ins.items():
            write_empty_wheel(folder, name, version)
        bounds = folder / "constraints.txt"
        bounds.write_text("".join(f"{name}=={version}\n" for name, version in stand_ins.items()), encoding="utf-8")
        report = folder / "report.json"
        options = ["--dry-run", "--ignore-installed", "--target", str(folder / "none"), "--report", str(report)]
        options += [*self.target.pip_options(), "--constraint", str(bounds), *self._links(folder)]
        self._run("install", *options, *(str(requirement) for requirement in asked))
        found: dict[str, Found] = {}
        for item in json.loads(report.read_text(encoding="utf-8"))["install"]:
            metadata = item["metadata"]
            hashes = item["download_info"].get("archive_info", {}).get("hashes", {})
            requires = tuple(Requirement(line) for line in metadata.get("requires_dist", ()))
            found[canonicalize_name(metadata["name"])] = Found(
                Version(metadata["version"]), requires, hashes.get("sha256", "")
            )
        return found

    def download(self, packages: Mapping[str, Found]) -> dict[str, Path]:
        """Download exactly these wheels; return each one's path. BundleError where one is not the one resolved."""
        folder = self.scratch / "wheels"
        names = [f"{name}=={found.version}" for name, found in packages.items()]
        if names:
            self._run(
                "download", "--no-deps", "--dest", str(folder), *self.target.pip_options(), *self._links(), *names
            )
        wheels: dict[str, Path] = {parse_wheel_filename(path.name)[0]: path for path in folder.glob("*.whl")}
        for name, found in packages.items():
            if name not in wheels or (found.sha256 and file_digest(wheels[name]) != found.sha256):
                raise BundleError(f"{name} {found.version}: the wheel downloaded is not the one resolved; run it again")
        return {name: wheels[name] for name in packages}

    def _links(self, *more: Path) -> list[str]:
        (self.scratch / "built").mkdir(exist_ok=True)
        return [option for folder in (self.scratch / "built", *more) for option in ("--find-links", str(folder))]

    def _run(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [
                line
                for line in (done.stdout + done.stderr).splitlines()
                if line.strip() and not line.startswith("WARNING")
            ]
            conflict = "ResolutionImpossible" in done.stderr or "No matching distribution" in done.stderr
            raise ResolverFailed(f"pip {arguments[0]} failed:\n  " + "\n  ".join(said[-25:]), conflict=conflict)


def write_empty_wheel(folder: Path, name: str, version: Version) -> None:
    """Write a wheel with a name, a version and nothing else."""
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


# ---------------------------------------------------------------- from wheels to parts


@dataclass(frozen=True)
class Entry:
    """A file of the bundle: where it goes, and where its bytes are (in ``wheel``, unless ``data`` holds them)."""

    path: str
    size: int
    executable: bool
    wheel: Path
    member: str
    data: bytes | None = None

    @property
    def native(self) -> bool:
        """Whether it is a shared library."""
        return self.path.endswith(".so") or ".so." in self.path


def wheel_entries(wheel: Path, left: Mapping[str, str]) -> tuple[list[Entry], dict[str, list[str]]]:
    """Return what of ``wheel`` is carried, as pip would lay it out, and the files that each pattern of ``left`` leaves.

    Raises BundleError for a file that would be written outside the target.
    """
    entries = []
    matched: dict[str, list[str]] = {pattern: [] for pattern in left}
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            patterns = [pattern for pattern in left if fnmatch.fnmatchcase(info.filename, pattern)]
            for pattern in patterns:
                matched[pattern].append(info.filename)
            path = _installed_path(info.filename)
            if patterns or path is None:
                continue
            try:
                bundle_install.safe_path(Path(), path)
            except bundle_install.InstallError as error:
                raise BundleError(f"{wheel.name}: {error}") from error
            executable = bool(info.external_attr >> 16 & 0o100) or path.startswith("bin/")
            entries.append(Entry(path, info.file_size, executable, wheel, info.filename))
        gone = {name for names in matched.values() for name in names}
        return [_revised(entry, archive, gone) for entry in entries], matched


def _installed_path(member: str) -> str | None:
    """Return where pip would put a wheel's file below its target, None for headers."""
    top, _, rest = member.partition("/")
    if not top.endswith(".data"):
        return member
    scheme, _, path = rest.partition("/")
    return {"purelib": path, "platlib": path, "data": path, "scripts": f"bin/{path}"}.get(scheme)


def _revised(entry: Entry, archive: zipfile.ZipFile, gone: set[str]) -> Entry:
    """Return ``entry`` with a RECORD that no longer names what is gone, or a script that finds its interpreter."""
    data = None
    if gone and re.fullmatch(r"[^/]+\.dist-info/RECORD", entry.path):
        lines = archive.read(entry.member).decode("utf-8").splitlines(keepends=True)
        data = "".join(line for line in lines if next(csv.reader([line]), [""])[0] not in gone).encode()
    elif entry.path.startswith("bin/") and (script := archive.read(entry.member)).startswith(b"#!python"):
        data = b"#!/usr/bin/env python3" + script[script.index(b"\n") :]
    if data is None:
        return entry
    return dataclasses.replace(entry, size=len(data), data=data)


def merge(wheels: Iterable[Sequence[Entry]]) -> list[Entry]:
    """Return every file once. Where two wheels hold the same path, the later one's stays, as with pip."""
    return list({entry.path: entry for entries in wheels for entry in entries}.values())


def blocks(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Sort files into blocks of about BLOCK bytes, alike beside alike; a larger file is a block of its own."""
    result: list[list[Entry]] = []
    room = 0
    for entry in sorted(entries, key=lambda e: (not e.native, PurePosixPath(e.path).suffix, e.path)):
        if not result or entry.size > room:
            result.append([])
            room = BLOCK
        result[-1].append(entry)
        room -= entry.size
    return result


def pack(block: Sequence[Entry]) -> bytes:
    """Return the files of one block as a compressed tar archive, the same bytes for the same files every time."""
    raw = io.BytesIO()
    with contextlib.ExitStack() as stack:
        archives = {wheel: stack.enter_context(zipfile.ZipFile(wheel)) for wheel in {entry.wheel for entry in block}}
        tar = stack.enter_context(tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT))
        for entry in block:
            member = tarfile.TarInfo(entry.path)
            member.size, member.mode = entry.size, 0o755 if entry.executable else 0o644
            content = io.BytesIO(entry.data) if entry.data is not None else archives[entry.wheel].open(entry.member)
            with content:
                tar.addfile(member, content)
    return lzma.compress(raw.getbuffer(), preset=9)


def write_parts(folder: Path, entries: Sequence[Entry], part_size: int) -> dict[str, Any]:
    """Compress ``entries`` into equal parts, none above ``part_size``; return what the manifest says of them."""
    sorted_blocks = blocks(entries)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        packed = list(pool.map(pack, sorted_blocks))
    total = sum(map(len, packed))
    count = max(1, -(-total // part_size))
    if count > MAX_PARTS:
        raise BundleError(
            f"--part-size of {part_size} bytes is too small: {total} bytes would be {count} parts, above {MAX_PARTS}; "
            f"give at least {-(-total // MAX_PARTS)}B"
        )
    stream = b"".join(packed)
    size = -(-total // count)
    parts = []
    for number, start in enumerate(range(0, total, size)):
        data = stream[start : start + size]
        name = f"part-{number:02d}.bin"
        (folder / name).write_bytes(data)
        parts.append({"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    offsets = itertools.accumulate(map(len, packed), initial=0)
    return {
        "sha256": hashlib.sha256(stream).hexdigest(),
        "size": total,
        "unpacked_size": sum(entry.size for entry in entries),
        "files": len(entries),
        "parts": parts,
        "blocks": [{"offset": offset, "size": len(data)} for offset, data in zip(offsets, packed, strict=False)],
    }


# ---------------------------------------------------------------- the command


def make(
    out: Path,
    *,
    target: Target,
    extra: str,
    part_size: int,
    runner: Runner,
    pyproject: Path = PROJECT,
    settings_file: Path = SETTINGS,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Make the bundle in ``out`` and return its manifest.

    ``out`` appears, or replaces an older bundle, only when it is whole. Raises BundleError for all that a user can
    mend, and OSError for what the system refuses.
    """
    out = out.resolve()
    _check_out(out)
    settings = read_settings(settings_file, extra)
    roots = read_requirements(pyproject, extra, target.environment())
    if not roots:
        raise BundleError(
            f"extra {extra!r} of {pyproject} requires nothing for Python {target.python}: no bundle is needed"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(out) as scratch, _scratch(out) as fresh:
        pip = Pip(target, scratch)
        for name in settings.source_only:
            pip.build(name)
        say(f"resolving {', '.join(map(str, roots))}")
        start = time.perf_counter()
        chosen = Planner(roots, runner, settings, target.environment(), pip.resolve).plan()
        say(table(chosen.rows))
        say(f"{len(chosen.carried)} packages to carry, resolved in {time.perf_counter() - start:.0f} s")
        wheels = pip.download(chosen.carried)
        entries, packages = _collect(wheels, chosen, settings, say)
        start = time.perf_counter()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "extra": extra,
            "python": target.python,
            "platform": target.platform,
            "machine": target.machine,
            **write_parts(fresh, entries, part_size),
            "packages": packages,
            "decisions": [vars(row) for row in chosen.rows],
        }
        (fresh / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        shutil.copyfile(Path(bundle_install.__file__), fresh / "install.py")
        _put(fresh, out)
    say(f"{manifest['files']} files compressed in {time.perf_counter() - start:.0f} s")
    for part in manifest["parts"]:
        say(f"{out / part['name']}  {part['size']} bytes  sha256 {part['sha256']}")
    say(f"carry these and manifest.json and install.py, then there: python{target.python} install.py PARTS TARGET")
    return manifest


def _collect(
    wheels: Mapping[str, Path], chosen: Plan, settings: Settings, say: Callable[[str], None]
) -> tuple[list[Entry], list[dict[str, Any]]]:
    """Return all files to carry, and what the manifest says of each package."""
    contents, packages = [], []
    for name, wheel in wheels.items():
        entries, left = wheel_entries(wheel, settings.files.get(name, {}))
        contents.append(entries)
        for pattern in (pattern for pattern, files in left.items() if not files):
            say(f"warning: {pattern!r} is to be left out of {name}, but {wheel.name} has no such file")
        packages.append(
            {
                "name": name,
                "version": str(chosen.carried[name].version),
                "wheel": wheel.name,
                "sha256": file_digest(wheel),
                "from": "built from source" if name in settings.source_only else "published wheel",
                "left": sorted(file for files in left.values() for file in files),
            }
        )
    return merge(contents), packages


def table(rows: Sequence[Row]) -> str:
    """Return the decisions as columns of text, under a heading."""
    believed = [row.package for row in rows if row.decision is Decision.RUNNER]
    lines = [("package", "wanted", "runner has", "decision", "why")]
    lines += [
        (row.package, row.wanted, row.runner, row.decision.value, row.reason)
        for row in rows
        if row.decision is not Decision.RUNNER
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(4)] + [0]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if believed:
        text.append(f"not carried, the runner's version being unknown but believed to do: {', '.join(believed)}")
    return "\n".join(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="a folder that is not there yet, is empty or holds a bundle"
    )
    parser.add_argument("--python", required=True, metavar="3.N", help="the runner's Python")
    parser.add_argument("--extra", required=True, help="which of the project's extras the runner needs")
    parser.add_argument("--part-size", default="60MiB", metavar="SIZE", help="largest part, such as 60MiB (default)")
    parser.add_argument(
        "--runner", type=Path, metavar="FREEZE.txt", help="`pip freeze` of the runner; without it: all is carried"
    )
    parser.add_argument(
        "--platform", default="manylinux_2_39_x86_64", help="newest platform tag that the runner takes (%(default)s)"
    )
    parser.add_argument(
        "--pyproject", type=Path, default=PROJECT, help="the project file that has the extra (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; return 0, or 2 with one message on standard error."""
    try:
        make(
            args.out,
            target=Target(args.python, args.platform),
            extra=args.extra,
            part_size=parse_size(args.part_size),
            runner=read_runner(args.runner) if args.runner else {},
            pyproject=args.pyproject,
        )
    except HarnessError as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        hint = ": free some space or name another folder" if error.errno == errno.ENOSPC else ""
        print(f"bundle: {error}{hint}", file=sys.stderr)
        return 2
    return 0


def _check_out(out: Path) -> None:
    """Raise BundleError if something other than a bundle is in the way."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        known = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise BundleError(f"{out} holds something that is no bundle: name another folder, or empty it")


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """Yield a folder beside ``out``, on the same disk, that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(fresh: Path, out: Path) -> None:
    """Put the folder ``fresh`` in the place of ``out``."""
    fresh.chmod(0o755)
    if out.exists():
        old = out.with_name(f"{fresh.name}.old")
        os.replace(out, old)
        shutil.rmtree(old, ignore_errors=True)
    os.replace(fresh, out)
