"""Which recipes are faster here, and why the others are not: by a committed run, and by the same one made otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Line, Measurement
from harness.report import pays
from tests.reference import MAIN_JOB

FASTER = "int4wo-opaque"
"""The recipe whose kernel wins on the processor of the committed run."""
SPEED = {"latency": 1, "request_throughput": -1, "generate_throughput": -1}


@pytest.fixture(scope="module")
def run() -> list[Line]:
    return Run(MAIN_JOB).read()[0]


def told(run: list[Line], change: Callable[[Measurement], Measurement | None] = lambda it: it) -> list[str]:
    changed = (change(it) if isinstance(it, Measurement) else it for it in run)
    return pays.lines([it for it in changed if it], Documented.load())


def quicker(
    recipe: str, factor: float, metrics: tuple[str, ...] = tuple(SPEED)
) -> Callable[[Measurement], Measurement]:
    """Return the change by which a recipe is so many times faster than it was."""

    def change(it: Measurement) -> Measurement:
        if it.cell.recipe.name != recipe or it.metric not in metrics:
            return it
        by = factor ** -SPEED[it.metric]
        return it.model_copy(update={"value": it.value * by, "samples": [one * by for one in it.samples]})

    return change


def test_where_none_is_faster_each_says_why_by_what_the_run_saw(run: list[Line]) -> None:
    head, *recipes = told(run, lambda it: None if it.cell.recipe.name == FASTER else it)
    assert head.endswith(": faster than bf16: none of 5 recipes")
    of = {line.split(":")[0].strip(): line for line in recipes}
    assert set(of) == {"int8wo", "int8dq", "8da4w", "8da4w-int8emb", "float8wo"}
    assert "slowdown" in of["int8wo"]
    assert "widens the int8 weight" in of["int8wo"]
    assert "widened to bfloat16" in of["8da4w"]
    shares = {
        it.cell.server: f"{it.value:.0%}"
        for it in run
        if isinstance(it, Measurement) and it.metric == "quantized_kernel_share" and it.cell.recipe.name == "int8dq"
    }
    assert len(shares) == 2
    for server, share in shares.items():
        assert f"{share} of the time through {server}" in of["int8dq"]


def test_one_that_is_faster_is_named_and_says_in_what(run: list[Line]) -> None:
    head, *recipes = told(run, quicker("int8dq", 9.0))
    assert re.search(rf": faster than bf16: int8dq \(up to \d\.\d\dx\), {FASTER} \(up to 1\.\d\dx\)$", head)
    (own,) = (line for line in recipes if line.strip().startswith("int8dq:"))
    assert "faster in" in own
    assert "own kernels" not in own
    assert "slower" not in own


def test_one_that_is_faster_in_a_part_says_in_which_it_is_slower(run: list[Line]) -> None:
    head, *recipes = told(run, quicker("int8dq", 9.0, ("generate_throughput",)))
    assert re.search(rf": faster than bf16: int8dq \(up to \d\.\d\dx\), {FASTER} \(up to 1\.\d\dx\)$", head)
    (own,) = (line for line in recipes if line.strip().startswith("int8dq:"))
    assert "faster in generate" in own
    assert "slower in latency" in own


def test_what_its_rounds_leave_open_is_called_neither(run: list[Line]) -> None:
    """The same figures as the baseline's are neither faster nor slower."""
    base = {
        (it.metric, it.cell.server, str(it.parameters)): it
        for it in run
        if isinstance(it, Measurement) and it.cell.recipe.baseline
    }

    def same(it: Measurement) -> Measurement:
        other = base.get((it.metric, it.cell.server, str(it.parameters)))
        if other is None or it.metric not in SPEED:
            return it
        return it.model_copy(update={"value": other.value, "samples": other.samples})

    head, *recipes = told(run, same)
    assert head.endswith("none of 6 recipes")
    assert all("neither surely faster nor slower" in line for line in recipes)


def test_a_baseline_that_is_too_noisy_decides_nothing(run: list[Line]) -> None:
    def noisy(it: Measurement) -> Measurement:
        if it.metric not in SPEED or not it.cell.recipe.baseline:
            return quicker("int8dq", 90.0)(it)
        return it.model_copy(update={"samples": [it.value * by for by in (0.6, 0.9, 1.5)]})

    head, *recipes = told(run, noisy)
    assert head.endswith("none of 6 recipes")
    assert all("neither surely faster nor slower" in line for line in recipes), recipes


def test_without_a_baseline_or_without_speed_nothing_is_said(run: list[Line]) -> None:
    assert told(run, lambda it: None if it.cell.recipe.baseline else it) == []
    assert told(run, lambda it: None if it.metric in SPEED else it) == []
