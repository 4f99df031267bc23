"""What a command line names that there is none of, said in a dry run as in a run; and why nothing is selected."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from harness.base.errors import BrokenEnvironment, HarnessError, nearest
from harness.base.expressions import unmatched
from harness.plugin.collect import Claim
from harness.plugin.command_line import CommandLine
from harness.plugin.environments import check_given
from harness.plugin.stash import claims_of, matrix_of
from harness.runtime import asked


def check(config: pytest.Config, given: CommandLine) -> None:
    """Raise HarnessError, as a run would later, for what a dry run was given and cannot be."""
    if given.on:
        # It is for nodes to say what they have.
        return
    check_given(given)
    given.own_environments()
    if given.swap:
        try:
            asked.parts(given.swap)
        except BrokenEnvironment as error:
            raise HarnessError(f"--swap {error}") from error
    if given.against:
        # Not at the top: most sessions are held against no baseline.
        from harness.judge import baseline

        try:
            baseline.load(baseline.find(given.against, given.results / "baselines"))
        except HarnessError as error:
            raise HarnessError(f"--against: {error}") from error
    for name in given.devices:
        if config.hook.pytest_harness_device(name=name) is None:
            # Not at the top: most sessions name no device.
            from harness.devices import check_name

            check_name(name)


def meant(config: pytest.Config) -> str:
    """Return which hardware the names in -m that nothing is called by may have meant, as the end of a message."""
    try:
        known = matrix_of(config).markers
    except pytest.UsageError:
        return ""
    # One of pytest's or of the project's own is told there with what it takes.
    registered = {re.split(r"[:(]", line)[0].strip() for line in config.getini("markers")}
    words = set(re.findall(r"[\w-]+", CommandLine.of(config).markers)) - {"and", "or", "not"} - registered
    return "".join(f"\n-m {word}: hardware has other names; {nearest(word, known)}" for word in sorted(words))


def check_keyword(keyword: str, items: Sequence[pytest.Item]) -> None:
    """Raise HarnessError for a word that -k asks for and that no test has in a name, with those that it may have meant.

    What is to be left out may be of no test.
    """
    claims = claims_of(items)
    if not keyword or not claims:
        return
    named = {str(name) for item in items for name in (item.nodeid, *item.keywords)}
    for word in unmatched(keyword, named):
        known = {name for claim in claims for name in _names(claim)} - {""}
        raise HarnessError(f"-k {keyword!r}: no test has {word!r} in its name; {nearest(word, known)}")


def _names(claim: Claim) -> tuple[str, ...]:
    """Return the words that a test is called by."""
    cell = claim.cell
    return (claim.function.removeprefix("test_"), cell.recipe.name, cell.model.name, cell.server, claim.stage)


def nothing(config: pytest.Config, stats: Mapping[str, Sequence[Any]], exit_status: int) -> str:
    """Say by which options everything was left out; empty where that is not what happened."""
    given, left_out = CommandLine.of(config), len(stats.get("deselected", ()))
    keyword = config.getoption("keyword", "")
    options = [f"{name} {value!r}" for name, value in (("-m", given.markers), ("-k", keyword)) if value]
    if exit_status != pytest.ExitCode.NO_TESTS_COLLECTED or not left_out or not options:
        return ""
    among = " ".join([*config.args, *([f"-m '{given.markers}'"] if given.markers and keyword else [])])
    told = f"nothing is selected by {' and '.join(options)}, of {left_out} tests"
    return f"{told}{meant(config)}\nwhat there is to select: pytest {among} --co -q"
