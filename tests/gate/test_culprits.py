"""Which package did it: found whatever needs whatever, in few gates, and what could not be judged is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.gate.culprits import search
from harness.judge.verdict import Ruling

PACKAGES = [f"p{number}" for number in range(9)]


@given(st.integers(1, 9), st.data())
def test_one_package_is_found_by_swapping(count: int, data: st.DataObject) -> None:
    packages = PACKAGES[:count]
    guilty = data.draw(st.sampled_from(packages))
    asked: list[frozenset[str]] = []

    def answer(them: frozenset[str]) -> Ruling:
        asked.append(them)
        return "regressed" if guilty in them else "pass"

    found = search(packages, answer)
    assert (found.sets, found.unsure) == (((guilty,),), ())
    assert len(asked) == len(set(asked)) <= 8, "no mixture is measured twice, and few are"


@given(st.sets(st.sampled_from(PACKAGES[:6]), min_size=2, max_size=3))
def test_packages_that_need_each_other_are_found_together(group: set[str]) -> None:
    def answer(them: frozenset[str]) -> Ruling:
        if them & group and not group <= them:
            return "error"
        return "regressed" if group <= them else "pass"

    found = search(PACKAGES[:6], answer)
    assert [set(one) for one in found.sets] == [group]
    assert found.unsure, "that none of them alone could be judged is told"


@given(st.sets(st.sampled_from(PACKAGES), min_size=2, max_size=3))
def test_several_that_make_it_worse_by_themselves_are_all_found(guilty: set[str]) -> None:
    found = search(PACKAGES, lambda them: "regressed" if them & guilty else "pass")
    assert {name for one in found.sets for name in one} == guilty
    assert all(len(one) == 1 for one in found.sets)


@given(st.sets(st.sampled_from(PACKAGES), min_size=2, max_size=4))
def test_what_is_worse_only_together_is_one_set_of_which_none_can_go(pair: set[str]) -> None:
    found = search(PACKAGES, lambda them: "regressed" if pair <= them else "pass")
    assert [set(one) for one in found.sets] == [pair]
    assert not found.unsure


def test_two_packages_are_swapped_one_at_a_time_the_first_named_first() -> None:
    asked: list[frozenset[str]] = []

    def answer(them: frozenset[str]) -> Ruling:
        asked.append(them)
        return "regressed" if "vllm" in them else "pass"

    assert search(["torchao", "vllm"], answer).sets == (("vllm",),)
    assert asked == [{"torchao"}, {"vllm"}]
