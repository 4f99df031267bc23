"""Bisection: the first bad release is found, whatever cannot be judged on the way."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from harness.gate.bisect import search
from harness.judge.verdict import Ruling


@given(st.integers(2, 200), st.data())
def test_the_first_bad_release_is_found_in_few_gates(count: int, data: st.DataObject) -> None:
    releases = [f"1.{index}" for index in range(count)]
    first_bad = data.draw(st.integers(1, count - 1))
    asked: list[str] = []

    def answer(release: str) -> Ruling:
        asked.append(release)
        return "regressed" if releases.index(release) >= first_bad else "pass"

    found = search(releases, answer)
    assert (found.good, found.bad, found.status) == (releases[first_bad - 1], releases[first_bad], 1)
    assert len(asked) == len(set(asked)) <= math.ceil(math.log2(count)) + 1


@given(st.integers(3, 60), st.data())
def test_releases_that_cannot_be_judged_are_passed_over_and_named(count: int, data: st.DataObject) -> None:
    releases = [f"1.{index}" for index in range(count)]
    first_bad = data.draw(st.integers(1, count - 1))
    odd = data.draw(st.sets(st.integers(1, count - 2)))

    def answer(release: str) -> Ruling:
        index = releases.index(release)
        return "error" if index in odd else "regressed" if index >= first_bad else "pass"

    found = search(releases, answer)
    good, bad = releases.index(found.good), releases.index(found.bad or "")
    assert good < first_bad <= bad
    assert not {good, bad} & odd
    assert all(index in odd for index in range(good + 1, bad)), "nothing that could be judged is left between"
    assert list(found.undecided) == [releases[index] for index in range(good + 1, bad)]
    assert found.status == (3 if found.undecided else 1)


def test_without_a_regression_there_is_nothing_to_search_for() -> None:
    asked: list[str] = []

    def answer(verdict: Ruling, release: str) -> Ruling:
        asked.append(release)
        return verdict

    assert search(["1", "2", "3"], lambda release: answer("pass", release)).status == 0
    unsure = search(["1", "2", "3"], lambda release: answer("inconclusive", release))
    assert (unsure.bad, unsure.undecided, unsure.status) == (None, ("3",), 3)
    assert asked == ["3", "3"], "the last release is asked first"
