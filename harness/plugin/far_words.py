"""The command line of a node's session: what the planner's asks for, less what is the planner's own."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from harness.plugin.options import OPTIONS
from harness.runtime.shared import address

# Options of the planner alone.
_OWN = {"--on", "--wait-for-nodes", "--resume", "--results", "--against", "--allow-noisy", "--wide"}
_PATHS = {"--data", "--matrix", "--phone-runner"}
# Words of pytest's own command line that nodes get too, with their value where it is a word by itself.
_HANDED_ON = ("-p", "-W", "-o", "--override-ini", "-c", "--import-mode", "--benchmark-")


def words(config: pytest.Config, *, here: bool) -> list[str]:
    """Return the words of a node's pytest but for its tests; ``here`` says that nodes are this machine."""
    found = ["--rootdir=.", "--wide", *_as_here(config)]
    for name, how in OPTIONS.items():
        value = config.getoption(name)
        if name in _OWN or not value:
            continue
        if how.get("action") == "store_true":
            found.append(name)
            continue
        if name == "--share":
            value = address(value)
        for one in value if isinstance(value, (list, tuple)) else [value]:
            found.append(f"{name}={_place(config, Path(one), here) if name in _PATHS else one}")
    given = [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *map(str, config.invocation_params.args)]
    for index, word in enumerate(given):
        if word in _HANDED_ON:
            found += [word, given[index + 1]]
        elif word.startswith(_HANDED_ON):
            found.append(word)
    return found


def _as_here(config: pytest.Config) -> list[str]:
    """Return the words by which what a node reports reads as it would here."""
    verbose = config.getoption("verbose", 0)
    found = [f"-{'v' * verbose}" if verbose > 0 else "-q", f"--tb={config.getoption('tbstyle', 'auto')}"]
    more = {"--showlocals": "showlocals", "--full-trace": "fulltrace"}
    return found + [word for word, name in more.items() if config.getoption(name, False)]


def _place(config: pytest.Config, path: Path, here: bool) -> Path:
    """Return a path as a node finds it: below the folder that it gets a copy of, or where it lies here too."""
    whole = (config.invocation_params.dir / path).resolve()
    return whole.relative_to(config.rootpath) if not here and whole.is_relative_to(config.rootpath) else whole
