"""What a worker runs in: this interpreter, this one with one package swapped, or a virtual environment of its own."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.base.errors import BrokenEnvironment, OutOfTime
from harness.base.files import file_digest, is_file, is_folder
from harness.base.memory import TooLittleMemory, check_limits, wanting
from harness.base.reading import json_value
from harness.base.text import digest, redact
from harness.contract import guarded, visible
from harness.runtime.store import Store
from harness.runtime.variables import passed_on

# What decides a result, beside the servers: recorded with every measurement and part of every artifact's key.
WORKERS_NEED = ("torch", "torchao", "transformers")
"""The distributions that no worker does without."""
DECISIVE = (
    *("torch", "torchao", "transformers", "executorch", "lm_eval", "accelerate", "tokenizers", "triton", "numpy"),
    "mslk-cuda",  # where it is installed, torchao takes its kernels
)

_SECONDS = 60
# The first path that has a distribution comes last and so wins, however it spells the name. Only two headers are read:
# parsing all of them takes four times as long.
_LIST_PACKAGES = """
import importlib.metadata, json, re
def header(name, text):
    found = re.search(rf"^{name}:(.*)$", text, re.MULTILINE | re.IGNORECASE)
    return found.group(1).strip() if found else ""
found = {}
for one in reversed(list(importlib.metadata.distributions())):
    text = (one.read_text("METADATA") or one.read_text("PKG-INFO") or "").partition("\\n\\n")[0]
    found[header("Name", text)] = header("Version", text)
found.pop("", None)
print(json.dumps(found))
"""


# Of a package as it lies there, which is not imported for it. Of what is compiled the size will do.
_READ_SOURCES = """
import hashlib, importlib.util, json, pathlib, sys
found = hashlib.sha256()
spec = importlib.util.find_spec(sys.argv[1])
for root in sorted(spec.submodule_search_locations or []) if spec else []:
    for path in sorted(pathlib.Path(root).rglob("*")):
        if path.suffix in (".py", ".so"):
            told = path.read_bytes() if path.suffix == ".py" else str(path.stat().st_size).encode()
            found.update(f"{path.relative_to(root)} {hashlib.sha256(told).hexdigest()}\\n".encode())
print(json.dumps(found.hexdigest()))
"""


_FIND_FOLDER = """
import importlib.util, json, sys
spec = importlib.util.find_spec(sys.argv[1])
print(json.dumps(next(iter(spec.submodule_search_locations or []), None) if spec else None))
"""


@dataclass(frozen=True)
class Environment:
    """An interpreter and what stands before its own packages.

    ``overlay`` is a folder put first on the worker's path, which swaps single packages; ``variables`` are set in
    the worker's environment, and of the planner's it gets those that workers need (harness.runtime.variables) and those
    that ``passed`` names.
    """

    name: str = "this"
    python: str = sys.executable
    overlay: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)
    passed: tuple[str, ...] = ()

    def environ(self, store: Store, extra: dict[str, str] | None = None) -> dict[str, str]:
        """Return the worker's environment variables.

        The hub's token and other credentials are not among them: a worker reads what the planner fetched. The harness
        itself is made importable through a folder that holds nothing else, so that no other package of this environment
        leaks into another. What pytest says of the test that runs is left out too: workers of one session are forked
        from one process, and every test would have one of its own.
        """
        environ = passed_on(os.environ, self.passed)
        paths = [str(self.overlay)] if self.overlay else []
        paths.append(str(_code_folder(store)))
        if environ.get("PYTHONPATH"):
            paths.append(environ["PYTHONPATH"])
        environ |= {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "PYTHONNOUSERSITE": "1",
            # Asked whether there is a GPU, torch then does not initialize CUDA, after which nothing can be forked.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
        environ |= visible.ORDER
        environ.setdefault("OMP_NUM_THREADS", worker_threads())
        return environ | self.variables | (extra or {})

    def packages(self) -> dict[str, str]:
        """Return the version of every distribution that a worker of this environment sees."""
        return _packages(self.python, str(self.overlay or ""))

    def sources(self, package: str) -> str:
        """Return a digest of a package's code, as a worker of this environment sees it: a version may stand for two."""
        return _sources(self.python, str(self.overlay or ""), package)

    def folder(self, package: str) -> Path | None:
        """Return where a package lies that a worker of this environment would import; None where it has none."""
        return _folder(self.python, str(self.overlay or ""), package)

    def interpreter(self) -> str:
        """Return the interpreter's implementation, version and build."""
        return _interpreter(self.python)

    @property
    def python_version(self) -> str:
        """The version of the interpreter, as 3.12.4."""
        return self.interpreter().split()[1]

    def has(self, *names: str) -> bool:
        """Say whether a distribution of one of these names is installed."""
        known = {_normal(name) for name in self.packages()}
        return any(_normal(name) in known for name in names)

    @property
    def where(self) -> str:
        """The environment in words: its interpreter, and the folder that stands before its packages."""
        return f"{self.overlay} (before {self.python})" if self.overlay else self.python

    def lacking(self, *names: str) -> str:
        """Say that none of these distributions is installed, any of which would do; empty where one is."""
        return "" if self.has(*names) else f"{' or '.join(names)} is not installed in {self.where}"

    def without(self, *names: str) -> str:
        """Say which of these distributions, all of which are needed, are not installed; empty where none is missing."""
        absent = [name for name in names if not self.has(name)]
        return f"{', '.join(absent)}: not installed in {self.where}" if absent else ""

    def decisive(self, *servers: str) -> dict[str, str]:
        """Return the versions of the packages that decide a result, as far as they are installed.

        ``servers`` are the distributions that may hold a server.
        """
        known = {_normal(name): version for name, version in self.packages().items()}
        wanted = (*DECISIVE[:3], *servers, *DECISIVE[3:])
        return {name: known[_normal(name)] for name in wanted if _normal(name) in known}


def worker_threads() -> str:
    """Return how many threads a worker computes with: OMP_NUM_THREADS, or as many as there are processors."""
    return os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


@functools.lru_cache(maxsize=64)
def _packages(python: str, overlay: str) -> dict[str, str]:
    found: dict[str, str] = _asked_of(python, overlay, _LIST_PACKAGES)
    return found


@functools.lru_cache(maxsize=64)
def _sources(python: str, overlay: str, package: str) -> str:
    return str(_asked_of(python, overlay, _READ_SOURCES, package))


@functools.lru_cache(maxsize=64)
def _folder(python: str, overlay: str, package: str) -> Path | None:
    found = _asked_of(python, overlay, _FIND_FOLDER, package)
    return Path(found) if found else None


def _asked_of(python: str, overlay: str, code: str, *arguments: str) -> Any:
    """Return what code prints of the packages that an interpreter has behind those of a folder."""
    environ = os.environ | {"PYTHONNOUSERSITE": "1"}
    if overlay:
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [overlay, environ.get("PYTHONPATH", "")]))
    result = asked(python, code, *arguments, environ=environ)
    if result.returncode:
        raise BrokenEnvironment(f"{python} cannot list its packages: {result.stderr.strip()[-500:]}")
    return printed(python, result.stdout)


def asked(
    python: str, code: str, *arguments: str, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Return what an interpreter made of a few lines that list what it has.

    Raises BrokenEnvironment where it cannot be started or does not end, TooLittleMemory.
    """
    check_limits()
    try:
        return subprocess.run(
            [python, "-c", code, *arguments], capture_output=True, text=True, env=environ, timeout=_SECONDS, check=False
        )
    except OSError as error:
        if wanting(error):
            raise TooLittleMemory(f"{python} could not be started: {error.strerror}; end what else runs") from error
        raise BrokenEnvironment(f"{python} is not an interpreter that can be started ({error.strerror})") from error
    except subprocess.TimeoutExpired as error:
        raise BrokenEnvironment(f"{python} did not say what it has within {_SECONDS} s") from error


def printed(python: str, output: str) -> Any:
    """Return the JSON that an interpreter printed last; what its own start-up files print stands before it."""
    try:
        return json_value((output.strip().splitlines() or [""])[-1])
    except ValueError as error:
        raise BrokenEnvironment(
            f"{python} printed {output.strip()[-200:]!r} where its packages are due: is it a Python?"
        ) from error


@functools.lru_cache(maxsize=64)
def _interpreter(python: str) -> str:
    code = "import sys; print(sys.implementation.name, sys.version.replace(chr(10), ' '))"
    result = asked(python, code)
    if result.returncode:
        raise BrokenEnvironment(f"{python} does not work: {result.stderr.strip()[-500:]}")
    return result.stdout.strip()


def _code_folder(store: Store) -> Path:
    package = Path(__file__).resolve().parents[1]
    folder = store.root / "code" / digest(str(package))
    link = folder / package.name
    if not link.is_symlink():
        with store.writing("the harness's own code"):
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                link.symlink_to(package)
    return folder


Left = Callable[[], float]
"""The seconds that are left of a budget."""


def no_limit() -> float:
    """Return the seconds that are left where there is no budget."""
    return math.inf


def within(
    left: Left, command: list[str], what: str, *, timeout: float | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it printed.

    Raises OutOfTime where the budget ends before it does, and TooLittleMemory where it would have too little.
    """
    check_limits()
    seconds = None if left() == math.inf else max(0.1, left())
    given = min((it for it in (seconds, timeout) if it is not None), default=None)
    try:
        return guarded.run(command, timeout=given, env=env)
    except subprocess.TimeoutExpired as error:
        if given == timeout:
            raise
        raise OutOfTime(f"{what} was cut off: the budget has ended, and nothing was measured") from error


def overlay(
    store: Store, requirement: str, base: Environment, contents: str = "", left: Left = no_limit
) -> Environment:
    """Return ``base`` with the package of ``requirement`` (e.g. ``torchao==0.17.0``) swapped.

    The package is installed alone, without its dependencies, into a cached folder. ``contents`` is a digest of what a
    requirement that names a file stands for, ``left`` the seconds that there are for it. Raises BrokenEnvironment with
    the installer's own words when it cannot be had, OutOfTime; nothing half-made is left behind.
    """

    def build(folder: Path) -> None:
        _pip(base.python, ["--target", str(folder / "site"), "--no-deps", requirement], requirement, left)

    named, contents = _identity(requirement, contents)
    key = {"requirement": named, "python": base.python} | ({"contents": contents} if contents else {})
    artifact = store.get("overlay", key, build, label=f"overlay {requirement}")
    return replace(base, name=requirement, overlay=artifact.folder / "site")


def _identity(requirement: str, contents: str) -> tuple[str, str]:
    """Return what names a requirement, and a digest of what it stands for: a wheel is the same wherever it lies."""
    if is_file(requirement):
        return Path(requirement).name, contents or file_digest(Path(requirement))
    return requirement, contents


def site_folders(base: Environment) -> list[str]:
    """Return the folders that hold the packages of ``base``."""
    code = "import json, site; print(json.dumps(site.getsitepackages()))"
    result = asked(base.python, code)
    if result.returncode:
        raise BrokenEnvironment(f"{base.python} does not work: {result.stderr.strip()[-500:]}")
    found: list[str] = printed(base.python, result.stdout)
    return found


def at(path: Path, base: Environment) -> Environment:
    """Return the environment at ``path``: an interpreter, or a folder of packages to stand before those of ``base``.

    Raises BrokenEnvironment if it is neither.
    """
    path = path.expanduser().absolute()
    if is_folder(path):
        return replace(base, name=path.name, overlay=path)
    if not os.access(path, os.X_OK):
        raise BrokenEnvironment(f"{path} is neither an interpreter nor a folder of packages")
    return replace(base, name=path.name, python=str(path), overlay=None)


def _pip(python: str, arguments: list[str], what: str, left: Left) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    result = within(left, command, f"installing {what}")
    if result.returncode:
        words = redact(result.stderr.strip() or result.stdout.strip())
        raise BrokenEnvironment(f"{what} could not be installed; the installer says:\n{words[-2000:]}")
