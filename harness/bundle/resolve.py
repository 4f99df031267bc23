"""Which distributions a runner still lacks: pip's answer, asked again until nothing is open."""

from __future__ import annotations

import fnmatch
import importlib.util
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from harness.base.files import file_digest
from harness.base.reading import json_file
from harness.bundle.asked import BundleError, Runner, Settings, Target
from harness.contract import guarded


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

    def build_own(self, checkout: Path) -> Path:
        """Return a wheel of a project, built from a copy: nothing is written into its checkout."""
        copy, wheels = self.scratch / "project", self.scratch / "own"
        away = shutil.ignore_patterns(
            ".*", "build", "dist", "*.egg-info", "__pycache__", "docs", "tests", "reference", "runs"
        )
        shutil.copytree(checkout, copy, ignore=away)
        here = importlib.util.find_spec("setuptools") is not None
        self._run("wheel", "--no-deps", *["--no-build-isolation"] * here, "--wheel-dir", str(wheels), str(copy))
        return next(wheels.glob("*.whl"))

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
        for item in json_file(report)["install"]:
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
        done = guarded.run(command)
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
