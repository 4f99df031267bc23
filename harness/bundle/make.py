"""Collects what a runner without a network needs into parts that can be carried to it one by one.

    python -m harness bundle --python 3.12 --extra gpu-torch211 --runner FREEZE.txt --part-size 60MiB OUT/

OUT then holds ``part-00.bin``, ``part-01.bin`` and so on, ``manifest.json`` (every part's SHA-256, every package's
version), ``install.py``, which joins, verifies, unpacks and precompiles them on the runner, and ``run.py``, which does
that, runs the suites and leaves one file to bring back.

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

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.base.files import file_digest
from harness.base.reading import json_file
from harness.bundle import install, run
from harness.bundle.asked import (
    DISTRIBUTION,
    PROJECT,
    SETTINGS,
    BundleError,
    Runner,
    Settings,
    Target,
    is_own,
    named_extras,
    read_requirements,
    read_settings,
)
from harness.bundle.install import FORMAT, VERSION
from harness.bundle.pack import Entry, merge, plain_entries, wheel_entries, write_parts
from harness.bundle.resolve import Decision, Pip, Plan, Planner, ResolverFailed, Row


def make(
    out: Path,
    *,
    target: Target,
    extra: str,
    part_size: int,
    runner: Runner,
    pyproject: Path = PROJECT,
    settings_file: Path = SETTINGS,
    files: Mapping[str, Path | bytes] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Make the bundle in ``out`` and return its manifest. ``files`` are carried besides, by where they go.

    The harness itself is carried where ``pyproject`` is its own or asks for it, so that run.py can start it there.

    ``out`` appears, or replaces an older bundle, only when it is whole. Raises BundleError for all that a user can
    mend, and OSError for what the system refuses.
    """
    out = out.resolve()
    _check_out(out)
    settings = read_settings(settings_file, *named_extras(pyproject, extra))
    roots = read_requirements(pyproject, extra, target.environment())
    if not roots:
        raise BundleError(
            f"extra {extra!r} of {pyproject} requires nothing for Python {target.python}: no bundle is needed"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(out) as scratch, _scratch(out) as fresh:
        pip = Pip(target, scratch)
        for name in settings.source_only:
            # Where it cannot be had, the resolver says who asks for it, if anybody does.
            with contextlib.suppress(ResolverFailed):
                pip.build(name)
        say(f"resolving {', '.join(map(str, roots))}")
        start = time.perf_counter()
        chosen = Planner(roots, runner, settings, target.environment(), pip.resolve).plan()
        say(table(chosen.rows))
        say(f"{len(chosen.carried)} packages to carry, resolved in {time.perf_counter() - start:.0f} s")
        wheels = pip.download(chosen.carried)
        entries, packages = _collect(wheels, chosen, settings, say)
        if is_own(pyproject):
            entries = merge([entries, own_entries(pip)])
        elif DISTRIBUTION not in wheels:
            say(f"{DISTRIBUTION} is not carried, since {pyproject} is not its own: run.py needs it on the runner")
        more, raw = plain_entries(files or {})
        start = time.perf_counter()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "extra": extra,
            "python": target.python,
            "platform": target.platform,
            "machine": target.machine,
            **write_parts(fresh, [*entries, *more], part_size, raw),
            "packages": packages,
            "decisions": [vars(row) for row in chosen.rows],
        }
        (fresh / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for script in (install, run):
            shutil.copy(Path(str(script.__file__)), fresh)
        _put(fresh, out)
    say(f"{manifest['files']} files compressed in {time.perf_counter() - start:.0f} s, {len(raw)} carried as they are")
    for part in manifest["parts"]:
        say(f"{out / part['name']}  {part['size']} bytes  sha256 {part['sha256']}")
    say(
        f"carry these with manifest.json, install.py and run.py, then there: python{target.python} run.py PARTS TARGET "
        "and what pytest is to be told, such as -m gpu; or install.py PARTS TARGET, which only installs"
    )
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


def own_entries(pip: Pip) -> list[Entry]:
    """Return the harness itself: built from its checkout, or the files of what is installed."""
    if PROJECT.is_file():
        return wheel_entries(pip.build_own(PROJECT.parent), {})[0]
    files = metadata.distribution(DISTRIBUTION).files or []
    carried = {path.as_posix(): Path(str(path.locate())) for path in files if path.suffix != ".pyc"}
    return plain_entries({path: source for path, source in carried.items() if ".." not in Path(path).parts})[0]


def _check_out(out: Path) -> None:
    """Raise BundleError if something other than a bundle is in the way."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        known = json_file(out / "manifest.json")["format"] == FORMAT
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
