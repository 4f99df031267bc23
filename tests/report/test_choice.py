"""Which recipe: who beats whom, by laws and by example, and the table that tells it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.report.choice import Choice, beats, choices
from harness.report.figure import Figure, figure_of
from harness.report.tables import collect
from tests.report.test_tables import measured

FIGURES = st.builds(Figure, st.floats(0.001, 5), st.floats(0, 0.5), st.integers(2, 40))


@st.composite
def a_choice(draw: st.DrawFn) -> Choice:
    figures = {"checkpoint_size": Figure(draw(st.integers(1, 5)) * 1e6), "kl_divergence": draw(FIGURES)}
    if draw(st.booleans()):
        figures["generate_throughput"] = draw(FIGURES)
    return Choice(draw(st.sampled_from("abcdef")), False, figures)


@given(a_choice(), a_choice(), a_choice())
def test_none_beats_itself_or_one_that_beats_it(one: Choice, other: Choice, third: Choice) -> None:
    assert not beats(one, one)
    assert not (beats(one, other) and beats(other, one))
    if beats(one, other) and beats(other, third):
        assert one.figures["kl_divergence"].value < third.figures["kl_divergence"].value, "quality is in order"


def figures(recipe: str, size: float, kl: float | None, error: float = 0.001, speed: float | None = None) -> list:  # type: ignore[type-arg]
    found = [
        measured("checkpoint_size", size * 1e6, recipe, server=""),
        measured("weight_size", size * 1e6, recipe, server=""),
    ]
    if kl is not None:
        statistics = {"stderr": error}
        found.append(measured("kl_divergence", kl, recipe, server="transformers", statistics=statistics))
    if speed is not None:
        spread = {"n": 4.0, "stdev": 0.2, "mean": speed}
        found.append(measured("generate_throughput", speed, recipe, server="transformers", statistics=spread))
    return found


def told(*given: list) -> dict[str, str]:  # type: ignore[type-arg]
    (subject,) = collect([it for of in given for it in of])
    return {it.recipe: it.beaten_by for it in choices(subject).choices}


BASE = figures("bf16", 16, None, speed=10.0)


def test_what_is_larger_and_further_away_is_beaten() -> None:
    assert told(BASE, figures("int4", 4, 0.5), figures("nf4", 4.1, 0.9)) == {"int4": "", "nf4": "int4", "bf16": ""}


def test_neither_is_beaten_where_the_intervals_of_quality_meet() -> None:
    assert told(BASE, figures("int4", 4, 0.5, 0.2), figures("nf4", 4.1, 0.9, 0.2))["nf4"] == ""


def test_a_thousandth_of_the_size_saves_nobody() -> None:
    assert told(BASE, figures("int8", 8.001, 0.01), figures("float8", 8, 0.9))["float8"] == "int8"
    assert told(BASE, figures("int8", 8.2, 0.01), figures("float8", 8, 0.9))["float8"] == ""


def test_what_is_surely_faster_stands() -> None:
    slow, fast = figures("int4", 4, 0.5, speed=5.0), figures("nf4", 4.1, 0.9, speed=9.0)
    assert told(BASE, slow, fast)["nf4"] == ""
    assert told(BASE, slow, figures("nf4", 4.1, 0.9, speed=5.1))["nf4"] == "int4"


def test_few_rounds_tell_little() -> None:
    # Student's t has 12.71 standard errors at 2 samples, 2.776 at 5: ISO 2854's table of quantiles.
    assert Figure(10.0, 1.0, 2).interval == pytest.approx((-2.706, 22.706), abs=1e-3)
    assert Figure(10.0, 1.0, 5).interval == pytest.approx((7.224, 12.776), abs=1e-3)
    assert Figure(10.0).interval == (10.0, 10.0)
    of = measured("generate_throughput", 10.0, "bf16", server="transformers", statistics={"n": 4.0, "stdev": 0.2})
    assert figure_of(of) == Figure(10.0, 0.1, 4)


def test_a_recipe_that_makes_nothing_smaller_is_beaten_by_the_baseline() -> None:
    assert told(BASE, figures("wide", 16.5, 0.01))["wide"] == "bf16"


def test_the_baseline_and_what_was_not_measured_are_never_beaten() -> None:
    assert told(BASE, figures("int4", 4, 0.5), figures("odd", 5, None)) == {"int4": "", "odd": "", "bf16": ""}


def test_the_table_tells_bits_and_who_is_absent() -> None:
    (subject,) = collect([*BASE, *figures("int4", 4, 0.5), *figures("nf4", 4.1, 0.9)])
    table = choices(subject, {"int1": "needs another device"}).table()
    rows = {row[0]: row for row in table.rows}
    assert [rows[name][1] for name in ("bf16", "int4", "nf4")] == ["16.0", "4.0", "4.1"]
    assert rows["nf4"][-1] == "int4 beats it"
    assert rows["int4"][-1] == "stands"
    assert "int1: needs another device" in table.notes


def test_a_task_is_held_against_the_baseline_document_by_document() -> None:
    asked = {"task": "piqa", "task_metric": "acc_norm", "documents": 4}

    def answered(recipe: str, samples: list[float]) -> list:  # type: ignore[type-arg]
        of = measured("accuracy", sum(samples) / 4, recipe, server="transformers", parameters=asked)
        return [*figures(recipe, 4, 0.5), of.model_copy(update={"samples": samples})]

    base = [*BASE, answered("bf16", [1.0, 1.0, 0.0, 1.0])[-1]]
    (subject,) = collect([*base, *answered("int4", [1.0, 0.0, 0.0, 1.0]), *answered("same", [1.0, 1.0, 0.0, 1.0])])
    found = {it.recipe: it.figures.get("task piqa") for it in choices(subject).choices}
    assert found == {"bf16": None, "int4": Figure(-0.25, 0.25, 4), "same": Figure(0.0, 0.0, 4)}
    assert "piqa, from the baseline's" in choices(subject).table().header


def test_of_more_and_less_text_more_counts_and_less_is_told() -> None:
    def over(windows: int, recipe: str, kl: float) -> list:  # type: ignore[type-arg]
        parameters = {"windows": windows}
        statistics = {"stderr": 0.001}
        return [
            measured("kl_divergence", kl, recipe, server="transformers", parameters=parameters, statistics=statistics)
        ]

    sized = [*figures("int4", 4, None), *figures("nf4", 4, None)]
    (subject,) = collect([*BASE, *sized, *over(16, "int4", 0.5), *over(4, "int4", 0.7), *over(4, "nf4", 0.6)])
    found = {it.recipe: it for it in choices(subject).choices}
    assert found["int4"].figures["kl_divergence"].value == 0.5
    assert found["nf4"].beaten_by == "int4"
    assert any("nf4: quality over 4 windows of text alone" in note for note in choices(subject).table().notes)


def test_what_is_quantized_as_it_is_loaded_has_the_size_of_its_weights() -> None:
    at_load = [it for it in figures("opaque", 4, 0.9) if it.metric != "checkpoint_size"]
    assert told(BASE, figures("int4", 4, 0.5), at_load)["opaque"] == "int4"
