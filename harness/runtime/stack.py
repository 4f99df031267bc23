"""Full environments: what pip makes of a few requirements over an environment, or of a lock, and the folder of it.

Of the environment below everything stays as it is but what was asked for and what that forces. Each environment is a
virtual environment of its own, kept by what is in it: what is the same as below is linked from there file by file, so
that nothing is ever written below, and the rest is installed by pip.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from harness.base.errors import BrokenEnvironment
from harness.base.reading import json_file
from harness.base.text import digest, redact
from harness.runtime import installed
from harness.runtime.environment import Environment, Left, no_limit, site_folders, within
from harness.runtime.installed import Distribution, Lock
from harness.runtime.store import Store

RESOLVE_SECONDS = 600


@dataclass(frozen=True)
class Resolved:
    """All distributions of an environment to be, and what is to be said of them."""

    lock: Lock
    remarks: tuple[str, ...] = ()


def resolve(
    asked: Sequence[Distribution], base: Environment, left: Left = no_limit, over: Environment | None = None
) -> Resolved:
    """Return ``base``, or ``over``, with the asked distributions, and with what these force and nothing else.

    What needs another version of something that changes is moved too, where any of its releases goes with it; where
    none does it stays, which is said. What ``base`` leaves out although something in it needs it stays left out.
    Raises BrokenEnvironment with pip's reason if what was asked for cannot be had together.
    """
    below = installed.lock(over or base)
    python = Path(over.python) if over else None
    known, absent = installed.unmet(below), installed.lacking(below)
    words = " ".join(one.requirement for one in asked)
    found = _with(below, asked, _report(base, [one.requirement for one in asked], words, left, python), absent)
    remarks: list[str] = []
    while broken := sorted(installed.unmet(found) - known):
        moved = sorted({name for name, _, _ in broken} - {one.name for one in asked})
        try:
            roots = [*(one.requirement for one in asked), *moved]
            again = _with(below, asked, _report(base, roots, words, left, python), absent)
        except BrokenEnvironment:
            again = found
        if installed.unmet(again) - known >= set(broken):
            remarks = [f"{name} {found[name].version} asks for {need} and stays as it is" for name, _, need in broken]
            break
        found = again
        known |= set(broken)
    return Resolved(found, tuple(remarks))


def of_file(file: Path, base: Environment, left: Left = no_limit) -> Resolved:
    """Return the distributions that a lock names, each with its version; dependencies are not looked for."""
    arguments = ["--ignore-installed", "--no-deps", "-r", str(file)]
    report = _report(base, arguments, file.name, left)
    if not report:
        raise BrokenEnvironment(f"{file}: names no package")
    found = {one.name: one for one in report}
    found.pop(installed.HARNESS, None)
    return Resolved(found)


def make(store: Store, them: Lock, base: Environment, name: str, left: Left = no_limit) -> Environment:
    """Return the virtual environment that holds these distributions and no others.

    Raises BrokenEnvironment with the installer's own words, or OutOfTime; nothing half-made is left behind.
    """
    below = installed.lock(base)
    kept = {it for it, one in them.items() if it in below and one.line == below[it].line}
    wanted = [one for it, one in sorted(them.items()) if it not in kept]

    def build(folder: Path) -> None:
        target = folder / "venv"
        made = subprocess.run(
            [base.python, "-m", "venv", "--without-pip", str(target)], capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise BrokenEnvironment(f"environment {name}: venv failed: {made.stderr.strip()[-500:]}")
        _link(base, target, {*below, installed.HARNESS} - kept)
        if wanted:
            arguments = ["install", "--quiet", "--no-deps", "--no-warn-conflicts", *(one.requirement for one in wanted)]
            pip(base, arguments, f"{name} could not be installed", left, python=target / "bin" / "python")

    key = {"lock": [one.line for _, one in sorted(them.items())], "python": base.python, "of": base.interpreter()}
    artifact = store.get("venv", key, build, label=f"environment {name}", verify=False)
    return replace(base, name=name, python=str(artifact.folder / "venv" / "bin" / "python"), overlay=None)


def _with(
    below: Lock, asked: Sequence[Distribution], report: Sequence[Distribution], absent: Collection[str]
) -> dict[str, Distribution]:
    found = dict(below)
    needed = {canonicalize_name(need.name) for one in asked for need in one.needs()}
    own = {one.name for one in report}
    for one in report:
        # What was left out on purpose is asked for by what moves as it was by what it was.
        if one.name not in absent or (one.name in needed and not _was_needed(one.name, below, own)):
            found[one.name] = one
    # Pip reports no wheel of a version that is installed, and a release only where it is another.
    found |= {one.name: one for one in asked if one.digest or one.name not in found}
    found.pop(installed.HARNESS, None)
    return found


def _was_needed(name: str, below: Lock, moved: Collection[str]) -> bool:
    """Return whether what moves needed something before, and ran without it."""
    return any(canonicalize_name(need.name) == name for it in moved if it in below for need in below[it].needs())


def _report(
    base: Environment, arguments: Sequence[str], words: str, left: Left, python: Path | None = None
) -> list[Distribution]:
    """Return what pip would install."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        command = ["install", "--dry-run", "--report", str(file), *arguments]
        pip(base, command, f"{words} could not be installed", left, python)
        report = json_file(file)
    return [distribution(taken) for taken in report.get("install", ())]


def distribution(taken: Mapping[str, Any]) -> Distribution:
    """Return one entry of pip's report."""
    metadata = taken["metadata"]
    name, version = canonicalize_name(metadata["name"]), metadata["version"]
    info = taken.get("download_info", {})
    direct = taken.get("is_direct", False)
    return Distribution(
        name=name,
        version=version,
        requirement=f"{name} @ {info['url']}" if direct else f"{name}=={version}",
        digest=digest(info) if direct else "",
        requires=tuple(metadata.get("requires_dist", ())),
    )


def _link(base: Environment, target: Path, without: Collection[str]) -> None:
    """Link what is installed below into a new virtual environment, ``without`` some distributions."""
    left_out = installed.files(base, without)
    site = next((target / "lib").glob("python*/site-packages"))
    for below in map(Path, reversed(site_folders(base))):
        if below.is_dir():
            _mirror(below, site, left_out)
    above = installed.prefix(base)
    beside = installed.files(base, set(installed.lock(base)) - set(without))
    for file in map(Path, beside):
        # Libraries and data that stand beside the packages; scripts name the interpreter that they were made for.
        if file.is_relative_to(above) and file.relative_to(above).parts[0] in ("lib", "share", "etc"):
            at = target / file.relative_to(above)
            if not at.exists() and file.is_file():
                at.parent.mkdir(parents=True, exist_ok=True)
                _one(str(file), str(at))


def _mirror(source: Path, target: Path, left_out: Collection[str]) -> None:
    for folder, inner, names in os.walk(source):
        inner[:] = [name for name in inner if os.path.join(folder, name) not in left_out]
        at = os.path.join(target, os.path.relpath(folder, source))
        compiled = os.path.basename(folder) == "__pycache__"
        made = False
        for name in names:
            path = os.path.join(folder, name)
            plain = os.path.join(os.path.dirname(folder), f"{name.partition('.')[0]}.py") if compiled else path
            if plain in left_out or path in left_out:
                continue
            if not made:
                os.makedirs(at, exist_ok=True)
                made = True
            _one(path, os.path.join(at, name))


def _one(source: str, target: str) -> None:
    if os.path.lexists(target):
        os.unlink(target)
    os.symlink(source, target)


def pip(
    base: Environment, arguments: Sequence[str], what: str, left: Left = no_limit, python: Path | None = None
) -> str:
    """Run the pip of ``base``, for another interpreter if one is named, and return what it printed.

    Raises BrokenEnvironment that says ``what`` and pip's reason, or OutOfTime.
    """
    command = [base.python, "-m", "pip", "--disable-pip-version-check"]
    command += ["--python", str(python)] if python else []
    try:
        result = within(left, [*command, *arguments], "asking pip", timeout=RESOLVE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise BrokenEnvironment(f"{what}: pip did not answer within {RESOLVE_SECONDS} s") from error
    if result.returncode:
        # What contradicts what is told among what is no error.
        why = re.search(r"The conflict is caused by:.*?(?=\n\s*\n|\Z)", result.stdout, re.DOTALL)
        words = result.stderr.strip() or result.stdout.strip()
        words = f"{words}\n{why.group(0)}" if why and why.group(0) not in words else words
        raise BrokenEnvironment(f"{what}; the resolver says:\n{reason(words)}")
    return result.stdout


_VERSIONS = re.compile(r"\(from versions: ([^)]*)\)")
_MOST_VERSIONS = 6


def reason(words: str) -> str:
    """Return what pip says of a failure as one paragraph: without its advice, and most of a list of versions."""
    said = re.sub(r"(?m)^WARNING:.*$", "", redact(words))
    said = re.sub(r"(?s)To fix this you could try to:.*?(?=\n?ERROR|\Z)", "", said)
    said = re.sub(r"ERROR: ResolutionImpossible:.*\n?\S*", "", said)

    def newest(match: re.Match[str]) -> str:
        known = match.group(1).split(", ")
        if len(known) <= _MOST_VERSIONS:
            return match.group(0)
        return f"(the newest of {len(known)} versions: {', '.join(known[-_MOST_VERSIONS:])})"

    said = _VERSIONS.sub(newest, said)
    lines = [re.sub(r"^(ERROR:\s*)+", "", line.strip()) for line in said.splitlines()]
    lines = list(dict.fromkeys(line for line in lines if line))
    return " ".join(line if line.endswith((".", ":", ";", ",")) else f"{line};" for line in lines).strip(" ;")[-2000:]
