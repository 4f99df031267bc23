"""A run's end on one screen, and tables that wrap into blocks of recipes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.terminal import width
from harness.judge.limits import TOO_NOISY
from harness.plugin.summary import FASTER, Summary
from harness.records.published import Documented
from harness.records.run import Run
from harness.records.schema import Measurement, Outcome
from harness.report import blocks, judged, pays, tables, unsteady
from harness.report.brief import Paragraph, cut, main_table
from harness.report.rendering import Table
from tests.reference import MAIN_JOB, REFERENCE

WORDS = st.lists(st.text(st.sampled_from("ab|*_ <漢"), min_size=1, max_size=30), min_size=1, max_size=6).map(" ".join)


@st.composite
def any_table(draw: st.DrawFn) -> Table:
    count = draw(st.integers(2, 8))
    row = st.lists(WORDS, min_size=count, max_size=count).map(tuple)
    return Table("a-model on cpu", "Title", draw(row), tuple(draw(st.lists(row, max_size=5))), ("a note",))


def letters(parts: list[Table]) -> list[str]:
    """Return what stands in tables but for their first columns, which every block has."""
    rows = [row for part in parts for row in (part.header, *part.rows)]
    return sorted("".join(cell for row in rows for cell in row[1:]).replace(" ", ""))


@given(table=any_table(), wide=st.integers(60, 100))
@pytest.mark.programs
def test_no_block_is_wider_and_every_cell_stands_in_one(table: Table, wide: int) -> None:
    parts = blocks.in_blocks(table, wide)
    text = blocks.text([table], wide)
    assert max(width(line) for line in text.splitlines()) <= wide
    assert sum(len(part.header) - 1 for part in parts) == len(table.header) - 1
    assert letters(parts) == letters([table])
    assert text.count("a note") == 1


def test_one_models_name_is_not_repeated() -> None:
    table = Table("tiny on cpu", "", ("Benchmark", "tiny", "tiny-int8wo", "tiny-8da4w"), (("memory", "1", "2", "3"),))
    assert blocks.told_once(table).header == ("Benchmark", "tiny", "int8wo", "8da4w")
    alone = Table("tiny on cpu", "", ("Benchmark", "Server", "tiny-int8wo", "tiny-8da4w"), (("m", "s", "1", "2"),))
    assert blocks.told_once(alone).header == ("Benchmark", "Server", "int8wo", "8da4w")
    other = Table("", "", ("recipe", "latency", "memory"), (("a", "1", "2"),))
    assert blocks.told_once(other) == other


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in REFERENCE.glob("*/records.jsonl")))
@pytest.mark.parametrize("lines", [8, 20, 30])
@pytest.mark.programs
def test_the_main_table_of_a_real_run_fits(folder: str, lines: int) -> None:
    measurements = [line for line in Run(REFERENCE / folder).read()[0] if isinstance(line, Measurement)]
    shown = main_table(measurements, Documented.load(), 100, lines)
    assert 0 < len(shown) <= lines
    assert max(map(width, shown)) <= 100


def test_the_main_jobs_table_has_speed_and_quality_within_a_screen() -> None:
    run = Run(MAIN_JOB)
    measurements = [line for line in run.read()[0] if isinstance(line, Measurement)]
    shown = "\n".join(main_table(measurements, Documented.load(), 100, 28))
    for words in ("Peak Memory", "latency (batch_size=1)", "perplexity", "KL divergence", "float8wo"):
        assert words in shown
    whole = tables.published_tables(measurements, Documented.load())
    assert max(width(line) for line in blocks.text(whole, 100).splitlines()) <= 100
    assert max(width(line) for line in blocks.text(whole, None).splitlines()) > 150


def test_columns_that_there_is_no_room_for_are_named() -> None:
    measurements = [line for line in Run(MAIN_JOB).read()[0] if isinstance(line, Measurement)]
    shown = main_table(measurements, Documented.load(), 100, 20)
    assert len(shown) <= 20
    assert re.match(r"\.\.\. and \d more columns: .*serving", shown[-1])
    assert max(map(width, shown)) <= 100


def test_a_test_that_the_machine_was_too_noisy_for_is_named_with_its_reason() -> None:
    about = {"test": "test_engine.py::test_speed[x]", "seconds": 1.0}
    ended = [
        Outcome(outcome="passed", **about),
        Outcome(outcome="noisy", reason="8 tokens took no longer than the first one: raise rounds", **about),
        Outcome(
            outcome="noisy", reason=f"latency of x: {TOO_NOISY}: measured 1", test="told of by its limit", seconds=1
        ),
        Outcome(outcome="noisy", reason="once", test="measured again", seconds=1),
        Outcome(outcome="passed", test="measured again", seconds=1),
    ]
    told = "test_engine.py::test_speed[x]: 8 tokens took no longer than the first one: raise rounds"
    assert unsteady.lines(ended) == [told]
    said = judged.sentence(judged.limits(ended), 0, mute=len(unsteady.tests(ended)))
    assert (said.text, said.tone) == ("The machine was too noisy for 1 test.", "known")


PARAGRAPHS = st.lists(
    st.builds(
        Paragraph,
        title=st.sampled_from(["", "title"]),
        items=st.lists(st.text(st.sampled_from("ab "), min_size=1, max_size=300), max_size=30).map(tuple),
        tone=st.sampled_from(["", "red"]),
        least=st.integers(1, 4),
        rank=st.integers(0, 9),
    ),
    min_size=1,
    max_size=6,
)


@given(paragraphs=PARAGRAPHS, lines=st.integers(31, 60))
def test_paragraphs_are_cut_to_so_many_lines(paragraphs: list[Paragraph], lines: int) -> None:
    found = cut(paragraphs, 100, lines, "all.txt")
    assert len(found) <= lines
    assert all(width(line) <= 100 for line, _ in found)
    if sum(len(it.items) for it in paragraphs) * 8 < lines:
        assert not any("more: all.txt" in line for line, _ in found), "there is room for all"


def test_what_is_cut_says_how_much_and_where_the_rest_is() -> None:
    found = cut([Paragraph("limits:", tuple(f"limit {n}" for n in range(30)), "red")], 100, 10, "all.txt")
    assert found[0] == ("limits:", "red")
    assert found[-1] == ("... and 22 more: all.txt", "red")
    assert len(found) == 10


def test_a_paragraph_with_room_for_one_line_says_something() -> None:
    long = Paragraph("", ("word " * 60,), least=1)
    found = cut([Paragraph("", ("verdict",), rank=0), long], 100, 2, "all.txt")
    assert found[1][0].startswith("word word")
    assert found[1][0].endswith(" ...")
    assert width(found[1][0]) <= 100


def test_a_noisy_run_of_the_main_job_still_shows_speed_and_quality(tmp_path: Path) -> None:
    """What is too noisy to say does not leave the main table with memory alone."""
    shutil.copytree(MAIN_JOB, tmp_path / "run")
    summary = Summary.of(Run(tmp_path / "run"), Documented.load(), seconds=9, planner=1, wide=100)
    item = "a figure of the run whose rounds lie far from each other: " + "too noisy to say, " * 6
    sections = [
        ("limits that are known not to hold", [item]),
        ("too noisy to say", [item] * 9),
        ("what was quantized", [item] * 5),
        ("the machine was not quiet", [item]),
        (FASTER, pays.lines(summary.lines, Documented.load())),
        ("skipped", [item]),
    ]
    lines = [line for line, _ in summary.brief(("passed: 65 passed", "green"), sections, tmp_path)]
    assert len(lines) <= 37
    shown = "\n".join(lines)
    for words in (
        "Peak Memory",
        "latency (batch_size=1)",
        "perplexity",
        "KL divergence",
        "float8wo",
        "quantized:",
        "faster than bf16",
    ):
        assert words in shown
