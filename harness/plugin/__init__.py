"""pytest's side of the harness; this file is what pytest loads in every run where the harness is installed.

It imports next to nothing, and adds nothing to a run that has no suites of the harness: neither options, whose names
another project may use, nor hooks. Of a run that has some it loads harness.plugin.plugin.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from harness.base.shipped import own_matrix
from harness.plugin.options import close_to, joined, named

_HOOKS = "harness.plugin.plugin"


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    config = pluginmanager.get_plugin("pytestconfig")
    if isinstance(config, pytest.Config) and _ours(config):
        # Not above: a run elsewhere pays nothing for it.
        from harness.base import unswept
        from harness.base.memory import TooLittleMemory, check_limits

        try:
            check_limits()
        except TooLittleMemory as error:
            raise pytest.UsageError(str(error)) from error
        with unswept.imports(_HOOKS):
            pluginmanager.import_plugin(_HOOKS)


def _ours(config: pytest.Config) -> bool:
    """Return whether a run has suites of the harness: where it starts, in what it is told to collect, or by name."""
    words = [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *config.getini("addopts")]
    words += map(str, config.invocation_params.args)
    if "--matrix" in named(words) or any(word.removeprefix("-p").startswith("harness.plugin") for word in words):
        return True
    return any(own_matrix(place) for place in _places(config, words))


def _places(config: pytest.Config, words: list[str]) -> Iterator[Path]:
    here = config.invocation_params.dir
    yield here
    yield config.rootpath
    for word in words:
        path = here / word.partition("::")[0]
        if not word.startswith("-") and _exists(path):
            yield path.resolve()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # Too long for a file's name.
        return False


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, None, None]:
    """Start once more where pytest has taken an option's value for a path; refuse options that have no suites."""
    if early_config.pluginmanager.has_plugin(_HOOKS):
        _start_again(early_config)
    yield
    if early_config.pluginmanager.has_plugin(_HOOKS):
        _, unknown = parser.parse_known_and_unknown_args(args)
        if meant := close_to(unknown):
            # pytest tells it below its own message, where it refuses the option.
            parser.extra_info["did you mean"] = ", ".join(meant)
    if not early_config.pluginmanager.has_plugin(_HOOKS) and named(args):
        _, unknown = parser.parse_known_and_unknown_args(args)
        if stray := named(unknown):
            raise pytest.UsageError(
                f"{stray[0]} is an option of the harness's suites, and there are none in {early_config.rootpath}: "
                "name their folder, e.g. that of `harness init`, or --matrix FILE"
            )


def _start_again(config: pytest.Config) -> None:
    """Run pytest with every value in one word with its option, if any of the values looks like a path.

    Its root, its configuration and what it collects are found before it knows a plugin's options.
    """
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return
    added = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
    words = list(map(str, config.invocation_params.args))
    values = {word for line in (added, words) for word in set(line) - set(joined(line))}
    if not any(_exists(config.invocation_params.dir / word) for word in values if not word.startswith("-")):
        return
    if joined(added) != added:
        os.environ["PYTEST_ADDOPTS"] = shlex.join(joined(added))
    raise SystemExit(int(pytest.main(joined(words), plugins=list(config.invocation_params.plugins or ()))))
