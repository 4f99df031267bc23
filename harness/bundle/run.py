#!/usr/bin/env python3
"""Installs a bundle on a runner without a network, runs the suites there, and leaves one file to bring back.

    python3 run.py PARTS TARGET -m gpu --server vllm

``python -m harness bundle`` copies this file beside the parts, with ``install.py``. What follows TARGET is pytest's.
The runs, with their records, logs and tables, are in ``results.tar.xz`` afterwards, however pytest ended; a second
time, ``--resume`` among pytest's options goes on with the last of them. The exit status is pytest's, or 2 where nothing
was run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

if __package__:
    from harness.bundle import install
else:  # beside it, on the runner
    import install  # type: ignore[import-not-found, no-redef]

CARRIED = "carried"
"""The folder, below the target, of models, prompts and data."""


def seed(carried: Path, cache: Path) -> int:
    """Link every artifact that was carried into the cache, unless it is there; return how many were."""
    count = 0
    for source in sorted(carried.glob("*/*")):
        place = cache / source.parent.name / source.name
        if place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_name(f".{place.name}-{uuid.uuid4().hex[:8]}")
        shutil.copytree(source, fresh, copy_function=_link)
        os.replace(fresh, place)
        count += 1
    return count


def _link(source: str, place: str) -> None:
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)


def environment(target: Path) -> dict[str, str]:
    """Return this process's variables with the target before all else, and with nothing asking for a network."""
    more = {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if (hub := target / CARRIED / "hub").is_dir():
        more["HF_HUB_CACHE"] = str(hub)
    for name, first in (("PYTHONPATH", target), ("PATH", target / "bin")):
        more[name] = os.pathsep.join(filter(None, [str(first), os.environ.get(name, "")]))
    return {**os.environ, **more}


def command(target: Path, given: Sequence[str], cache: Path, results: Path) -> list[str]:
    """Return how pytest is called: on the suites that were carried, unless ``given`` names some of its own."""
    paths = [word for word in given if os.path.exists(word) and not word.startswith("-")]
    words = [sys.executable, "-m", "pytest", *([] if paths else [str(target / "harness" / "suites")]), *given]
    words += ["-p", "no:cacheprovider"]
    data = target / CARRIED / "data"
    for option, folder in (("--cache", cache), ("--results", results), ("--data", data if data.is_dir() else None)):
        if folder and not any(word == option or word.startswith(f"{option}=") for word in given):
            words += [option, str(folder)]
    return words


def call(words: Sequence[str], variables: dict[str, str]) -> int:
    """Run a command to its end and return its status; SIGTERM is handed on to it, and Ctrl-C reaches both."""
    with subprocess.Popen(list(words), env=variables) as process, _handed_on(process):
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                status = process.wait()
                return status if status >= 0 else 128 - status


@contextlib.contextmanager
def _handed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def collect(results: Path, back: Path) -> int:
    """Put all runs of a results folder into one archive, whole or not at all; return how many there are."""
    runs = sorted((results / "runs").glob("*/records.jsonl"))
    if not runs:
        return 0
    fresh = back.with_name(f".{back.name}.new-{os.getpid()}")
    try:
        with tarfile.open(fresh, "w:xz") as archive:
            archive.add(results / "runs", "runs")
        os.replace(fresh, back)
    finally:
        fresh.unlink(missing_ok=True)
    return len(runs)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; return pytest's status, or 2 where there was nothing to run or nothing came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--back", type=Path, default=Path("results.tar.xz"), help="the file to bring back (%(default)s)"
    )
    parser.add_argument("parts", type=Path, help="the folder that the parts were brought to")
    parser.add_argument("target", type=Path, help="the folder to install into")
    parser.add_argument("pytest", nargs=argparse.REMAINDER, help="what pytest is told, such as -m gpu")
    args = parser.parse_args(argv)
    target, back = args.target.resolve(), args.back.resolve()
    if status := install.main([str(args.parts), str(target)]):
        return status
    if not (target / "harness").is_dir():
        print(
            f"run: {target} has no harness: the bundle was made for another project; start that one's", file=sys.stderr
        )
        return 2
    cache, results = (target.with_name(f"{target.name}-{name}") for name in ("cache", "results"))
    try:
        if count := seed(target / CARRIED / "cache", cache):
            print(f"{cache}: {count} artifacts that were carried", flush=True)
        status = call(command(target, args.pytest, cache, results), environment(target))
        count = collect(results, back)
    except OSError as error:
        print(f"run: {error}; what was measured lies in {results}", file=sys.stderr)
        return 2
    said = (
        f"{back}: {count} run{'s' * (count != 1)} to bring back"
        if count
        else f"no run in {results}: nothing to bring back"
    )
    print(said, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
