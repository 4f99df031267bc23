"""Installs packages with uv as this machine's pip is set up to, with pip where there is no uv to be had.

    python requirements/install.py [OPTIONS OF pip install] [PACKAGE ...]

uv takes seconds where pip takes minutes and reads none of pip's settings: indexes, folders of wheels, constraints and
certificates are handed on. Where no index has the CPU build of torch, uv's own list of torch's indexes is asked, so
that a machine with nothing set up needs nothing set up. tox.ini calls this in each of its environments.

What a lock of this folder names is held against hashes.lock. Where a file is another than the one that was locked, as
an index of one's own may have built it, that is said; with HARNESS_LOCKS=strict it is also the end of it, and pip,
which takes hashes of all packages or of none, is not asked instead of uv.
"""

from __future__ import annotations

import ast
import compileall
import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

LOCK = Path(__file__).with_name("install.lock")
HASHES = LOCK.with_name("hashes.lock")
# The first uv with --torch-backend that knows every option below.
OLDEST = (0, 7)
OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "constraint": "--constraint",
    "trusted-host": "--allow-insecure-host",
    "no-binary": "--no-binary",
    "only-binary": "--only-binary",
}
SWITCHES = {"no-index": "--no-index", "pre": "--prerelease=allow", "require-hashes": "--require-hashes"}
YES = ("1", "true", "yes", "on")
VARIABLES = {
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
}
# Of these a process imports one or two if any; they are half of all code, and are compiled when they are imported.
SELDOM = re.compile(
    r"(?:^|/)(?:tests?|_?testing|examples|models|backends|lexers|resources|_vendor|benchmarks|kv_transfer|kv_offload)/"
    r"|^(?:numba|nltk|mypyc?|anthropic|pip|sentry_sdk|sklearn|dns|mcp|websockets|supervisor|hydra|omegaconf|antlr4"
    r"|mistral_common|compressed_tensors|cryptography|typer|fastapi_cloud_cli|lark|llvmlite)/"
    r"|^(?:lm_eval/tasks/\w+|sympy/(?:physics|parsing|stats|combinatorics)|torchao/prototype|playwright/async_api)/"
    r"|^(?:huggingface_hub/(?:cli|inference)|numpy/distutils|pydantic/v1|executorch/devtools|openai/types/\w+)/"
)
# Where one of these is set, uv has been told of the index itself.
OWN_INDEX = ("UV_DEFAULT_INDEX", "UV_INDEX_URL")


def pip_settings() -> dict[str, str]:
    """Return pip's settings by name, from its files and from PIP_* variables, of which the latter win."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    found: dict[str, tuple[int, str]] = {}
    for line in listed.stdout.splitlines():
        key, equals, value = line.partition("=")
        section, _, name = key.rpartition(".")
        # As pip does: what is for one command wins over what is for all, and a variable over both.
        rank = {"global": 0, "install": 1, ":env:": 2}.get(section, -1)
        if equals and rank >= found.get(name, (0, ""))[0]:
            found[name] = (rank, str(ast.literal_eval(value)))
    return {name: value for name, (_, value) in found.items()}


def for_uv(settings: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return uv's options and environment variables for pip's settings."""
    options = []
    for name, option in OPTIONS.items():
        if name == "index-url" and any(map(os.environ.get, OWN_INDEX)):
            continue
        options += [word for value in settings.get(name, "").split() for word in (option, value)]
    options += [
        option for name, option in SWITCHES.items() if settings.get(name, "").lower() in ("1", "true", "yes", "on")
    ]
    # pip takes the best version of any index, uv by itself that of the first index that knows the name.
    options += ["--index-strategy", "unsafe-best-match"]
    variables = {variable: settings[name] for name, variable in VARIABLES.items() if settings.get(name)}
    return options, {name: value for name, value in variables.items() if name not in os.environ}


def uv() -> list[str]:
    """Return the command that starts uv, installed into this environment where there is none; empty without one."""
    there = shutil.which("uv")
    if there and (version := _version([there])) and version >= OLDEST:
        return [there]
    own = [sys.executable, "-m", "uv"]
    if _version(own):
        return own
    quietly = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *quietly, "-r", str(LOCK)], check=False)
    return own if done.returncode == 0 and _version(own) else []


def _version(command: list[str]) -> tuple[int, ...] | None:
    try:
        told = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    numbers = re.search(r"(\d+)\.(\d+)", told.stdout)
    return tuple(map(int, numbers.groups())) if told.returncode == 0 and numbers else None


def run(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run a command, handing on what it says, and return its exit status with what it said."""
    said = []
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr  # noqa: S101 - for the type alone
        for line in process.stderr:
            sys.stderr.write(line)
            said.append(line)
    return process.returncode, "".join(said)


def with_hashes(words: list[str], folder: Path) -> list[str]:
    """Return the words with each lock of this project put in one file's place that has its hashes; written to a folder.

    Whatever else is asked for, and a package whose hash is not known, stays as it is.
    """
    if not HASHES.is_file():
        return words
    lines = (line.split() for line in HASHES.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    known = {name: hashes for name, *hashes in lines}
    found = list(words)
    for index, (option, path) in enumerate(itertools.pairwise(words), 1):
        lock = Path(path).resolve()
        if option not in ("-r", "--requirement") or lock.parent != LOCK.parent or not lock.is_file():
            continue
        hashed = []
        for line in lock.read_text(encoding="utf-8").splitlines():
            name, equals, version = line.partition("==")
            hashes = known.get(f"{re.sub(r'[-_.]+', '-', name).lower()}=={version.strip()}", []) if equals else []
            hashed.append(" ".join([line, *(f"--hash={it}" for it in hashes)]))
        (folder / lock.name).write_text("\n".join(hashed) + "\n", encoding="utf-8")
        found[index] = str(folder / lock.name)
    return found


def main(words: list[str]) -> int:
    """Install, and return the exit status of the last thing tried."""
    strict = os.environ.get("HARNESS_LOCKS", "") == "strict"
    if starter := uv():
        with tempfile.TemporaryDirectory() as folder:
            status, said = _with_uv(starter, with_hashes(words, Path(folder)))
        if status and re.search("hash", said, re.IGNORECASE):
            print("a file is another than the one that was locked: see the names above", file=sys.stderr)
            if strict:
                return status
            print("going on without hashes; HARNESS_LOCKS=strict would stop here", file=sys.stderr)
            status, said = _with_uv(starter, words)
        if not status or strict:
            return status
        print("uv could not install this: trying pip", file=sys.stderr)
    elif strict:
        print("HARNESS_LOCKS=strict needs uv, and there is none to be had", file=sys.stderr)
        return 1
    return subprocess.run([sys.executable, "-m", "pip", "install", *words], check=False).returncode


def _with_uv(starter: list[str], words: list[str]) -> tuple[int, str]:
    """Install with uv, and from torch's own indexes where none here has this torch."""
    options, variables = for_uv(pip_settings())
    command = [*starter, "pip", "install", "--python", sys.executable, *options]
    environment = os.environ | variables
    site = Path(sysconfig.get_path("purelib"))
    before = installed(site)
    status, said = run([*command, *words], environment)
    if status and re.search(r"\btorch\b", said) and not re.search("hash", said, re.IGNORECASE):
        print("no index here has this torch: asking torch's own through uv", file=sys.stderr)
        status, said = run([*command, "--torch-backend", "cpu", *words], environment)
    if not status:
        compile_files(site, [record for record, state in installed(site).items() if before.get(record) != state])
    return status, said


def installed(site: Path) -> dict[Path, int]:
    """Return the list of files of each package, with the time at which it was installed."""
    return {record: record.stat().st_mtime_ns for record in site.glob("*.dist-info/RECORD")}


def compile_files(site: Path, records: list[Path]) -> None:
    """Compile the Python files of packages as pip does, but for those that are seldom imported.

    Where nothing may write bytecode later, every process would compile torch anew: there all of them are.
    """
    listed = (line.partition(",")[0] for record in records for line in record.read_text("utf-8").splitlines())
    names = [name for name in listed if name.endswith(".py") and not name.startswith(("..", "/", '"'))]
    files = [site / name for name in names if sys.dont_write_bytecode or not SELDOM.search(name)]
    if files:
        with ProcessPoolExecutor() as pool:
            # Templates that are no Python are none of its business, as they are none of pip's.
            list(pool.map(partial(compileall.compile_file, quiet=2), files, chunksize=50))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
