"""What this machine can run and why not the rest: package by package, device, server, emulator; with what mends it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.base import shipped
from harness.base.errors import HarnessError
from harness.base.files import default_root
from harness.base.network import hub_answers
from harness.base.reading import toml_value
from harness.base.terminal import fold
from harness.machine import here, probe
from harness.matrix.hardware import Hardware
from harness.matrix.load import load
from harness.matrix.plan import Matrix
from harness.servers.registry import SERVERS
from harness.servers.registry import names as server_names

_DISTRIBUTION = "torchao-harness"
# Distributions whose import has another name.
_IMPORTS = {"lm-eval": "lm_eval", "nvidia-ml-py": "pynvml", "executorch": "executorch.runtime"}
_IMPORT_SECONDS = 120
_LEAST_DISK_GB = 10
_HUB_SECONDS = 2
_INDENT = " " * 30
_TOOLS = "emulators and phones"
_PACKAGES = "packages of "
# A line and a half of names.
_SHORT = 120
WIDTH = 100
"""Columns of what is printed."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ``problem`` is empty where it is as it should be, ``fix`` advice or commands.

    Of a fix each line is shown by itself, so that a command stays whole.
    """

    group: str
    name: str
    found: str
    problem: str = ""
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m harness doctor``."""
    parser.add_argument(
        "--all", action="store_true", help="each package and each recipe, and where it runs and why not elsewhere"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--imports", action="store_true", help="import each package as well, in a process of its own")
    how.add_argument("--quick", action="store_true", help="only look at the packages' versions: the default")
    parser.add_argument("--matrix", type=Path, metavar="FILE", help="whose cells to look at")


def run(args: argparse.Namespace) -> int:
    """Print what can run here; returns 0 if at least one hardware's cells can, else 1."""
    matrix = here.whole(load(args.matrix or shipped.matrix(Path.cwd()), server_names()))
    with ThreadPoolExecutor() as pool:
        # What waits for others waits at once: for the hub, drivers, and packages that are imported.
        parts = [
            pool.submit(look)
            for look in (machine, lambda: devices(matrix), emulators, lambda: packages(imported=args.imports))
        ]
        findings = [it for part in parts for it in part.result()]
    able = summary(findings, matrix)
    told = [*findings, *recipes(matrix), *able] if args.all else in_short(findings, matrix, able)
    print("\n".join(rendered(told)))
    if not args.all:
        print(f"\n{_IN_SHORT}")
    if not args.imports:
        print(f"\n{textwrap.fill(_NOT_IMPORTED, WIDTH)}")
    return 0 if any(not it.problem for it in able) else 1


_NOT_IMPORTED = (
    "Packages were looked at and not imported; doctor --imports tries each, which takes half a minute or more."
)


_IN_SHORT = "doctor --all tells of each package and each recipe."


def in_short(findings: Sequence[Finding], matrix: Matrix, able: Sequence[Finding]) -> list[Finding]:
    """Return what fits a screen: one line for an extra, and for servers that one thing stands in the way of."""
    found = [it for it in findings if it.group == "machine"]
    tools = [it for it in findings if it.group == _TOOLS]
    absent = [it for it in tools if it.problem]
    lack = f"not here: {', '.join(it.name for it in absent)}" if absent else ""
    install = "apt-get install " + " ".join(it.fix.split()[-1] for it in absent)
    found.append(Finding("machine", _TOOLS, ", ".join(it.name for it in tools), lack, install))
    groups = dict.fromkeys(it.group for it in findings if it.group.startswith(_PACKAGES))
    for group in groups:
        found.append(_packages_in_short(group.removeprefix(_PACKAGES), [it for it in findings if it.group == group]))
    for hardware in here.looked_for(matrix):
        names = [it.name for it in matrix.recipes.values() if not it.refusal(hardware)]
        told = f"{len(names)} of {len(matrix.recipes)}: {', '.join(names)}"
        found.append(Finding("recipes", f"for {hardware}", textwrap.shorten(told, _SHORT, placeholder=" ...")))
    return [*found, *_servers_in_short(able)]


def _packages_in_short(name: str, findings: Sequence[Finding]) -> Finding:
    """Return one finding for the packages of an extra, with what mends the first of them."""
    wrong = [it for it in findings if it.problem]
    same = {problem: [it.name for it in wrong if it.problem == problem] for problem in (it.problem for it in wrong)}
    problem = "; ".join(f"{problem}: {', '.join(names)}" for problem, names in same.items())
    fix = "\n".join(dict.fromkeys(it.fix for it in wrong))
    return Finding("packages", name, f"{len(findings)} packages", problem, fix)


def _servers_in_short(able: Sequence[Finding]) -> list[Finding]:
    """Return one finding for all servers of a hardware that the same thing stands in the way of."""
    same: dict[Finding, list[Finding]] = {}
    for it in able:
        hardware = it.name.partition(" through ")[0]
        same.setdefault(replace(it, name=hardware, found="") if it.problem else it, []).append(it)
    return [
        alike[0] if len(alike) == 1 else replace(one, problem=f"through {_servers(alike)}: {one.problem}")
        for one, alike in same.items()
    ]


def _servers(able: Sequence[Finding]) -> str:
    return ", ".join(it.name.partition(" through ")[2] for it in able)


def rendered(findings: Iterable[Finding]) -> list[str]:
    """Return the findings as lines of at most WIDTH columns, a heading a group."""
    lines: list[str] = []
    group = ""
    for it in findings:
        if it.group != group:
            group = it.group
            lines += ["", group] if lines else [group]
        head = f"  {'no ' if it.problem else 'ok '} {it.name:<24}"
        texts = [(head, it.problem or it.found)]
        if it.problem and it.fix:
            texts += [(f"{_INDENT} ->", line) for line in it.fix.splitlines()]
        for start, text in texts:
            lines += fold(f"{start} {text}", WIDTH, hang=len(_INDENT) - len(start) + len(start.lstrip()) + 1)
    return lines


def machine() -> list[Finding]:
    """Look at memory, disk, the compiler that torch.compile needs, and the hub."""
    memory = psutil.virtual_memory()
    cache = default_root()
    there = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    disk = f"{free:.0f} GB free for artifacts at {cache}"
    small = f"{disk}; a real model's checkpoints take {_LEAST_DISK_GB} GB and more" if free < _LEAST_DISK_GB else ""
    if not os.access(there, os.W_OK):
        small = f"{there} cannot be written"
    compiler = shutil.which("g++") or shutil.which("clang++")
    hub = hub_answers(_HUB_SECONDS)
    return [
        Finding("machine", "processor", probe.host().name),
        Finding("machine", "memory", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"),
        Finding("machine", "disk", disk, small, "name another folder with --cache DIR"),
        Finding(
            "machine",
            "C++ compiler",
            compiler or "",
            "" if compiler else "none: torch.compile and vLLM's CPU engine need one",
            "apt-get install g++",
        ),
        Finding(
            "machine",
            "Hugging Face hub",
            "answers",
            "" if hub else "does not answer: models and tasks come from folders, packages or random weights",
            "--model FOLDER and --data FOLDER, or set HTTPS_PROXY",
        ),
    ]


def devices(matrix: Matrix) -> list[Finding]:
    """Look for the device behind each hardware marker; of the GPUs for the one that is here, or else the first."""
    return [
        Finding("devices", it.name, it.meaning, probe.missing(it), _device_fix(it)) for it in here.looked_for(matrix)
    ]


def _device_fix(hardware: Hardware) -> str:
    there = "run on a machine that has one, with its driver, and there:\n" if hardware.is_gpu else ""
    return there + shipped.installing(hardware.install)


def emulators() -> list[Finding]:
    """Look for what runs programs for phones."""
    known = (
        ("qemu-aarch64-static", "emulates ARM Linux", "apt-get install qemu-user-static"),
        ("adb", "reaches an Android phone", "apt-get install adb"),
        ("aarch64-linux-gnu-g++", "builds for ARM Linux", "apt-get install g++-aarch64-linux-gnu"),
    )
    return [
        Finding(_TOOLS, name, at := shutil.which(name) or "", "" if at else f"not here: {use}", fix)
        for name, use, fix in known
    ]


def requirements() -> dict[str, list[Requirement]]:
    """Return what the project asks for by extra; the planner's own are under an empty name."""
    texts = _of_the_checkout()
    if not texts:
        try:
            texts = importlib.metadata.requires(_DISTRIBUTION) or []
        except importlib.metadata.PackageNotFoundError as error:
            raise HarnessError(f"{_DISTRIBUTION} is not installed here; pip install -e . in its folder") from error
    found: dict[str, list[Requirement]] = {}
    for text in texts:
        asked = Requirement(text)
        marker = str(asked.marker or "")
        extra = marker.split("extra ==")[1].strip().strip("\"'") if "extra ==" in marker else ""
        if canonicalize_name(asked.name) == _DISTRIBUTION:
            continue  # another name of other extras
        found.setdefault(extra, []).append(asked)
    return found


def _of_the_checkout() -> list[str]:
    """Return the requirements of the checkout that this runs from, which may be newer than what was installed of it."""
    path = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if not path.is_file():
        return []
    project = toml_value(path.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].items()
    return [*project["dependencies"], *(f"{text} ; extra == '{extra}'" for extra, them in extras for text in them)]


def packages(*, imported: bool = True) -> list[Finding]:
    """Look at each package that the project asks for: is it there, in range, and does it import."""
    asked = requirements()
    findings = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        names = {canonicalize_name(it.name) for them in asked.values() for it in them}
        here = [name for name in sorted(names) if _version(name)]
        errors = dict(zip(here, pool.map(_import_error, here), strict=True)) if imported else {}
    for extra, them in asked.items():
        group = _PACKAGES + (f"[{extra}]" if extra else "the planner")
        for it in them:
            version = _version(it.name)
            fix = _install(extra) if extra else f"pip install '{it.name}{it.specifier}'"
            if version is None:
                problem = "not installed"
            elif not it.specifier.contains(version, prereleases=True):
                problem = f"{version} is installed, {it.specifier} is needed"
            else:
                problem = errors.get(canonicalize_name(it.name), "")
            findings.append(Finding(group, it.name, version or "", problem, fix))
    return findings


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_error(name: str) -> str:
    """Return why a package does not import in a process of its own, or an empty string."""
    module = _IMPORTS.get(name) or _module(name)
    if not module:
        return ""  # a package of stubs or of programs
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-c", f"import {module}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_IMPORT_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return f"import {module} took over {_IMPORT_SECONDS} s"
    if done.returncode == 0:
        return ""
    words = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit {done.returncode}")
    return f"import {module} fails: {words.strip()[:200]}"


def _module(name: str) -> str:
    """Return the module that a distribution is imported as; empty if it has none."""
    usual = name.replace("-", "_")
    files = importlib.metadata.files(name) or []
    tops = {part.parts[0].removesuffix(".py") for part in files if part.suffix == ".py" and ".." not in part.parts}
    modules = sorted(it for it in tops if it.isidentifier() and not it.startswith("_"))
    return usual if usual in modules or not files else next(iter(modules), "")


def _install(extra: str) -> str:
    """Return how an extra is installed; that of a server with pins of its own goes into an environment of its own."""
    if extra in SERVERS and SERVERS[extra].own_environment:
        return shipped.installing(
            f"in an environment of its own, since it pins packages that the others have otherwise:\n"
            f"python -m venv ENV && ENV/bin/pip install -e '.[{extra}]'\n"
            f"pytest --environment {extra}=ENV/bin/python"
        )
    return shipped.installing(f"pip install -e '.[{extra}]'" + (f"\nor: tox run -e {extra}" if extra in _TOX else ""))


# The extras that tox.ini has an environment for.
_TOX = ("cpu", "mobile")


def _needs(server: str) -> tuple[tuple[str, ...], ...]:
    """Return what a server needs: of each group any one distribution will do."""
    if server in SERVERS:
        return (SERVERS[server].distributions,)
    return (("torch",), ("torchao",), ("transformers",)) if server == "transformers" else ((server,),)


def _brought(on: Hardware, names: Sequence[str], asked: Mapping[str, Sequence[Requirement]]) -> str:
    """Return how one of some distributions is installed: as the hardware says, if that brings it, before any other."""
    wanted = {canonicalize_name(name) for name in names}
    having = [extra for extra, them in asked.items() if wanted & {canonicalize_name(it.name) for it in them}]
    if not having or any(f"[{extra}]" in on.install for extra in having):
        return shipped.installing(on.install)
    return _install(having[0])


def recipes(matrix: Matrix) -> list[Finding]:
    """Say of each quantized recipe where and through what it can be run, and why not through the rest."""
    quantized = [recipe for recipe in matrix.recipes.values() if not recipe.baseline]
    servers = list(dict.fromkeys(server for recipe in quantized for server in recipe.servers))
    found = []
    for recipe in quantized:
        able = [it for it in matrix.hardware.values() if not recipe.refusal(it)]
        told = f"on {_names(matrix, able)} through {', '.join(recipe.servers)}"
        others = [it for it in matrix.hardware.values() if it not in able]
        lacking = [server for server in servers if server not in recipe.servers]
        left = [f"on {_names(matrix, others)}"] if others else []
        left += [f"through {', '.join(lacking)}"] if lacking else []
        told += f"; not {', and not '.join(left)}" if left else ""
        why = "; ".join(dict.fromkeys(filter(None, [recipe.reason, *recipe.reasons.values()])))
        found.append(Finding("recipes", recipe.name, told + (f": {why}" if left and why else "")))
    return found


def _names(matrix: Matrix, hardware: Sequence[Hardware]) -> str:
    """Return the names of hardware, all of a group as the group."""
    names = [it.name for it in hardware]
    for group in matrix.groups:
        members = [it.name for it in matrix.members(group)]
        if len(members) > 1 and set(members) <= set(names):
            at = names.index(members[0])
            names = [name for name in names if name not in members]
            names.insert(at, group)
    return ", ".join(names)


def summary(findings: Sequence[Finding], matrix: Matrix) -> list[Finding]:
    """Say for each hardware and server of the matrix how many cells can run here, and what stands in the way."""
    asked = requirements()
    broken = {canonicalize_name(it.name): it for it in findings if it.group.startswith("packages") and it.problem}
    sound = {canonicalize_name(it.name) for it in findings if it.group.startswith("packages") and not it.problem}
    absent = {it.name: it for it in findings if it.group == "devices" and it.problem}
    found = []
    looked_for = here.looked_for(matrix)
    every = matrix.cells(on=here.meant(matrix, here.standing(matrix)))
    for hardware in looked_for:
        name = hardware.name
        cells = [cell for cell in every if cell.hardware == hardware]
        for server in dict.fromkeys(server for cell in cells for server in cell.servers):
            able = [it for it in cells if server in it.servers and not it.refusal(server)]
            told = f"{len(able)} cells"
            problem, fix = "", ""
            lacking = [names for names in _needs(server) if not any(canonicalize_name(it) in sound for it in names)]
            if name in absent:
                problem, fix = absent[name].problem, absent[name].fix
            elif lacking:
                sick = [broken[key] for it in lacking[0] if (key := canonicalize_name(it)) in broken and _version(it)]
                absence = f"{' or '.join(lacking[0])}: not installed"
                problem = f"{sick[0].name}: {sick[0].problem}" if sick else absence
                fix = _brought(hardware, lacking[0], asked)
            found.append(Finding("what can run", f"{name} through {server}", told, problem, fix))
    return found
